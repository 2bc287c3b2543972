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
        elsewhere than it began.
    """
    if not all(path.is_file() for path in evaluations):
        return []
    before, after = (read_played(path) for path in evaluations)

    def merit(number: int) -> tuple[bool, bool, float]:
        first, last = before.episodes[number], after.episodes[number]
        return last.success, not first.success, last.episode_return

    shown = max(range(len(after.episodes)), key=merit)
    for path, played in zip(outputs, (before, after), strict=True):
        save_episode(path, played.episodes[shown], played.config, played.words)
    return list(outputs)
