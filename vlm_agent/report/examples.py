"""Which episode of two evaluations to show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode, save_episode


def save_examples(
    evaluations: tuple[Path, ...],
    outputs: tuple[Path, ...],
    config: EnvConfig,
    words: Sequence[str],
) -> list[Path]:
    """Write an episode as it was at the first evaluation, and the same at the last.

    Both are of one seed: if there is one, of an episode that was solved only at the last.

    Args:
        evaluations: The files of the two.
        outputs: The files to write.
        config: The scene they were played in.
        words: The action words.

    Returns:
        What was written: nothing where an evaluation is missing, as it is when a run was resumed
        elsewhere than it began.
    """
    if not all(path.is_file() for path in evaluations):
        return []
    before, after = (json.loads(path.read_text())["episodes"] for path in evaluations)
    shown = max(
        range(len(after)),
        key=lambda n: (after[n]["success"], not before[n]["success"], after[n]["return"]),
    )
    for path, episodes in zip(outputs, (before, after), strict=True):
        said = tuple(words.index(word) for word in episodes[shown]["words"])
        episode = Episode(
            episodes[shown]["seed"],
            said,
            episode_return=episodes[shown]["return"],
            success=episodes[shown]["success"],
            stage=episodes[shown]["stage"],
        )
        save_episode(path, episode, config, tuple(words))
    return list(outputs)
