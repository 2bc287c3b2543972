"""What words mean: a motion of a robot, a number, or a vector; and the vocabulary of them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, SupportsIndex

from vlm_agent.common.errors import UserError, unknown_name

Vector3 = tuple[float, float, float]


@dataclass(frozen=True)
class Motion:
    """What one word does to a robot's arm.

    Attributes:
        direction: Unit vector (x, y, z) in the robot's base frame: x points away from the robot,
            y to its left, z up. The zero vector holds the position.
        gripper: The gripper command that the word gives; ``None`` keeps the last one.
        turn: Degrees about the hand's own axes (x, y, z), as one rotation vector.
        distance: How far along ``direction``, in metres; ``None``: ``steps`` times ``step_size``.
        steps: How far along ``direction``, as a multiple of the recipe's ``step_size``.
    """

    direction: Vector3 = (0, 0, 0)
    gripper: Literal["open", "close"] | None = None
    turn: Vector3 = (0, 0, 0)
    distance: float | None = None
    steps: float = 1.0

    def length(self, step_size: float) -> float:
        """How far along :attr:`direction`, in metres."""
        return self.steps * step_size if self.distance is None else self.distance


@dataclass(frozen=True)
class Choice:
    """What one word does in a ``Discrete`` action space.

    Attributes:
        number: The action.
        repeat: How many steps of the environment it is held.
    """

    number: int
    repeat: int = 1


@dataclass(frozen=True)
class Push:
    """What one word does in a ``Box`` action space.

    Attributes:
        vector: The action's numbers; ``None`` keeps what the last word made of one (0 at first).
        repeat: How many steps of the environment it is held.
    """

    vector: tuple[float | None, ...]
    repeat: int = 1


Meaning = Motion | Choice | Push

EIGHT: dict[str, Meaning] = {
    "forward": Motion((1, 0, 0)),
    "backward": Motion((-1, 0, 0)),
    "left": Motion((0, 1, 0)),
    "right": Motion((0, -1, 0)),
    "up": Motion((0, 0, 1)),
    "down": Motion((0, 0, -1)),
    "close gripper": Motion(gripper="close"),
    "open gripper": Motion(gripper="open"),
}
"""The eight words of a robot's arm, and what they mean."""

DEFAULT_WORDS: tuple[str, ...] = tuple(EIGHT)
"""The words of :data:`EIGHT`, in the order of the action space ``Discrete(8)``."""


MOTIONS: tuple[Motion, ...] = tuple(m for m in EIGHT.values() if isinstance(m, Motion))
"""The motions of :data:`EIGHT`."""


class ActionVocabulary:
    """The words of an action space, in its order, and what they mean.

    Args:
        meanings: What each word means.

    Raises:
        UserError: There are fewer than two words, or one is empty or padded.
    """

    def __init__(self, meanings: Mapping[str, Meaning] | None = None) -> None:
        self.meanings = dict(EIGHT if meanings is None else meanings)
        self.words = tuple(self.meanings)
        if problems := word_problems(self.words):
            raise UserError(f"words: {'; '.join(problems)}")

    def __len__(self) -> int:
        return len(self.words)

    def word(self, index: SupportsIndex) -> str:
        """The word of an action index. Raises ``UserError`` where there is none."""
        return self.words[self.checked(index)]

    def meaning(self, index: SupportsIndex) -> Meaning:
        """What the word of an action index means. Raises ``UserError`` where there is none."""
        return self.meanings[self.word(index)]

    def checked(self, index: SupportsIndex) -> int:
        """An action index as a plain number. Raises ``UserError`` if no word has it."""
        try:
            number = operator.index(index)
        except TypeError:
            number = -1
        if not 0 <= number < len(self):
            raise UserError(f"action {index!r} is out of range: the words are 0 to {len(self) - 1}")
        return number

    def index(self, word: str) -> int:
        """The action index of a word. Raises ``UserError`` naming the nearest words."""
        if word not in self.words:
            raise UserError(unknown_name("action word", word, self.words))
        return self.words.index(word)

    @property
    def senseless(self) -> tuple[tuple[int, str, int], ...]:
        """When a word does nothing: (its index, a fact's name, the value that the fact has then).

        A closed gripper need not be closed, nor an open one opened.
        """
        states = {"open": 0, "close": 1}
        return tuple(
            (index, "gripper", states[meaning.gripper])
            for index, meaning in enumerate(self.meanings.values())
            if isinstance(meaning, Motion)
            and meaning.gripper is not None
            and not any((*meaning.direction, *meaning.turn))
        )

    def renamed(self, words: tuple[str, ...] | list[str]) -> ActionVocabulary:
        """The same meanings under other words, in the same order.

        Raises:
            UserError: They are not as many, or one is empty, padded or used twice.
        """
        problems = word_problems(words)
        if len(words) != len(self):
            problems.insert(0, f"expected {len(self)} words (one per meaning), got {len(words)}")
        if problems:
            raise UserError("; ".join(problems))
        return ActionVocabulary(dict(zip(words, self.meanings.values(), strict=True)))


def word_problems(words: tuple[str, ...] | list[str]) -> list[str]:
    """Everything that is wrong with a list of action words; empty if nothing is."""
    problems = []
    if len(words) < 2:
        problems.append(f"expected two words or more, got {len(words)}")
    for word in words:
        if not word or word != word.strip():
            problems.append(f"{word!r} is empty or has spaces around it")
    for word in sorted({w for w in words if words.count(w) > 1}):
        problems.append(f"{word!r} stands there twice")
    return problems
