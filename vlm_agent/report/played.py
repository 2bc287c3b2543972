"""Episodes of any file of results: of a run's evaluations, of ``eval --json``, or one alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import known_settings
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode, load_episode
from vlm_agent.world.modules import check_trusted
from vlm_agent.world.registry import declare


@dataclass(frozen=True)
class Played:
    """Episodes, and what it takes to play them again.

    Attributes:
        episodes: In the order of their numbers.
        config: The scene they were played in.
        words: What the actions are called.
    """

    episodes: tuple[Episode, ...]
    config: EnvConfig
    words: tuple[str, ...]

    def numbers(self, outcome: str | None) -> list[int]:
        """The numbers of those that ``"failed"``, that were ``"solved"``, or of all."""
        return [
            number
            for number, episode in enumerate(self.episodes)
            if outcome is None or episode.success == (outcome == "solved")
        ]

    def choose(self, number: int | None, outcome: str | None) -> int:
        """The number of one of them.

        Args:
            number: Which of those there are; the first by default.
            outcome: As for :meth:`numbers`.

        Raises:
            UserError: There are not so many.
        """
        wanted = self.numbers(outcome)
        place = number or 0
        if place >= len(wanted):
            kind = f" {outcome}" if outcome else ""
            raise UserError(
                f"--number {place}: there are {len(wanted)}{kind} episodes, counted from 0"
            )
        return wanted[place]


def read_played(path: Path, trust_modules: bool = False) -> Played:
    """The episodes of a file of results.

    Args:
        path: What ``eval --json`` wrote, a run's ``evaluations/N.json``, its ``after.json``, or the
            ``episode.json`` of an update that could not be.
        trust_modules: Whether to import the modules that its scene names.

    Raises:
        UserError: It holds none, or names code that is not to be trusted.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no episode in {str(path)!r}: {error}") from None
    if not isinstance(result, dict) or not isinstance(result.get("episodes"), list):
        episode, config, words = load_episode(path)
        check_trusted(f"the episode {str(path)!r}", config.modules, trust_modules)
        return Played((episode,), config, words)
    try:
        settings = result.get("env") or _recipe_beside(path)
        config = EnvConfig(**known_settings(EnvConfig, settings))
        check_trusted(f"the results {str(path)!r}", config.modules, trust_modules)
        words = tuple(
            result.get("vocabulary")
            or settings.get("action_words")
            or declare(config).vocabulary.words
        )
        return Played(tuple(_episode(one, words) for one in result["episodes"]), config, words)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"no episodes in {str(path)!r}: {error!r}") from None


def _recipe_beside(path: Path) -> dict[str, Any]:
    """The recipe of the run that an evaluation is of."""
    recipe = path.resolve().parents[1] / "recipe.yaml"
    if not recipe.is_file():
        raise UserError(f"{str(path)!r} does not say in which scene its episodes were played")
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text())
    return settings


def _episode(values: dict[str, Any], words: Sequence[str]) -> Episode:
    return Episode(
        values["seed"],
        tuple(words.index(word) for word in values["words"]),
        episode_return=values["return"],
        success=values["success"],
        stage=values["stage"],
        goal=values.get("goal", ""),
    )
