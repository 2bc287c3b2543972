"""Which episode of two evaluations to show."""

from __future__ import annotations

from pathlib import Path

from vlm_agent.report.played import read_played
from vlm_agent.world.episode import save_episode


def save_examples(evaluations: tuple[Path, ...], outputs: tuple[Path, ...]) -> list[Path]:
    """Write an episode as it was at the first evaluation, and the same at the last.

    Both are of one seed: if there is one, of an episode that was solved only at the last.

    Args:
        evaluations: The files of the two.
        outputs: The files to write.

    Returns:
        What was written: nothing where an evaluation is missing, as it is when a run was resumed
        elsewhere than it began, or where they played other episodes.
    """
    if not all(path.is_file() for path in evaluations):
        return []
    before, after = (read_played(path, trust_modules=True) for path in evaluations)

    first = {episode.seed: episode for episode in before.episodes}
    both = [(first[last.seed], last) for last in after.episodes if last.seed in first]
    if not both:
        return []  # the run was gone on with by another seed
    shown = max(both, key=lambda p: (p[1].success, not p[0].success, p[1].episode_return))
    for path, played, episode in zip(outputs, (before, after), shown, strict=True):
        save_episode(path, episode, played.config, played.words)
    return list(outputs)
