"""Episodes as the page shows them: the film, and what the policy made of each moment."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlm_agent.report.html.replays import FPS, Replay, replay_all
from vlm_agent.report.mind import Mind
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode
from vlm_agent.world.observations import Observations

BATCH = 32
"""Moments that are scored at once."""


def choose_episodes(played: Sequence[dict[str, Any]], count: int) -> list[int]:
    """The places of the episodes to show: failures by where they failed, then as many successes.

    Args:
        played: What an evaluation's file holds of each episode.
        count: How many.
    """
    failed = [n for n, episode in enumerate(played) if not episode["success"]]
    solved = [n for n, episode in enumerate(played) if episode["success"]]
    most = max(count - count // 2, count - len(solved))
    by_stage: dict[str, list[int]] = {}
    for number in failed:
        by_stage.setdefault(played[number]["stage"], []).append(number)
    shown: list[int] = []
    while len(shown) < min(most, len(failed)):  # one of each stage in turn
        for numbers in by_stage.values():
            shown += numbers[:1]
            del numbers[:1]
    shown = shown[:most]
    return shown + solved[: count - len(shown)]


def episode_players(
    episodes: Sequence[tuple[int, Episode]],
    config: EnvConfig,
    gamma: float,
    mind: Mind,
    workers: int = 0,
    on_episode: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Play episodes again, and have the policy judge each moment.

    Args:
        episodes: Their numbers, for people, and the episodes.
        config: The scene they were played in.
        gamma: The discount of its rewards.
        mind: Who spoke.
        workers: Processes; 0 for one per core.
        on_episode: Called after each, for progress bars.

    Returns:
        What the page needs of each, as JSON values.

    Raises:
        UserError: The world does not replay.
    """
    players: list[dict[str, Any]] = []
    for replay in replay_all(
        [episode for _, episode in episodes], config, gamma, mind.facts, workers
    ):
        number = episodes[len(players)][0]
        players.append(_player(number, replay, mind))
        on_episode()
    return players


def _player(number: int, replay: Replay, mind: Mind) -> dict[str, Any]:
    episode, seen = replay.episode, replay.observations
    probabilities, values = _judged(seen, mind)
    said = [mind.words[action] for action in episode.actions]
    return {
        "number": number,
        "seed": episode.seed,
        "success": episode.success,
        "stage": episode.stage,
        "goal": episode.goal,
        "sentence": replay.sentence,
        "return": round(float(episode.episode_return), 3),
        "said": said,
        "probabilities": probabilities,
        "values": values,
        "rewards": np.round(replay.rewards, 3).tolist(),
        "stages": list(replay.stages),
        "prompts": [mind.prompt(facts) for facts in seen.facts.tolist()],
        "film": base64.b64encode(replay.film).decode(),
        "fps": FPS,
    }


def _judged(seen: Observations, mind: Mind) -> tuple[list[list[float]] | None, list[float] | None]:
    """Probabilities (T, A) and values (T,) as far as they can be told."""
    if mind.judge is None:
        return None, None
    parts = [mind.judge(seen[first : first + BATCH]) for first in range(0, len(seen), BATCH)]
    probabilities = np.concatenate([part.probabilities for part in parts])
    told = [part.values for part in parts if part.values is not None]
    values = np.round(np.concatenate(told), 3).tolist() if told else None
    return np.round(probabilities, 4).tolist(), values
