"""Suites of splits: what each changes of a world, and whether a policy has met that in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, get_args

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.common.strict_yaml import read_yaml
from vlm_agent.evaluation.agents import Ablation
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.registry import declare
from vlm_agent.world.robosuite.appearance.randomize import RANDOMIZE, Covered

GROUPS = ("distribution", "vision", "semantics", "execution")
"""What a split changes: nothing that was not there in training, or one of these."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One way in which the scene is changed.

    Attributes:
        name: What it is called.
        group: One of :data:`GROUPS`.
        changes: Settings of the world, in place of a policy's own.
        ablate: What the policy is not told, see :func:`load_agent`.
        is_mistake: Whether success in it is one, as where another task was asked for.
    """

    name: str
    group: str
    changes: Mapping[str, Any]
    ablate: Ablation = "none"
    is_mistake: bool = False


@dataclasses.dataclass(frozen=True)
class Suite:
    """Splits of the same episodes.

    Attributes:
        name: What it is called: the name of its file.
        splits: By their names.
    """

    name: str
    splits: Mapping[str, Split]


def read_suite(path: Path) -> Suite:
    """A suite from its YAML file.

    ``world`` holds what all splits have in common, ``splits`` what each of them changes: settings
    of a recipe's world, and ``group``, ``ablate`` and ``is_mistake``. What ``randomize`` says does
    not come on top of a policy's own: where a split says nothing of it, nothing is drawn.

    Raises:
        UserError: Naming what the file has that no suite has, or lacks.
    """
    content = read_yaml(path)
    _check_keys(str(path), content, ("world", "splits"))
    world, listed = content.get("world") or {}, content.get("splits")
    if not isinstance(world, dict) or not isinstance(listed, dict) or not listed:
        raise UserError(f"{path}: expected the keys world and splits, a mapping each")
    _check_keys(f"{path}: world", world, WORLD_KEYS)
    splits = {}
    for name, values in listed.items():
        where = f"{path}: splits: {name}"
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected a mapping such as {{group: vision, light: 0.5}}")
        _check_keys(where, values, (*WORLD_KEYS, *ALLOWED))
        about = {key: values[key] for key in ALLOWED if key in values}
        for key, value in {"group": None, **about}.items():
            if not any(value is known or value == known for known in ALLOWED[key]):
                allowed = ", ".join(str(known).lower() for known in ALLOWED[key])
                raise UserError(f"{where}: {key}: {value!r}: expected one of {allowed}")
        own = {key: value for key, value in values.items() if key in WORLD_KEYS}
        splits[str(name)] = Split(str(name), changes={"randomize": {}, **world, **own}, **about)
    return Suite(path.stem, splits)


WORLD_KEYS = tuple(field.name for field in dataclasses.fields(EnvConfig))
ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "group": GROUPS,
    "ablate": get_args(Ablation),
    "is_mistake": (False, True),
}
"""What a split may say besides settings of the world, and the values."""


def _check_keys(where: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"{where}: {unknown_name('key', key, known)}")


def find_suite(name: str) -> Suite:
    """A suite's file, or one that ships, by its name.

    Raises:
        UserError: There is no such suite, or something is wrong with it.
    """
    if name.endswith(".yaml"):
        return read_suite(Path(name))
    folder = SHIPPED / "recipes" / "suites"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = [other.stem for other in folder.glob("*.yaml")]
        raise UserError(f"--config: {unknown_name('suite', name, known)}")
    return read_suite(path)


NO_MATTER = {"horizon", "reward", "success_bonus"}
ONE_BY_ONE = {"task", "tasks", "randomize", "instructions", "held_out_instructions", "paraphrases"}
"""Settings that do not change what a policy meets, and those of which it may have met a part."""


def seen_in_training(trained_in: EnvConfig, played_in: EnvConfig) -> Covered:
    """Whether a policy has met what a world shows it: all of it, some, or not what is new in it.

    Args:
        trained_in: The world it was trained in.
        played_in: That of a split.
    """
    drawn, asked = trained_in.randomize, played_in.randomize
    found = []
    for key in {*drawn, *asked}:
        usual = RANDOMIZE[key].usual
        found.append(RANDOMIZE[key].covers(drawn.get(key, usual), asked.get(key, usual)))
    worlds = trained_in, played_in
    found.append(_part(*(set(env.tasks or [env.task]) for env in worlds)))
    found.append(_part(*(declare(env).instructions.used for env in worlds)))
    trained, played = (dataclasses.asdict(env) for env in worlds)
    others = played.keys() - NO_MATTER - ONE_BY_ONE
    found += ["no" for key in others if played[key] != trained[key]]
    return next((covered for covered in ("no", "partly") if covered in found), "yes")


def _part(known: Set[str], asked: Set[str]) -> Covered:
    if asked <= known:
        return "yes"
    return "partly" if asked & known else "no"
