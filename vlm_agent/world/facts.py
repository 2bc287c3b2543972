"""Facts of a scene that a prompt may tell: one table says what they are, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.world.actions import MOTIONS


@dataclass(frozen=True)
class Fact:
    """An integer with a name and, if it has them, names for its values.

    Batches carry the integer, prompts show the name of its value.

    Attributes:
        name: As observations and prompts call it.
        help: What it tells, for people.
        read: From an environment to the present value; importable, since workers call it.
        start: A value as at an episode's beginning.
        values: What 0, 1, … are called in a prompt; empty for a plain number.
    """

    name: str
    help: str
    read: Callable[[Any], int] | None = None
    start: int = 0
    values: tuple[str, ...] = ()

    def show(self, value: int) -> str | int:
        """The value as a prompt tells it."""
        return self.values[value] if self.values else value


FACTS: dict[str, Fact] = {
    fact.name: fact
    for fact in (
        Fact(
            "gripper",
            "'open' or 'closed'",
            attrgetter("scene.gripper_closed"),
            values=("open", "closed"),
        ),
        Fact(
            "last_action",
            "the word said before this one, or 'none'",
            attrgetter("last_action"),
            start=len(MOTIONS),
        ),
        Fact("step", "how many words have been said in this episode", attrgetter("words_said")),
        Fact("words_left", "how many words may still be said", attrgetter("words_left"), start=1),
    )
}
"""Every fact, by its name. :func:`register_fact` adds one."""


def register_fact(fact: Fact) -> None:
    """Have environments tell a further fact, and prompts show it as ``{{ name }}``.

    Raises:
        UserError: There is one of that name already, or it cannot be read.
    """
    if fact.name in FACTS:
        raise UserError(f"there is a fact {fact.name!r} already")
    if fact.read is None or not fact.name.isidentifier():
        raise UserError(f"the fact {fact.name!r} needs a name for a prompt, and a way to read it")
    FACTS[fact.name] = fact


def facts_named(names: Iterable[str]) -> tuple[Fact, ...]:
    """The facts of these names.

    Raises:
        UserError: There is no fact of a name; the message has the nearest ones.
    """
    names = tuple(names)
    for name in names:
        if name not in FACTS:
            raise UserError(unknown_name("fact", name, FACTS))
    return tuple(FACTS[name] for name in names)
