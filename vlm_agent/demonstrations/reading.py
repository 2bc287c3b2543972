"""Demonstrations as they are learnt from: moments with the expert's words, or whole episodes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.demonstrations.folder import PERSON, DemonstrationsFolder, demonstration_seed
from vlm_agent.demonstrations.table import decode, read_table
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.world.episode import Episode
from vlm_agent.world.observations import Observations
from vlm_agent.world.registry import declare


@dataclass(frozen=True)
class Labelled:
    """Moments with the expert's word for each.

    Attributes:
        observations: B of them.
        actions: The expert's action indices, int64 (B,).
    """

    observations: Observations
    actions: np.ndarray

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, index: Any) -> Labelled:
        return Labelled(self.observations[index], self.actions[index])


class Moments:
    """Labelled moments of several sources, the oldest first, none of which is copied.

    Args:
        parts: The sources.
    """

    def __init__(self, *parts: Labelled) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: np.ndarray) -> Labelled:
        """Some of them: int64 (B,)."""
        part_B = np.searchsorted(self._ends, index, side="right")
        first = self.parts[0].observations
        frames = np.empty((len(index), *first.frames.shape[1:]), first.frames.dtype)
        chosen = Observations(frames, np.empty((len(index), first.facts.shape[1]), np.int32))
        actions = np.empty(len(index), np.int64)
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(part_B == number)
            rows = index[places] - (self._ends[number] - len(part))
            chosen.put(places, part.observations[rows])
            actions[places] = part.actions[rows]
        return Labelled(chosen, actions)


def check_demonstrations(recipe: Recipe) -> None:
    """Find out whether a recipe's demonstrations are there.

    Raises:
        UserError: There are none, too few, or those of another recipe; or the task has no expert.
    """
    declare(recipe.env).check_expert()
    wanted_tables(recipe)


def read_demonstrations(recipe: Recipe) -> Labelled:
    """The first ``num_demo_episodes`` episodes of a recipe's demonstrations.

    Raises:
        UserError: There are none, too few, or those of another recipe.
    """
    tables = wanted_tables(recipe)
    columns = DemonstrationsFolder(recipe).columns(recipe.template.fact_names).values()
    count, done = sum(len(table) for table in tables), 0
    facts, actions = np.empty((count, len(columns)), np.int32), np.empty(count, np.int64)
    shape = recipe.env.frame_shape
    frames = np.empty((count, *shape), np.uint8)
    while tables:  # one by one, so that compressed and decoded pictures are not there at once
        table = tables.pop(0)
        rows = slice(done, done := done + len(table))
        for row, cell in enumerate(table["image"]):
            frames[rows.start + row] = decode(f"demonstrations: picture {row}", cell, shape)
        facts[rows] = np.stack([table[column].to_numpy() for column in columns], -1)
        actions[rows] = table["word"].to_numpy()
    return Labelled(Observations(frames, facts), actions)


def read_episodes(recipe: Recipe) -> list[Episode]:
    """The same demonstrations as seeds and the words that were said.

    Raises:
        UserError: As for :func:`read_demonstrations`.
    """
    episodes = []
    for table in wanted_tables(recipe):
        for number in np.unique(table["episode"].to_numpy()):
            rows = table.filter(np.asarray(table["episode"]) == number)
            episodes.append(Episode(rows["seed"][0].as_py(), tuple(rows["said"].to_pylist())))
    return episodes


def wanted_tables(recipe: Recipe) -> list[Any]:
    """The rows of the recipe's demonstrations.

    Raises:
        UserError: There are none, too few, or those of another recipe.
    """
    folder = DemonstrationsFolder(recipe)
    if not folder.exists:
        raise UserError(
            f"demonstrations: there are none in {str(folder.path)!r}; collect them with: "
            "vlm-agent demos --config RECIPE"
        )
    facts = folder.columns(recipe.template.fact_names)
    ranges: dict[str, int | None] = dict.fromkeys(("word", "said"), len(recipe.template.words))
    for fact in declare(recipe.env).facts:
        if fact.name in facts:
            ranges[facts[fact.name]] = len(fact.values) or None
    seed_of = functools.partial(demonstration_seed, recipe.run.seed)
    wanted, there = recipe.imitation.num_demo_episodes, 0
    tables = []
    while there < wanted and (files := folder.files_of(there)):
        stop = folder.stop_of(there)
        table = read_table(files[-1], range(there, stop), seed_of, ranges)
        tables.append(table.filter(np.asarray(table["episode"]) < wanted))
        there = stop
    if there < wanted:
        how = "vlm-agent play" if folder.by == PERSON else "vlm-agent demos --config RECIPE"
        raise UserError(
            f"demonstrations: {there} of num_demo_episodes ({wanted}) are in {str(folder.path)!r}; "
            f"collect the rest with: {how}"
        )
    if not sum(len(table) for table in tables):
        raise UserError(f"demonstrations: the expert solved none of those in {str(folder.path)!r}")
    return tables
