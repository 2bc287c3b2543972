"""Words and what they mean to the robot: ``ActionVocabulary`` maps one to the other."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal, SupportsIndex

from vlm_agent.common.errors import UserError, unknown_name


@dataclass(frozen=True)
class Motion:
    """What one word does.

    Attributes:
        direction: Unit vector (x, y, z) in the robot's base frame: x points away from the robot,
            y to its left, z up. The zero vector holds the position.
        gripper: The gripper command that the word gives; ``None`` keeps the last one.
    """

    direction: tuple[int, int, int] = (0, 0, 0)
    gripper: Literal["open", "close"] | None = None


MOTIONS: tuple[Motion, ...] = (
    Motion((1, 0, 0)),
    Motion((-1, 0, 0)),
    Motion((0, 1, 0)),
    Motion((0, -1, 0)),
    Motion((0, 0, 1)),
    Motion((0, 0, -1)),
    Motion(gripper="close"),
    Motion(gripper="open"),
)
"""The eight motions, in the order of the action space ``Discrete(8)``."""

DEFAULT_WORDS: tuple[str, ...] = (
    "forward",
    "backward",
    "left",
    "right",
    "up",
    "down",
    "close gripper",
    "open gripper",
)
"""The words for :data:`MOTIONS`, in the same order."""


class ActionVocabulary:
    """The words of the action space, in the order of :data:`MOTIONS`.

    Args:
        words: One word or phrase per motion. Replace them to rename the actions: the meaning goes
            with the position.

    Raises:
        UserError: The number of words is wrong, or a word is empty, padded or used twice.
    """

    def __init__(self, words: tuple[str, ...] | list[str] = DEFAULT_WORDS) -> None:
        problems = word_problems(words)
        if problems:
            raise UserError("; ".join(problems))
        self.words = tuple(words)

    def __len__(self) -> int:
        return len(self.words)

    def word(self, index: SupportsIndex) -> str:
        """The word of an action index. Raises ``UserError`` where there is none."""
        return self.words[self.checked(index)]

    def motion(self, index: SupportsIndex) -> Motion:
        """The motion of an action index. Raises ``UserError`` where there is none."""
        return MOTIONS[self.checked(index)]

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


def word_problems(words: tuple[str, ...] | list[str]) -> list[str]:
    """Everything that is wrong with a list of action words; empty if nothing is."""
    problems = []
    if len(words) != len(MOTIONS):
        problems.append(f"expected {len(MOTIONS)} words (one per motion), got {len(words)}")
    for word in words:
        if not word or word != word.strip():
            problems.append(f"{word!r} is empty or has spaces around it")
    for word in sorted({w for w in words if words.count(w) > 1}):
        problems.append(f"{word!r} stands there twice")
    return problems
