"""What a folder of a policy or a model may hold, before any library reads it.

Transformers and PEFT import code that a configuration names. Nothing of a folder is to be run,
whatever it says, so such keys are refused here, and only plain files of known kinds are opened.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_agent.common.errors import UserError

KINDS = {
    ".json": 64 * 2**20,
    ".jinja": 2**20,
    ".txt": 64 * 2**20,
    ".md": 2**20,
    ".model": 64 * 2**20,
    ".safetensors": 2**40,
}
"""Endings of files that are read -> the most bytes that one may have."""

RUNS_CODE = (
    "auto_map",
    "custom_pipelines",
    "custom_generate",
    "megatron_config",
    "trust_remote_code",
    "kernel_config",
)
"""Keys of configurations whose values name code."""

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")

DEEPEST = 32


def check_harmless(folder: Path, is_own: bool = False) -> None:
    """Refuse a folder with anything that is not a plain file of a known kind, or that names code.

    Args:
        folder: The folder.
        is_own: Whether the user has named it as a model: its links may lead anywhere then.

    Raises:
        UserError: Naming the file, and what is wrong with it.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in KINDS:
            continue  # nobody opens it
        name = f"{str(folder)!r}: {path.name}"
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            if not (is_own or _is_of_the_cache(path)):
                raise UserError(f"{name} is a link to something elsewhere; copy what it links to")
            kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise UserError(f"{name} is no plain file")
        if (size := path.stat().st_size) > KINDS[path.suffix]:
            raise UserError(f"{name} has {size} bytes, and at most {KINDS[path.suffix]} are read")
        if path.suffix == ".json":
            _check_json(name, path)


def _is_of_the_cache(path: Path) -> bool:
    """Whether a link is one by which the hub's cache keeps each file once."""
    snapshot = path.parent.resolve()  # models--USER--NAME/snapshots/REVISION
    return path.resolve().is_relative_to(snapshot.parents[1] / "blobs")


def _check_json(name: str, path: Path) -> None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is no JSON: {type(error).__name__}: {error}") from None
    if path.name in ("tokenizer.json", "vocab.json"):
        return  # text that the model reads; it names nothing
    for key, value in _entries(name, values):
        if key in RUNS_CODE and value:
            raise UserError(f"{name}: {key} names code to be run, which is never done")
        if key == "megatron_core" and value not in (None, "megatron.core"):
            raise UserError(f"{name}: {key} names code to be run, which is never done")
        if path.name == "adapter_config.json" and key == "peft_type" and value != "LORA":
            raise UserError(f"{name}: {key}: {value!r}, and adapters are 'LORA'")
        is_attention = key in ("attn_implementation", "_attn_implementation")
        if is_attention and value is not None and value not in ATTENTION:
            raise UserError(f"{name}: {key}: {value!r} names code; known: {ATTENTION}")


def _entries(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > DEEPEST:
        raise UserError(f"{name}: values lie in each other more than {DEEPEST} deep")
    if isinstance(value, dict):
        yield from value.items()
        for inner in value.values():
            yield from _entries(name, inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(name, inner, depth + 1)
