"""Where demonstrations lie: the settings they were made with, and one file per shard."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import episode_seed
from vlm_agent.common.versions import KEY, VERSION, version_of
from vlm_agent.common.whole import cannot_write, write_whole
from vlm_agent.recipe.keys import default_settings
from vlm_agent.recipe.recipe import Recipe

EXPERT, PERSON = "the expert", "a person"
"""Who may have said the words."""

SETTINGS_FILE = "demonstrations.json"

RENAMED = {"gripper": "gripper_closed"}
"""Facts that had another name in format 1."""


def demonstration_seed(seed: int, number: int) -> int:
    """The reset seed of a run's demonstration of a number."""
    return episode_seed("train", seed, "demo", number)


class DemonstrationsFolder:
    """The folder of a recipe's demonstrations.

    Args:
        recipe: The recipe; it says where the folder is, and what decides an episode.

    Attributes:
        path: The folder.
    """

    def __init__(self, recipe: Recipe) -> None:
        named = recipe.imitation.demonstrations
        usual = Path(recipe.run.output_dir) / "demonstrations" / recipe.run.run_name
        self.path = Path(named) if named else usual
        self.settings = {
            "seed": recipe.run.seed,
            "demo_noise": recipe.imitation.demo_noise,
            "action_words": list(recipe.template.words),
            **asdict(recipe.env),
        }

    @property
    def exists(self) -> bool:
        """Whether demonstrations were begun here."""
        return (self.path / SETTINGS_FILE).is_file()

    def _found(self) -> dict[str, Any]:
        """The settings that are written there.

        Raises:
            UserError: They are no JSON object.
        """
        path = self.path / SETTINGS_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise UserError(f"demonstrations: {str(path)!r} is no JSON: {error}") from None
        if not isinstance(found, dict) or type(found.get(KEY, 1)) is not int:
            raise UserError(f"demonstrations: {str(path)!r} holds no settings")
        return found

    def check(self) -> int:
        """Refuse demonstrations that were made with other settings.

        Returns:
            Their format version.

        Raises:
            UserError: Naming the settings, or the folder holds those of a later version.
        """
        found = self._found()
        version = version_of(found, f"demonstrations: those in {str(self.path)!r}: the set")
        # A setting that did not exist then was what its default is now.
        found = default_settings() | found
        if different := [key for key in self.settings if found.get(key) != self.settings[key]]:
            raise UserError(
                f"demonstrations: those in {str(self.path)!r} were made with another "
                f"{', '.join(different)}; name another folder"
            )
        return version

    @property
    def by(self) -> str:
        """Who said the words that are there: the expert, or a person."""
        return str(self._found().get("by", EXPERT))

    def prepare(self, by: str = EXPERT) -> None:
        """Make the folder, or check the one that is there.

        Args:
            by: Who says the words.

        Raises:
            UserError: As for :meth:`check`; or somebody else said those that are there, or the
                folder cannot be written.
        """
        if self.exists:
            self.check()
            if self.by != by:
                raise UserError(
                    f"demonstrations: those in {str(self.path)!r} are said by {self.by}, and these "
                    f"would be by {by}: name another folder"
                )
            return
        try:
            (self.path / "data").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        written = json.dumps({KEY: VERSION, "by": by, **self.settings}, indent=2) + "\n"
        write_whole(self.path / SETTINGS_FILE, written)

    def columns(self, facts: Sequence[str]) -> dict[str, str]:
        """What facts are called in these files: name -> column."""
        old: dict[str, Any] = RENAMED if self.check() == 1 else {}
        return {fact: old.get(fact, fact) for fact in facts}

    def shard(self, episodes: range) -> Path:
        """The file of some episodes."""
        return self.path / "data" / f"train-{episodes.start:05d}-{episodes.stop:05d}.parquet"

    def files_of(self, start: int) -> list[Path]:
        """The files whose first episode is ``start``; one, unless a collection was stopped."""
        return [path for path in self.files() if _episodes_of(path).start == start]

    def stop_of(self, start: int) -> int:
        """The episode behind the last of the file that begins with ``start``; that if none."""
        stops = (_episodes_of(path).stop for path in self.files_of(start))
        return max(stops, default=start)

    @property
    def stop(self) -> int:
        """The episode behind the last one that is there; 0 if none is."""
        there = 0
        while self.files_of(there):
            there = self.stop_of(there)
        return there

    def files(self) -> list[Path]:
        """All files."""
        return [path for path in sorted((self.path / "data").iterdir()) if _episodes_of(path)]


def _episodes_of(path: Path) -> range:
    """The episodes that a file has by its name; none if it is not one of demonstrations."""
    match = re.fullmatch(r"train-(\d{5,9})-(\d{5,9})\.parquet", path.name)
    return range(int(match[1]), int(match[2])) if match else range(0)
