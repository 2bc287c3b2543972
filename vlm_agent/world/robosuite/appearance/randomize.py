"""The recipe's ``randomize``: which looks and physics change from episode to episode, and how far.

Everything is drawn from an episode's seed and the name of what changes, so that one range more
does not move what is drawn for another. Nothing here needs a simulator.
"""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from vlm_agent.common.errors import UserError, nearest, unknown_name
from vlm_agent.common.seeding import derive_rng

Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (0.8, 0.1, 0.1),
    "green": (0.1, 0.6, 0.1),
    "blue": (0.1, 0.2, 0.8),
    "yellow": (0.9, 0.8, 0.1),
    "orange": (0.9, 0.45, 0.1),
    "purple": (0.5, 0.1, 0.6),
    "cyan": (0.1, 0.7, 0.8),
    "brown": (0.45, 0.25, 0.1),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.4, 0.4, 0.4),
    "black": (0.05, 0.05, 0.05),
}
"""Colours by name: red, green and blue, each from 0 to 1."""

PATTERNS: tuple[str, ...] = ("checks", "grid", "dots", "crosses")
"""Textures that a scene can be given besides its own."""

OWN = "own"
"""The choice that leaves a colour or a texture as it is."""

Covered = Literal["yes", "partly", "no"]
"""How much of something else is in it."""

_CODE = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Amount:
    """A number that can be drawn: ``[low, high]``, or one number for every episode.

    Attributes:
        unit: What it is counted in.
        low: The smallest that is allowed.
        high: The largest.
        help: What it changes.
        whole: Whether it is a whole number.
    """

    unit: str
    low: float
    high: float
    help: str
    whole: bool = False

    @property
    def usual(self) -> float:
        """What it is where a recipe says nothing of it."""
        return 1.0 if self.unit == "factor" else 0.0

    @property
    def expected(self) -> str:
        """What a recipe may say, in words."""
        kind = "a whole number" if self.whole else "a number"
        limits = f"from {self.low:g} to {self.high:g} ({self.unit})"
        return f"[low, high] or {kind}, {limits}"

    def problem(self, value: Any) -> str | None:
        """What is wrong with a recipe's value, in a sentence; ``None`` if nothing is."""
        ends = value if isinstance(value, list | tuple) else [value, value]
        if len(ends) != 2 or not all(self._is_number(end) for end in ends):
            return f"{value!r}: expected {self.expected}"
        if ends[0] > ends[1]:
            return f"{value!r}: the range is reversed, expected {[ends[1], ends[0]]!r}"
        if ends[0] < self.low or ends[1] > self.high:
            return f"{value!r} is out of range: expected {self.expected}"
        return None

    def _is_number(self, end: Any) -> bool:
        kinds = int if self.whole else int | float
        return isinstance(end, kinds) and not isinstance(end, bool) and math.isfinite(end)

    def covers(self, wide: Any, value: Any) -> Covered:
        """How much of what one value of a recipe can give another one can give too."""
        low, high = wide if isinstance(wide, list | tuple) else (wide, wide)
        first, last = value if isinstance(value, list | tuple) else (value, value)
        if low <= first and last <= high:
            return "yes"
        return "no" if last < low or high < first else "partly"

    def draw(self, value: Any, rng: np.random.Generator) -> float:
        """A number from the range, every one as likely as every other."""
        low, high = value if isinstance(value, list | tuple) else (value, value)
        if self.whole:
            return int(rng.integers(low, high, endpoint=True))
        return float(rng.uniform(low, high))


@dataclass(frozen=True)
class Choice:
    """A name that can be drawn: from a list, or one name for every episode.

    Attributes:
        unit: What the names are of: ``colour`` or ``texture``.
        names: Those that there are.
        help: What it changes.
    """

    unit: str
    names: tuple[str, ...]
    help: str

    @property
    def usual(self) -> str:
        """What it is where a recipe says nothing of it."""
        return OWN

    @property
    def expected(self) -> str:
        """What a recipe may say, in words."""
        codes = ', "#rrggbb"' if self.unit == "colour" else ""
        return f"names or a list of them: {', '.join(self.names)}{codes}"

    def problem(self, value: Any) -> str | None:
        """What is wrong with a recipe's value, in a sentence; ``None`` if nothing is."""
        chosen = value if isinstance(value, list | tuple) else [value]
        if not chosen:
            return f"the list is empty: expected {self.expected}"
        for name in chosen:
            if not isinstance(name, str):
                return f"{name!r}: expected {self.expected}"
            if name not in self.names and not (self.unit == "colour" and _CODE.fullmatch(name)):
                close = nearest(name, self.names)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                return f"{name!r}{hint or f': expected {self.expected}'}"
        return None

    def covers(self, wide: Any, value: Any) -> Covered:
        """How many of the names of one value of a recipe are among those of another one."""
        known = set(wide if isinstance(wide, list | tuple) else [wide])
        asked = set(value if isinstance(value, list | tuple) else [value])
        if "any" in known:
            known |= asked - {OWN}
        if asked <= known:
            return "yes"
        return "partly" if asked & known else "no"

    def draw(self, value: Any, rng: np.random.Generator) -> str:
        """One of the names, every one as likely as every other."""
        chosen = value if isinstance(value, list | tuple) else [value]
        return str(chosen[int(rng.integers(len(chosen)))])


def _colours(of_what: str) -> Choice:
    text = f"{of_what}: one of these colours; any: a hue drawn from all"
    return Choice("colour", (OWN, "any", *COLOURS), text)


def _textures(of_what: str) -> Choice:
    text = f"{of_what}: one of these textures, in the colour that it has been given"
    return Choice("texture", (OWN, "plain", *PATTERNS), text)


RANDOMIZE: dict[str, Amount | Choice] = {
    "light_brightness": Amount("factor", 0, 3, "brightness of all lights"),
    "light_tint": Amount("share", 0, 1, "how far lights are from white, towards a drawn hue"),
    "light_turn": Amount("degrees", 0, 80, "by which lamps are turned, about a drawn axis"),
    "camera_shift": Amount("metres", 0, 0.2, "by which the camera is moved, to a drawn side"),
    "camera_turn": Amount("degrees", 0, 45, "by which it is turned, about a drawn axis"),
    "camera_fov": Amount("degrees", -30, 30, "by which its angle of view is wider"),
    "object_colour": _colours("the object that is handled"),
    "object_texture": _textures("the object that is handled"),
    "table_colour": _colours("the table, or the bin that things are taken from"),
    "table_texture": _textures("the table, or the bin that things are taken from"),
    "bin_colour": _colours("the bin that things are put into"),
    "bin_texture": _textures("the bin that things are put into"),
    "distractors": Amount(
        "things", 0, 12, "things to look at that lie about and touch nothing", whole=True
    ),
    "object_size": Amount("factor", 0.5, 1.5, "size of the object; its weight stays"),
    "object_mass": Amount("factor", 0.1, 20, "weight of the object"),
    "object_friction": Amount("factor", 0.05, 5, "friction between the object and the fingers"),
    "arm_start": Amount("radians", 0, 0.3, "by which each joint starts beside its usual place"),
    "object_moved": Amount(
        "metres", 0, 0.15, "by which the object is moved, once, while it is approached"
    ),
    "motion_scale": Amount("factor", 0.2, 2, "how far a word moves; drawn at each word"),
    "motion_angle": Amount(
        "degrees", 0, 45, "between where a word moves and where it should; drawn at each word"
    ),
}
"""What can change from episode to episode: key -> what a recipe may say of it."""


def randomize_problems(values: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with a recipe's ``randomize``: ``randomize.KEY`` -> sentence."""
    found = {}
    for key, value in values.items():
        if key not in RANDOMIZE:
            found[f"randomize.{key}"] = unknown_name("key", key, RANDOMIZE)
        elif problem := RANDOMIZE[key].problem(value):
            found[f"randomize.{key}"] = problem
    return found


class Ranges:
    """A recipe's ``randomize``, and what is drawn from it.

    Args:
        values: Keys of :data:`RANDOMIZE` and their ranges.

    Raises:
        UserError: A key, a type or a range is wrong; one sentence for each.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        if found := randomize_problems(values):
            raise UserError("; ".join(f"{key}: {problem}" for key, problem in found.items()))
        self.values = dict(values)

    def rng(self, key: str, seed: int, *at: int) -> np.random.Generator:
        """What is random about one key in one episode, or at one word of it."""
        return derive_rng(seed, "randomize", key, *at)

    def draw(self, key: str, rng: np.random.Generator, otherwise: Any) -> Any:
        """A number or a name for a key; ``otherwise`` where the recipe says nothing of it."""
        if key not in self.values:
            return otherwise
        return RANDOMIZE[key].draw(self.values[key], rng)


def as_colour(name: str, rng: np.random.Generator) -> Colour | None:
    """The colour of that name or ``#rrggbb`` code; ``any`` is drawn; ``None`` for ``own``."""
    if name == OWN:
        return None
    if name == "any":
        hue, saturation, value = rng.uniform([0, 0.3, 0.35], [1, 1, 1])
        return colorsys.hsv_to_rgb(hue, saturation, value)
    if name in COLOURS:
        return COLOURS[name]
    red, green, blue = (int(name[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def any_direction(rng: np.random.Generator) -> np.ndarray:
    """A unit vector (3,), every direction as likely as every other."""
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def turned(direction: np.ndarray, angle: float, rng: np.random.Generator) -> np.ndarray:
    """A vector (3,), turned by an angle about an axis at right angles to it; drawn."""
    axis = np.cross(direction, any_direction(rng))
    length = np.linalg.norm(axis)
    if not length:
        return direction
    return Rotation.from_rotvec(angle / length * axis).apply(direction)
