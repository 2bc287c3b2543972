"""``words:`` of a recipe, as the vocabulary it describes."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.world.actions import EIGHT, ActionVocabulary, Choice, Meaning, Motion, Push, Vector3

DIRECTIONS: dict[str, Vector3] = {
    word: meaning.direction
    for word, meaning in EIGHT.items()
    if isinstance(meaning, Motion) and any(meaning.direction)
}
"""What a motion's ``direction`` may be called."""

LONGEST_HOLD = 1000
"""Steps of an environment that a word may be held for."""

KEYS = {
    Motion: ("direction", "turn", "distance", "gripper"),
    Choice: ("number", "repeat"),
    Push: ("vector", "repeat"),
}
"""What the mapping of a word may have, by what it then means."""

_STEPS = re.compile(r"(?P<count>\d+(\.\d+)?) steps?")


def read_words(words: Mapping[str, Any]) -> ActionVocabulary:
    """The vocabulary that a mapping describes.

    Args:
        words: Word -> a number (the action of a ``Discrete`` space), a list of numbers (of a
            ``Box``), or a mapping with the keys of :data:`KEYS`.

    Raises:
        UserError: Naming the word, what stands there and what was expected.
    """
    return ActionVocabulary({str(word): read_meaning(word, what) for word, what in words.items()})


def read_meaning(word: str, what: Any) -> Meaning:
    """What a word does.

    Raises:
        UserError: As for :func:`read_words`.
    """
    if isinstance(what, Motion | Choice | Push):
        return what
    if _is_whole(what):
        what = {"number": what}
    elif isinstance(what, Sequence) and not isinstance(what, str):
        what = {"vector": what}
    if not isinstance(what, Mapping):
        raise _refuse(word, what, "a number, a vector, or a motion such as {direction: left}")
    kind = Choice if "number" in what else Push if "vector" in what else Motion
    for key in what:
        if key not in KEYS[kind]:
            raise UserError(f"words: {word!r}: {unknown_name('key', key, KEYS[kind])}")
    if kind is Motion:
        return _motion(word, what)
    repeat = what.get("repeat", 1)
    if not _is_whole(repeat) or not 1 <= repeat <= LONGEST_HOLD:
        raise _refuse(word, repeat, f"repeat to be a whole number from 1 to {LONGEST_HOLD}")
    if kind is Choice:
        if not _is_whole(what["number"]):
            raise _refuse(word, what["number"], "number to be a whole number")
        return Choice(int(what["number"]), int(repeat))
    vector = what["vector"]
    if not _is_list(vector) or not vector:
        raise _refuse(word, vector, "vector to be a list of numbers (null keeps the last one)")
    return Push(
        tuple(None if part is None else _number(word, part) for part in vector), int(repeat)
    )


def _motion(word: str, what: Mapping[str, Any]) -> Motion:
    direction = what.get("direction", (0, 0, 0))
    if isinstance(direction, str):
        if direction not in DIRECTIONS:
            known = unknown_name("direction", direction, DIRECTIONS)
            raise UserError(f"words: {word!r}: {known}")
        direction = DIRECTIONS[direction]
    direction, turn = _three(word, direction), _three(word, what.get("turn", (0, 0, 0)))
    length = sum(part * part for part in direction) ** 0.5
    if length:
        direction = tuple(part / length for part in direction)  # type: ignore[assignment]
    gripper = what.get("gripper")
    if gripper not in (None, "open", "close"):
        raise _refuse(word, gripper, "gripper to be open or close")
    distance, steps = _distance(word, what.get("distance"))
    if not length and not any(turn) and gripper is None:
        raise _refuse(word, dict(what), "a direction, a turn or a gripper command")
    return Motion(direction, gripper, turn, distance, steps)


def _distance(word: str, distance: Any) -> tuple[float | None, float]:
    """Metres (``None`` where steps count), and the number of steps."""
    if distance is None:
        return None, 1.0
    if isinstance(distance, str):
        if (match := _STEPS.fullmatch(distance.strip())) and float(match["count"]) > 0:
            return None, float(match["count"])
    elif _is_number(distance) and 0 < distance <= 1:
        return float(distance), 1.0
    raise _refuse(word, distance, "distance in metres (0 to 1), or a multiple such as '2 steps'")


def _three(word: str, what: Any) -> Vector3:
    if not _is_list(what) or len(what) != 3:
        raise _refuse(word, what, "three numbers")
    x, y, z = (_number(word, part) for part in what)
    return x, y, z


def _number(word: str, what: Any) -> float:
    if not _is_number(what):
        raise _refuse(word, what, "a finite number")
    return float(what)


def _is_number(what: Any) -> bool:
    is_real = isinstance(what, numbers.Real) and not isinstance(what, bool)
    return is_real and abs(what) < float("inf")


def _is_whole(what: Any) -> bool:
    return isinstance(what, numbers.Integral) and not isinstance(what, bool)


def _is_list(what: Any) -> bool:
    return isinstance(what, Sequence) and not isinstance(what, str)


def _refuse(word: str, found: Any, expected: str) -> UserError:
    return UserError(f"words: {word!r}: {found!r}: expected {expected}")
