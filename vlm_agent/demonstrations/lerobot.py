"""Demonstrations as a ``LeRobotDataset`` (v3.0), for LeRobot's policies and tools.

Pictures stay the JPEG files that they are. What LeRobot has no word for keeps its name here:
``said`` is the word that was said, where noise took the place of the expert's, which is ``action``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_agent.common.whole import whole_folder
from vlm_agent.demonstrations.folder import DemonstrationsFolder
from vlm_agent.demonstrations.reading import wanted_tables
from vlm_agent.demonstrations.table import decode
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.world.config import CONTROL_HZ
from vlm_agent.world.facts import INSTRUCTION
from vlm_agent.world.registry import declare

VERSION = "v3.0"
PICTURE, STATE = "observation.images.hand", "observation.state"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
LARGEST = 90_000_000
"""Bytes of pictures in a file; LeRobot's own limit is 100 MB."""

COUNTED = ("frame_index", "episode_index", "index", "task_index")

PICTURES_OF_STATS = 500
"""Of so many pictures the colours' statistics are."""


def export_lerobot(recipe: Recipe, output: Path) -> int:
    """Write a recipe's demonstrations as LeRobot reads them.

    Args:
        recipe: Whose demonstrations.
        output: A new folder.

    Returns:
        How many episodes it has.

    Raises:
        UserError: There are none, too few, or those of another recipe; or it cannot be written.
    """
    columns = DemonstrationsFolder(recipe).columns(recipe.template.fact_names)
    table = _with_indices(pa.concat_tables(wanted_tables(recipe)), recipe, columns)
    with whole_folder(output) as folder:
        (folder / "meta/episodes/chunk-000").mkdir(parents=True)
        files = _write_data(folder, table)
        episodes = _episodes(table, files, _sentences(recipe))
        pq.write_table(episodes, folder / EPISODES)
        _write_tasks(folder, recipe)
        about = _info(recipe, table, len(episodes), columns)
        (folder / "meta/info.json").write_text(json.dumps(about, indent=4) + "\n")
        stats = _statistics(table, recipe.env.frame_shape)
        (folder / "meta/stats.json").write_text(json.dumps(stats, indent=4) + "\n")
    return len(episodes)


def _fps(recipe: Recipe) -> float:
    """Words per second of the robot's own time; a Gymnasium environment has none, and gets 1."""
    rate = CONTROL_HZ / recipe.env.control_steps if recipe.env.env is None else 1.0
    return int(rate) if rate.is_integer() else rate


def _sentences(recipe: Recipe) -> Sequence[str]:
    found = declare(recipe.env).instructions.sentences
    return found if INSTRUCTION in recipe.template.fact_names else [recipe.template.task]


def _with_indices(table: Any, recipe: Recipe, columns: Mapping[str, str]) -> Any:
    """The columns of LeRobot: its names, and what is counted."""
    numbers = table["episode"].to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    episode = np.searchsorted(starts, np.arange(len(numbers)), side="right") - 1
    frame = np.arange(len(numbers)) - starts[episode]
    is_last = np.append(episode[1:] != episode[:-1], True)
    facts = np.stack([table[column].to_numpy() for column in columns.values()], -1)
    told = columns.get(INSTRUCTION)
    task = np.zeros(len(numbers), np.int64) if told is None else table[told].to_numpy()
    states = pa.FixedSizeListArray.from_arrays(facts.astype(np.float32).ravel(), facts.shape[1])
    return pa.table(
        {
            PICTURE: table["image"],
            STATE: states,
            "action": table["word"].to_numpy().astype(np.int64),
            "said": table["said"].to_numpy().astype(np.int64),
            "next.done": is_last,
            "timestamp": (frame / _fps(recipe)).astype(np.float32),
            "frame_index": frame.astype(np.int64),
            "episode_index": episode.astype(np.int64),
            "index": np.arange(len(numbers), dtype=np.int64),
            "task_index": task.astype(np.int64),
        }
    )


def _write_data(folder: Path, table: Any) -> np.ndarray:
    """Write the moments; the number of the file of each, int64 (rows,). An episode is in one."""
    sizes = np.array([len(cell["bytes"]) for cell in table[PICTURE].to_pylist()])
    episode = table["episode_index"].to_numpy()
    per_episode = np.bincount(episode, sizes)
    file_of_episode = (np.cumsum(per_episode) - 1) // LARGEST
    files = file_of_episode[episode].astype(np.int64)
    for number, file in enumerate(np.unique(files)):
        path = folder / DATA.format(chunk_index=0, file_index=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(files == file), path)
        files[files == file] = number
    return files


def _episodes(table: Any, files: np.ndarray, sentences: Sequence[str]) -> Any:
    """One row for each episode."""
    episode, index = table["episode_index"].to_numpy(), table["index"].to_numpy()
    starts = np.flatnonzero(np.diff(episode, prepend=-1))
    stops = np.append(starts[1:], len(episode))
    tasks = table["task_index"].to_numpy()[starts]
    count = len(starts)
    return pa.table(
        {
            "episode_index": episode[starts],
            "tasks": [[sentences[task]] for task in tasks],
            "length": stops - starts,
            "dataset_from_index": index[starts],
            "dataset_to_index": index[starts] + (stops - starts),
            "data/chunk_index": np.zeros(count, np.int64),
            "data/file_index": files[starts],
            "meta/episodes/chunk_index": np.zeros(count, np.int64),
            "meta/episodes/file_index": np.zeros(count, np.int64),
        }
    )


def _write_tasks(folder: Path, recipe: Recipe) -> None:
    import pandas

    sentences = _sentences(recipe)
    tasks = pandas.DataFrame({"task_index": range(len(sentences))}, index=list(sentences))
    tasks.to_parquet(folder / "meta/tasks.parquet")


def _info(recipe: Recipe, table: Any, episodes: int, columns: Mapping[str, str]) -> dict[str, Any]:
    def numbers(dtype: str, names: Sequence[str] | None = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [len(names) if names else 1], "names": names}

    height, width, channels = recipe.env.frame_shape
    axes = ["height", "width", "channels"]
    return {
        "codebase_version": VERSION,
        "robot_type": recipe.env.robot if recipe.env.env is None else None,
        "total_episodes": episodes,
        "total_frames": len(table),
        "total_tasks": len(_sentences(recipe)),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": _fps(recipe),
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA,
        "video_path": None,
        "features": {
            PICTURE: {"dtype": "image", "shape": [height, width, channels], "names": axes},
            STATE: numbers("float32", list(columns)),
            "action": numbers("int64"),
            "said": numbers("int64"),
            "next.done": numbers("bool"),
            "timestamp": numbers("float32"),
            **{name: numbers("int64") for name in COUNTED},
        },
        "words": list(recipe.template.words),
    }


def _statistics(table: Any, shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Minimum, maximum, mean and standard deviation; of pictures by colour, from 0 to 1."""
    found = {}
    for name in table.column_names:
        if name == PICTURE:
            step = max(1, len(table) // PICTURES_OF_STATS)
            cells = list(table[name].take(np.arange(0, len(table), step)))
            pictures = [decode("picture", cell, shape) for cell in cells]
            values = np.stack(pictures).reshape(-1, 3).astype(np.float64) / 255
            count = len(cells)
        else:
            values = np.array(table[name].to_pylist(), np.float64).reshape(len(table), -1)
            count = len(table)
        about = {kind: getattr(np, kind)(values, 0) for kind in ("min", "max", "mean", "std")}
        if name == PICTURE:
            about = {kind: value.reshape(3, 1, 1) for kind, value in about.items()}
        found[name] = {**{kind: value.tolist() for kind, value in about.items()}, "count": [count]}
    return found
