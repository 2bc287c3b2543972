"""Facts that a prompt may tell: integers with names, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Any

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.world.actions import DEFAULT_WORDS


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
        on_request: Whether it is told only to prompts that print it, and not by default.
    """

    name: str
    help: str = field(compare=False)
    read: Callable[[Any], int] | None = field(default=None, compare=False)
    start: int = 0
    values: tuple[str, ...] = ()
    on_request: bool = field(default=False, compare=False)

    def show(self, value: int) -> str | int:
        """The value as a prompt tells it."""
        return self.values[value] if self.values else value


INSTRUCTION = "instruction"
"""The name of the fact that says which sentence an episode's task is told with."""

HAND_PLACE = {
    "hand_forward": ("centimetres from the arm's foot to the hand, ahead", 46),
    "hand_left": ("the same, to the left", 0),
    "hand_up": ("the same, upwards", 10),
    "hand_turn": ("degrees that words have turned the hand to the left", 0),
}
"""What an arm's joints tell of where the hand is, and about where a Panda's is at first."""


def _hand(axis: int, env: Any) -> int:
    """One of a robot's ``hand_place`` numbers."""
    return int(env.world.hand_place[axis])


ROBOT_FACTS: tuple[Fact, ...] = (
    Fact(
        "gripper",
        "'open' or 'closed'",
        attrgetter("world.gripper_closed"),
        values=("open", "closed"),
    ),
    *(
        Fact(name, help, partial(_hand, axis), start, on_request=True)
        for axis, (name, (help, start)) in enumerate(HAND_PLACE.items())
    ),
    Fact(
        "hand_gap",
        "millimetres from one finger's pad to the other's, middle to middle",
        attrgetter("world.hand_gap"),
        start=49,
        on_request=True,
    ),
)
"""What a robot's arm adds to the facts of every world."""

RESERVED = {
    "image": "the picture",
    "task": "the instruction",
    "robot": "the robot's name",
    "actions": "the words",
    "last_actions": "the last words said",
}
"""What else a prompt may tell, which no fact may be called."""

REGISTERED: dict[str, Fact] = {}
"""Facts from outside of the package, see :func:`register_fact`."""


def episode_facts(
    words: Sequence[str], sentences: Sequence[str] = (), history: int = 1
) -> tuple[Fact, ...]:
    """What every world tells.

    Args:
        words: The action words.
        sentences: What the task may be told with, if that is more than one.
        history: How many of the last words.
    """
    said = Fact(
        "last_action",
        "the word said before this one, or 'none'",
        attrgetter("last_action"),
        start=len(words),
        values=(*words, "none"),
    )
    step = Fact("step", "how many words have been said in this episode", attrgetter("words_said"))
    left = Fact("words_left", "how many words may still be said", attrgetter("words_left"), start=1)
    asked = Fact(
        INSTRUCTION,
        "the sentence that this episode's task is told with, which {{ task }} prints too",
        attrgetter("instruction"),
        values=tuple(sentences),
    )
    earlier = [
        replace(
            said,
            name=f"{said.name}_{number}",
            help=f"the {ORDINALS.get(number, f'{number}th')} last word, or 'none'",
            read=partial(_word_before, number),
        )
        for number in range(2, history + 1)
    ]
    return (said, step, left, *([asked] if len(sentences) > 1 else ()), *earlier)


ORDINALS = {2: "second", 3: "third"}


def is_word_said(name: str) -> bool:
    """Whether a fact of that name is the last word, or one before it."""
    return re.fullmatch(r"last_action(_\d+)?", name) is not None


def _word_before(number: int, env: Any) -> int:
    """The index of the word said so many words ago, or the number of words."""
    return env.said[-number] if number <= len(env.said) else len(env.vocabulary)


def all_facts(
    own: Sequence[Fact] = ROBOT_FACTS,
    words: Sequence[str] = DEFAULT_WORDS,
    sentences: Sequence[str] = (),
    history: int = 1,
) -> tuple[Fact, ...]:
    """A world's own facts, those of every world, and what was registered.

    Raises:
        UserError: Two of them have one name.
    """
    facts = (*own, *episode_facts(words, sentences, history), *REGISTERED.values())
    names = [fact.name for fact in facts]
    if taken := [name for name in names if name in RESERVED]:
        raise UserError(
            f"facts: {taken[0]!r} means something else in a prompt: {RESERVED[taken[0]]}"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"facts: there is a fact {twice[0]!r} already")
    return facts


def register_fact(fact: Fact) -> None:
    """Have environments tell a further fact, and prompts show it as ``{{ name }}``.

    Raises:
        UserError: There is one of that name already, or it cannot be read.
    """
    if fact.name in {known.name for known in all_facts()}:
        raise UserError(f"there is a fact {fact.name!r} already")
    if fact.read is None or not fact.name.isidentifier():
        raise UserError(f"the fact {fact.name!r} needs a name for a prompt, and a way to read it")
    REGISTERED[fact.name] = fact


def facts_named(names: Iterable[str], facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """Those of some facts that have these names, in the names' order.

    Raises:
        UserError: There is no fact of a name; the message has the nearest ones.
    """
    by_name = {fact.name: fact for fact in facts}
    names = tuple(names)
    for name in names:
        if name not in by_name:
            raise UserError(unknown_name("fact", name, by_name))
    return tuple(by_name[name] for name in names)
