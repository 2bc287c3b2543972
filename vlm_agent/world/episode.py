"""An episode is its seed and its words: everything else can be played again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vlm_agent.common.errors import UserError
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.robosuite.env import LanguageActionEnv, Observation


@dataclass(frozen=True)
class Episode:
    """What is needed to play an episode again, bit for bit.

    Attributes:
        seed: The reset seed.
        actions: The action indices, in the order they were said.
        horizon: Words after which the time is up, if that is to be before the scene's own horizon.
    """

    seed: int
    actions: tuple[int, ...]
    horizon: int | None = None


def replay(env: LanguageActionEnv, episode: Episode) -> Iterator[Observation]:
    """Play an episode again, yielding the first observation and the one after each word."""
    observation, _ = env.reset(seed=episode.seed)
    yield observation
    for action in episode.actions:
        observation, *_ = env.step(action)
        yield observation


def save_episode(path: Path, episode: Episode, config: EnvConfig, words: tuple[str, ...]) -> None:
    """Write an episode with the scene it was played in, as JSON."""
    record = {**asdict(episode), "words": list(words), "env": asdict(config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def load_episode(path: Path) -> tuple[Episode, EnvConfig, tuple[str, ...]]:
    """What :func:`save_episode` wrote: the episode, its scene and the eight words.

    Raises:
        UserError: The file is missing or holds no episode.
    """
    try:
        record = json.loads(path.read_text())
        episode = Episode(record["seed"], tuple(record["actions"]), record.get("horizon"))
        return episode, EnvConfig(**record["env"]), tuple(record["words"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no episode in {str(path)!r}: {error!r}") from None
