"""Demonstrations on disk: collected in parallel, a Hugging Face dataset."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from vlm_agent.common.errors import UserError
from vlm_agent.common.locks import locked
from vlm_agent.common.whole import whole_file, write_whole
from vlm_agent.demonstrations.demonstrate import Demonstration, play_in_parallel
from vlm_agent.demonstrations.folder import PERSON, DemonstrationsFolder, demonstration_seed
from vlm_agent.recipe.recipe import Recipe

SHARD = 50
"""Episodes that are played for one file; a collection that was stopped goes on behind the last."""

JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}
"""Half the size of a PNG: 1,000 episodes are a third of a gigabyte."""

_CARD = """---
license: apache-2.0
task_categories: [robotics]
tags: [vlm-agent, robosuite, imitation]
configs:
- config_name: default
  data_files: data/train-*.parquet
---

# {task}: what a scripted expert says

{kept} of {played} episodes of robosuite's `{task}` with the arm {robot}, {words} words in all,
made by `vlm-agent demos`. Each row is one moment: what the camera in the robot's hand sees
(`image`), the facts that a prompt may tell ({facts}), the expert's `word`, the word that was `said`
(with probability {noise} a burst of random words happens instead of the expert's), and the
`episode` with its reset `seed`. Episodes that did not end with the task solved are left out.

```python
from datasets import load_dataset

rows = load_dataset("path/or/name", split="train")
```
"""


def collect_demonstrations(recipe: Recipe) -> Path:
    """Play the recipe's demonstrations in parallel; what is there already is kept.

    Episode ``n`` is a function of the recipe's seed and ``n``, so the result depends neither on
    the number of processes nor on interruptions.

    Returns:
        The dataset's folder.

    Raises:
        UserError: The folder holds demonstrations of another recipe, the folder cannot be
            written, or the task has no expert.
    """
    folder = DemonstrationsFolder(recipe)
    folder.prepare()
    columns = folder.columns(recipe.template.fact_names)
    count = recipe.imitation.num_demo_episodes
    shards = [range(first, min(first + SHARD, count)) for first in range(0, count, SHARD)]
    missing = [shard for shard in shards if folder.stop_of(shard.start) < shard.stop]
    numbers = [number for shard in missing for number in shard]
    seeds = [demonstration_seed(recipe.run.seed, number) for number in numbers]
    played = play_in_parallel(
        recipe.env,
        seeds,
        recipe.imitation.demo_noise,
        recipe.rollout.num_workers,
        recipe.template.fact_names,
        timeout=10 * recipe.rollout.worker_timeout,
    )
    done = count - len(numbers)
    with tqdm(total=count, initial=done, desc="demonstrating", unit="episode") as bar:
        for shard in missing:
            episodes = []
            for number in shard:
                episodes.append((number, next(played)))
                bar.update()
            _write_shard(folder, shard, episodes, columns, recipe.template.words)
    _write_card(folder, recipe)
    return folder.path


def save_demonstration(recipe: Recipe, number: int, played: Demonstration) -> int:
    """Add an episode that somebody played to a set; those that nobody played are left out.

    Args:
        recipe: Says where the set is, and what its settings are.
        number: The episode's number; with the seed of that number.
        played: What was seen and said.

    Returns:
        How many episodes the set has now, with those that are left out.

    Raises:
        UserError: The set has that episode already, is of other settings, or cannot be written.
    """
    folder = DemonstrationsFolder(recipe)
    folder.prepare(PERSON)
    with locked(folder.path / ".lock"):  # by another tab
        there = folder.stop
        if number < there:
            raise UserError(
                f"demonstrations: {str(folder.path)!r} is beyond episode {number}: begin another"
            )
        columns, words = folder.columns(recipe.template.fact_names), recipe.template.words
        _write_shard(folder, range(there, number + 1), [(number, played)], columns, words)
    return number + 1


def _write_shard(
    folder: DemonstrationsFolder,
    shard: range,
    episodes: Sequence[tuple[int, Demonstration]],
    columns: Mapping[str, str],
    words: Sequence[str],
) -> None:
    """Write the episodes that succeeded; the file appears when it is whole."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            **{column: datasets.Value("int32") for column in columns.values()},
            "word": datasets.ClassLabel(names=list(words)),
            "said": datasets.ClassLabel(names=list(words)),
            "episode": datasets.Value("int32"),
            "seed": datasets.Value("int64"),
        }
    )
    kept = [(number, played) for number, played in episodes if played.episode.success]
    rows = [row for number, played in kept for row in _rows(number, played, columns.values())]
    values = {name: [row[name] for row in rows] for name in features}
    path, shorter = folder.shard(shard), folder.files_of(shard.start)
    with whole_file(path) as partial:
        rows_of_it = datasets.Dataset.from_dict(values, features)
        rows_of_it.to_parquet(partial, write_page_checksum=True)  # so that damage is noticed
    for other in shorter:
        if other != path:
            other.unlink()


def _rows(number: int, played: Demonstration, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One row for each moment."""
    moments = zip(
        played.observations.frames,
        played.observations.facts.tolist(),
        played.expert_actions.tolist(),
        played.episode.actions,
        strict=True,
    )
    for frame, facts, word, said in moments:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, **JPEG)
        yield {
            "image": {"bytes": file.getvalue(), "path": None},
            **dict(zip(columns, facts, strict=True)),
            "word": word,
            "said": said,
            "episode": number,
            "seed": played.episode.seed,
        }


def _write_card(folder: DemonstrationsFolder, recipe: Recipe) -> None:
    tables = [pq.read_table(path, columns=["episode"]) for path in folder.files()]
    episodes = [table["episode"].to_numpy() for table in tables]
    card = _CARD.format(
        task=recipe.env.task,
        robot=recipe.env.robot,
        kept=sum(len(np.unique(numbers)) for numbers in episodes),
        played=recipe.imitation.num_demo_episodes,
        words=sum(len(numbers) for numbers in episodes),
        facts=", ".join(f"`{fact}`" for fact in recipe.template.fact_names),
        noise=recipe.imitation.demo_noise,
    )
    write_whole(folder.path / "README.md", card)
