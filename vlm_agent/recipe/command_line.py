"""Recipes from a command line: ``--config FILE`` and ``--key value`` overrides, as in TRL."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.common.strict_yaml import parse_yaml
from vlm_agent.recipe.keys import SECTIONS, key_types
from vlm_agent.recipe.recipe import Recipe, make_recipe, make_section, read_recipe
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.registry import declare


def load_recipe(argv: Sequence[str] | None = None, prog: str = "vlm-agent") -> Recipe:
    """Read a recipe from a command line.

    Raises:
        UserError: Nothing is asked for; or listing every unknown key, wrong type, value out of
            range and combination that cannot work.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        raise UserError(
            "no recipe: name one by --config (for a start: --config quick), or give keys "
            f"(--task Lift); {prog} --help lists these"
        )
    config, overrides, problems = _parse(argv, prog)
    values, search = read_recipe(config) if config is not None else ({}, [])
    return make_recipe({**values, **overrides}, search, problems)


def _parse(argv: list[str], prog: str) -> tuple[str | None, dict[str, Any], list[str]]:
    """The recipe's path, the overrides and the problems of a command line."""
    from trl import TrlParser

    # TRL's parser makes the flags and the help text from dataclasses, and would stop at the first
    # value of a wrong type. It gets the sections with text for values; make_recipe checks them.
    sections = [_as_text(section) for section in SECTIONS.values()]
    parser = TrlParser(sections, prog=prog, allow_abbrev=False)
    parser.add_argument("--config", help="a recipe's file or name; flags override what it says")
    namespace, unknown = parser.parse_known_args([_without_no(word) for word in argv])
    options = [f"--{key}" for key in key_types()]
    problems = [
        f"{word}: {unknown_name('option', word.split('=')[0], options)}"
        for word in unknown
        if word.startswith("--")
    ]
    if unknown and not problems:
        problems = [f"unexpected words: {' '.join(unknown)}{_as_config(unknown[0])}"]
    raw = vars(namespace)
    config = raw.pop("config", None)
    return config, {key: from_text(key, value) for key, value in raw.items()}, problems


def _as_config(word: str) -> str:
    """How to say a recipe, if a word seems to be one."""
    seems_one = word.endswith((".yaml", ".yml")) or (SHIPPED / "recipes" / f"{word}.yaml").is_file()
    return f"; a recipe is named by --config {word}" if seems_one else ""


def _as_text(section: type) -> type:
    """A section whose values are text, and are not there if nobody gives them."""
    fields = []
    for field in dataclasses.fields(section):
        hint = key_types()[field.name]
        about = f"default: {getattr(section(), field.name)}"
        if typing.get_origin(hint) is typing.Literal:
            about = f"{', '.join(map(str, typing.get_args(hint)))}; {about}"
        how: dict[str, Any] = {"help": f"{field.metadata.get('help', '')} ({about})"}
        if hint is bool:
            how |= {"nargs": "?", "const": "true"}
        if _kinds(hint) & {list, dict} == {list}:
            how |= {"nargs": "+"}
        text = dataclasses.field(default=argparse.SUPPRESS, metadata=how)
        fields.append((field.name, str, text))
    return dataclasses.make_dataclass(section.__name__, fields)


def _without_no(word: str) -> str:
    """``--no_key`` as ``--key=false``, for switches."""
    key = word.removeprefix("--no_")
    is_switch = key != word and key_types().get(key) is bool
    return f"--{key}=false" if is_switch else word


def override_env(env: EnvConfig, words: Sequence[str]) -> EnvConfig:
    """A scene with settings changed by ``--key value`` words of a command line.

    Raises:
        UserError: Naming every word that is no setting of the scene, or no value for it.
    """
    keys = [field.name for field in dataclasses.fields(EnvConfig)]
    found: dict[str, str] = {}
    values: dict[str, Any] = {}
    for option, text in zip(words[::2], words[1::2], strict=False):
        key = option.removeprefix("--")
        if key in keys and option.startswith("--"):
            values[key] = from_text(key, text)
        else:
            found[option] = unknown_name("option", option, [f"--{name}" for name in keys])
    if len(words) % 2:
        found.setdefault(words[-1], "expected --key value")
    return change_env(env, values, found)


def change_env(
    env: EnvConfig, values: Mapping[str, Any], found: dict[str, str] | None = None
) -> EnvConfig:
    """A scene with other settings.

    Args:
        env: The scene.
        values: Settings and what they are to be, not checked yet.
        found: What is wrong already, by key.

    Raises:
        UserError: Naming the first setting that cannot be so.
    """
    found = {} if found is None else found
    if "env" in values and values["env"] != env.env:
        values = {"reward": "", **values}  # another world may have another default
    changed = make_section(EnvConfig, {**dataclasses.asdict(env), **values}, found)
    for key, problem in found.items():
        raise UserError(f"{key}: {problem}")
    declare(changed)
    return changed


def from_text(key: str, text: Any) -> Any:
    """A command-line word as the value it would be in a YAML file."""
    if isinstance(text, list):
        return [from_text(key, part) for part in text]
    hint = key_types()[key]
    if _kinds(hint) & {dict, list} and text.lstrip().startswith(("{", "[")):
        return _parsed(text)
    if type(None) in typing.get_args(hint) and text.lower() in ("none", "null"):
        return None
    if str in (hint, *typing.get_args(hint)) or typing.get_origin(hint) is list:
        return text
    return _parsed(text)


def _kinds(hint: Any) -> set[Any]:
    """The types that a value may have: of ``list[str] | None`` a list, or nothing."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return {
        typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if union else (hint,))
    }


def _parsed(text: str) -> Any:
    """A value as in a YAML file; the text itself, which make_recipe refuses, where it is none."""
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, UserError):
        return text
