"""Tables of words that move an arm, and the choice among words by what they do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import EIGHT, ActionVocabulary, Meaning, Motion

TURN = 15.0
"""Degrees that one of the turning words turns the hand about the axis of its fingers."""

TURNING: dict[str, Meaning] = {
    **EIGHT,
    # The hand's z axis points down, along its fingers; left is left as seen from above.
    "turn left": Motion(turn=(0, 0, -TURN)),
    "turn right": Motion(turn=(0, 0, TURN)),
}
"""The eight words, and two that turn the hand."""

LITTLE, FAR = 1 / 3, 4.0
"""Short and long steps, as multiples of the recipe's ``step_size``."""


def _scaled() -> Iterator[tuple[str, Meaning]]:
    for word, meaning in EIGHT.items():
        if not isinstance(meaning, Motion) or meaning.gripper:
            yield word, meaning
            continue
        # Not "left a little": no phrase may begin with another one.
        yield f"a little {word}", Motion(meaning.direction, steps=LITTLE)
        yield word, meaning
        yield f"far {word}", Motion(meaning.direction, steps=FAR)


SCALED: dict[str, Meaning] = dict(_scaled())
"""Each of the eight words' directions in three lengths, and the gripper words."""

WORD_TABLES: dict[str, dict[str, Meaning]] = {
    "eight": EIGHT,
    "turning": TURNING,
    "scaled": SCALED,
}
"""What ``words: turning`` and the like stand for in a recipe."""


class WordChoice:
    """Finds the word for a wanted motion.

    Args:
        vocabulary: The words to choose from.
        step_size: The recipe's, in metres.

    Attributes:
        open: The index of the word that opens the gripper and moves nothing.
        close: The index of the word that closes it.
        shortest: Metres that the shortest moving word moves the gripper.
        is_rich: Whether words turn the hand, or differ in length.
        turns: Degrees about the hand's z axis of each word that turns the hand about it: by index.

    Raises:
        UserError: They cannot open, close, or move the gripper both ways along each axis.
    """

    def __init__(self, vocabulary: ActionVocabulary, step_size: float) -> None:
        meanings = enumerate(vocabulary.meanings.values())
        motions = {n: m for n, m in meanings if isinstance(m, Motion)}
        still = {n: m for n, m in motions.items() if not any(m.direction)}
        moving = {n: m for n, m in motions.items() if any(m.direction)}
        self.open = _first(still, "open")
        self.close = _first(still, "close")
        self.turns = {n: m.turn[2] for n, m in still.items() if m.turn[2] and not any(m.turn[:2])}
        keeps = {n: m for n, m in moving.items() if m.gripper is None and not any(m.turn)}
        self._indices = np.array(list(keeps), int)
        self._directions = np.array([m.direction for m in keeps.values()]).reshape(-1, 3)
        self._lengths = np.array([m.length(step_size) for m in keeps.values()])
        reach = self._directions @ np.concatenate([np.eye(3), -np.eye(3)]).T  # (words, 6)
        if not len(keeps) or (reach.max(0) < 0.7).any():
            raise UserError(
                "words: the scripted expert needs words that move the gripper both ways along "
                "each axis and leave it as it is"
            )
        self.shortest = float(self._lengths.min())
        self.is_rich = bool(self.turns) or self.shortest < self._lengths.max()

    def along(self, direction: np.ndarray, distance: float, tolerance: float = 0.0) -> int:
        """The word nearest in direction, and the longest of these that does not go too far.

        Args:
            direction: Unit vector (3,) in the base frame.
            distance: How far to go, in metres.
            tolerance: By how much it may go further.
        """
        likeness = self._directions @ direction
        candidates = np.flatnonzero(likeness >= likeness.max() - 1e-9)
        lengths = self._lengths[candidates]
        fits = lengths <= distance + tolerance + 1e-9
        best = np.argmax(np.where(fits, lengths, -1)) if fits.any() else np.argmin(lengths)
        return int(self._indices[candidates[best]])


def _first(still: dict[int, Motion], command: str) -> int:
    found = [n for n, m in still.items() if m.gripper == command and not any(m.turn)]
    if not found:
        raise UserError(f"words: the scripted expert needs a word that will {command} the gripper")
    return found[0]
