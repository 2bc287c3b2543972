"""Functions and classes of the user's own, named as ``module:name`` in a recipe."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from vlm_agent.common.errors import UserError, unknown_name

KNOWN_MODULES = ("vlm_agent", "minigrid", "gymnasium_robotics")
"""What the package itself brings, with its extras; to import it is no matter of trust."""


def import_user_module(key: str, name: str) -> ModuleType:
    """Import a module, which may lie in the current folder.

    Args:
        key: The recipe's key that names it.
        name: The module.

    Raises:
        UserError: There is none, or it cannot be imported.
    """
    here = os.getcwd()  # noqa: PTH109 (sys.path holds text)
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"{key}: there is no module {name!r}, neither installed nor in this folder"
            ) from None
        raise UserError(f"{key}: {name!r} cannot be imported: {error}") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{key}: {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def import_named(key: str, place: str) -> Any:
    """What ``module:name`` names.

    Raises:
        UserError: There is no such module, or nothing of that name in it.
    """
    module_name, _, name = place.partition(":")
    if not module_name or not name:
        raise UserError(f"{key}: {place!r}: expected module:name")
    module = import_user_module(key, module_name)
    if not hasattr(module, name):
        known = [known for known in vars(module) if not known.startswith("_")]
        raise UserError(f"{key}: {unknown_name(f'name in {module_name!r}:', name, known)}")
    return getattr(module, name)


def import_function(key: str, place: str) -> Callable[..., Any]:
    """The function that ``module:name`` names.

    Raises:
        UserError: There is none.
    """
    found = import_named(key, place)
    if not callable(found):
        raise UserError(f"{key}: {place!r} is a {type(found).__name__}, expected a function")
    return found


def foreign_modules(modules: Iterable[str]) -> list[str]:
    """Those of the modules that are not the package's own."""
    return sorted({name for name in modules if name.split(".")[0] not in KNOWN_MODULES})


def check_trusted(what: str, modules: Iterable[str], trust_modules: bool) -> None:
    """Refuse to import what a file from elsewhere names.

    Args:
        what: The file, as a message calls it.
        modules: The modules it names.
        trust_modules: Whether the user said that it may be.

    Raises:
        UserError: It names one that is not the package's own, and the user did not.
    """
    foreign = foreign_modules(modules)
    if foreign and not trust_modules:
        raise UserError(
            f"{what} names code of its own ({', '.join(foreign)}), which would be imported; if you "
            "know where it comes from, add --trust_modules true"
        )
