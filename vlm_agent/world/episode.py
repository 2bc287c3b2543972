"""An episode is its seed and its words: everything else can be played again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from gymnasium.error import ResetNeeded

from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import known_settings
from vlm_agent.world.config import EnvConfig


@dataclass(frozen=True)
class Episode:
    """What is needed to play an episode again, bit for bit; and what came of it so far.

    Attributes:
        seed: The reset seed.
        actions: The action indices, in the order they were said.
        horizon: Words after which the time is up, if that is to be before the scene's own horizon.
        prefix_length: How many of the words at its beginning were not the policy's.
        episode_return: Undiscounted sum of the rewards of the policy's words.
        success: Whether the task was solved.
        stage: The highest stage so far.
        goal: What its instruction asks for; empty where there is one goal alone.
    """

    seed: int
    actions: tuple[int, ...] = ()
    horizon: int | None = None
    prefix_length: int = 0
    episode_return: float = 0.0
    success: bool = False
    stage: str = "none"
    goal: str = ""

    @property
    def coordinates(self) -> str:
        """What it takes to play it again."""
        return f"the episode of seed {self.seed}, after the words {list(self.actions)}"

    def after(self, action: int, reward: float, info: Mapping[str, Any]) -> Episode:
        """The episode with one word more, and what came of it."""
        return replace(
            self,
            actions=(*self.actions, int(action)),
            episode_return=self.episode_return + float(reward),
            success=bool(info["is_success"]),
            stage=str(info["stage"]),
            goal=str(info.get("goal", "")),
        )

    @property
    def length(self) -> int:
        """How many words the policy said."""
        return len(self.actions) - self.prefix_length

    @property
    def replay_options(self) -> dict[str, Any]:
        """The options of a reset that takes the episode up where it stands."""
        return {"actions": self.actions, "horizon": self.horizon}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Episode:
        """What ``dataclasses.asdict`` gave and JSON kept."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**{**known, "actions": tuple(values["actions"])})


def replay(env: Any, episode: Episode) -> Iterator[dict[str, Any]]:
    """Play an episode again, yielding the first observation and the one after each word.

    Raises:
        UserError: It ends before it has all its words, so it is not the same.
    """
    observation, _ = env.reset(seed=episode.seed)
    yield observation
    for action in episode.actions:
        try:
            observation, *_ = env.step(action)
        except ResetNeeded:
            raise UserError("this world does not replay: the episode ended earlier") from None
        yield observation


def save_episode(path: Path, episode: Episode, config: EnvConfig, words: tuple[str, ...]) -> None:
    """Write an episode with the scene it was played in, as JSON."""
    record = {**asdict(episode), "words": list(words), "env": asdict(config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def load_episode(path: Path) -> tuple[Episode, EnvConfig, tuple[str, ...]]:
    """What :func:`save_episode` wrote: the episode, its scene and the words.

    Raises:
        UserError: The file is missing or holds no episode.
    """
    try:
        record = json.loads(path.read_text())
        episode = Episode.from_json(record)
        config = EnvConfig(**known_settings(EnvConfig, record["env"]))
        return episode, config, tuple(record["words"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no episode in {str(path)!r}: {error!r}") from None
