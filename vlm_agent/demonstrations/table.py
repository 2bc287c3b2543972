"""A file of demonstrations as a table, once it is known to be what was collected."""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm_agent.common.errors import UserError

LARGEST = 8 * 2**30
"""Bytes of a file that is read at all; fifty episodes have some ten million."""


def read_table(
    path: Path, episodes: range, seed_of: Callable[[int], int], ranges: Mapping[str, int | None]
) -> pa.Table:
    """A file's rows, all of whose numbers are such as a collection writes.

    Args:
        path: The file.
        episodes: Those that its name says it is of.
        seed_of: The seed of an episode.
        ranges: Column -> how many values it may have; ``None`` for any integer.

    Raises:
        UserError: It cannot be read, or holds something else; naming the column and the row.
    """
    name = f"demonstrations: {str(path)!r}"
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
            raise UserError(f"{name} is no plain file of at most {LARGEST} bytes")
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:  # a wrong checksum is an OSError
        first = (str(error).splitlines() or ["?"])[0]
        raise UserError(f"{name} is damaged, or no file of demonstrations: {first}") from None
    wanted = {"image", "episode", "seed", *ranges}
    if lacking := sorted(wanted - set(table.column_names)):
        raise UserError(
            f"{name} has no column {', '.join(lacking)}, which prompts or the recipe ask for now: "
            "collect the demonstrations again"
        )
    table = table.select(sorted(wanted))
    for column in sorted(wanted - {"image"}):
        _check_numbers(f"{name}, column {column}", table[column], ranges.get(column))
    numbers = table["episode"].to_numpy()
    is_inside = (numbers >= episodes.start) & (numbers < episodes.stop)
    pairs = {*zip(numbers.tolist(), table["seed"].to_pylist(), strict=True)}
    if not is_inside.all() or any(seed_of(number) != seed for number, seed in pairs):
        raise UserError(f"{name} holds other episodes than its name and the recipe's seed say")
    if (np.diff(numbers) < 0).any():
        raise UserError(f"{name}: the moments are not in the order in which they were")
    _check_pictures(f"{name}, column image", table["image"])
    return table


def _check_numbers(what: str, column: pa.ChunkedArray, count: int | None) -> None:
    if not pa.types.is_integer(column.type):
        raise UserError(f"{what}: {column.type}, and integers were expected")
    if column.null_count:
        raise UserError(f"{what}: {column.null_count} rows have none")
    values = column.to_numpy()
    if count is None:
        return
    for row in np.flatnonzero((values < 0) | (values >= count))[:1]:
        raise UserError(f"{what}, row {row}: {values[row]}, and 0 to {count - 1} were expected")


def _check_pictures(what: str, column: pa.ChunkedArray) -> None:
    kind = column.type
    is_image = pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]
    if not is_image or not pa.types.is_binary(kind.field("bytes").type):
        raise UserError(f"{what}: {kind}, and pictures were expected")


def decode(what: str, cell: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A picture of a row.

    Args:
        what: Names it in the message.
        cell: As the table has it.
        shape: What it has to be, (H, W, 3); found out before a pixel is decoded.

    Raises:
        UserError: It is no picture, or of another size.
    """
    data = cell["bytes"].as_py() if cell.is_valid else None
    try:
        image = Image.open(io.BytesIO(data or b""), formats=["JPEG", "PNG"])
        if image.size != (shape[1], shape[0]):
            wide, high = image.size
            raise UserError(f"{what}: {wide} x {high} pixels; {shape[1]} x {shape[0]} expected")
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{what} is no picture: {error}") from None
