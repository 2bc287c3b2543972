"""Demonstrations on disk: collected in parallel, a Hugging Face dataset, read for training."""

from __future__ import annotations

import io
import json
import multiprocessing as mp
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from vlm_agent.common.errors import UserError
from vlm_agent.common.lifetime import end_with_parent
from vlm_agent.common.seeding import episode_seed
from vlm_agent.demonstrations.demonstrate import Demonstration, demonstrate
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode
from vlm_agent.world.observations import FACTS, Observations
from vlm_agent.world.robosuite.env import LanguageActionEnv
from vlm_agent.world.robosuite.expert import Oracle

SHARD = 50
"""Episodes that are played for one file; a collection that was stopped goes on behind the last."""

JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}
"""Half the size of a PNG: 1,000 episodes are a third of a gigabyte."""

SETTINGS_FILE = "demonstrations.json"

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


@dataclass(frozen=True)
class Labelled:
    """Moments with the expert's word for each.

    Attributes:
        observations: B of them.
        actions: The expert's action indices, int64 (B,).
    """

    observations: Observations
    actions: np.ndarray

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, index: Any) -> Labelled:
        return Labelled(self.observations[index], self.actions[index])

    @staticmethod
    def concatenate(parts: Sequence[Labelled]) -> Labelled:
        """All moments of the parts, in order."""
        return Labelled(
            Observations(
                np.concatenate([part.observations.frames for part in parts]),
                np.concatenate([part.observations.facts for part in parts]),
            ),
            np.concatenate([part.actions for part in parts]),
        )


def demonstrations_folder(recipe: Recipe) -> Path:
    """Where a recipe's demonstrations lie."""
    named = recipe.imitation.demonstrations
    usual = Path(recipe.ppo.output_dir) / "demonstrations" / recipe.ppo.run_name
    return Path(named) if named else usual


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
    folder = demonstrations_folder(recipe)
    _prepare(folder, recipe)
    count = recipe.imitation.num_demo_episodes
    shards = [range(first, min(first + SHARD, count)) for first in range(0, count, SHARD)]
    missing = [shard for shard in shards if _stop_of(folder, shard.start) < shard.stop]
    numbers = [number for shard in missing for number in shard]
    seeds = [episode_seed("train", recipe.ppo.seed, "demo", number) for number in numbers]
    noise, workers = recipe.imitation.demo_noise, recipe.ppo.num_workers
    played = play_in_parallel(recipe.env, seeds, noise, workers)
    done = count - len(numbers)
    with tqdm(total=count, initial=done, desc="demonstrating", unit="episode") as bar:
        for shard in missing:
            episodes = []
            for number in shard:
                episodes.append((number, next(played)))
                bar.update()
            _write_shard(_shard_path(folder, shard), episodes, recipe.prompt.action_words)
    _write_card(folder, recipe)
    return folder


def play_in_parallel(
    config: EnvConfig, seeds: Sequence[int], noise: float = 0.0, workers: int = 0
) -> Iterator[Demonstration]:
    """The expert's episodes of these seeds, in order.

    Args:
        config: The scene.
        seeds: One per episode.
        noise: As for :func:`vlm_agent.demonstrations.demonstrate.demonstrate`.
        workers: Processes; 0 for one per core.
    """
    if not seeds:
        return
    Oracle.check(config)
    count = min(len(seeds), workers or len(os.sched_getaffinity(0)))
    context = mp.get_context("spawn")
    with ProcessPoolExecutor(count, context, _start, (config, noise)) as processes:
        try:
            yield from processes.map(_play, seeds)
        except BrokenProcessPool:
            raise UserError(
                "a process of the scripted expert could not start, or was killed: see above, and "
                "whether vlm-agent doctor finds that this machine can render"
            ) from None
        finally:
            processes.shutdown(cancel_futures=True)


_env: LanguageActionEnv
_noise: float


def _start(config: EnvConfig, noise: float) -> None:
    """Make a process's environment."""
    global _env, _noise
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ.setdefault("LP_NUM_THREADS", "0")  # as in a pool's workers
    _env, _noise = LanguageActionEnv(config), noise


def _play(seed: int) -> Demonstration:
    return demonstrate(_env, seed, _noise)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What decides an episode, besides its number."""
    return {
        "seed": recipe.ppo.seed,
        "demo_noise": recipe.imitation.demo_noise,
        "action_words": recipe.prompt.action_words,
        **asdict(recipe.env),
    }


def _prepare(folder: Path, recipe: Recipe) -> None:
    path, wanted = folder / SETTINGS_FILE, _settings(recipe)
    if path.is_file():
        found = json.loads(path.read_text())
        if different := [key for key in wanted if found.get(key) != wanted[key]]:
            raise UserError(
                f"demonstrations: those in {str(folder)!r} were made with another "
                f"{', '.join(different)}; name another folder"
            )
        return
    try:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"demonstrations: cannot write to {str(folder)!r}: {error}") from None


def _shard_path(folder: Path, shard: range) -> Path:
    return folder / "data" / f"train-{shard.start:05d}-{shard.stop:05d}.parquet"


def _files_of(folder: Path, start: int) -> list[Path]:
    """The files whose first episode is ``start``; one, unless a collection was stopped."""
    return sorted((folder / "data").glob(f"train-{start:05d}-*.parquet"))


def _stop_of(folder: Path, start: int) -> int:
    """The episode behind the last of the file that begins with ``start``; that itself if none."""
    return max((int(path.stem.split("-")[2]) for path in _files_of(folder, start)), default=start)


def _write_shard(
    path: Path, episodes: Sequence[tuple[int, Demonstration]], words: Sequence[str]
) -> None:
    """Write the episodes that succeeded; the file appears when it is whole."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            **{fact: datasets.Value("int32") for fact in FACTS},
            "word": datasets.ClassLabel(names=list(words)),
            "said": datasets.ClassLabel(names=list(words)),
            "episode": datasets.Value("int32"),
            "seed": datasets.Value("int64"),
        }
    )
    rows = [row for number, played in episodes if played.success for row in _rows(number, played)]
    columns = {name: [row[name] for row in rows] for name in features}
    partial = path.with_suffix(".partial")
    datasets.Dataset.from_dict(columns, features).to_parquet(partial)
    shorter = _files_of(path.parent.parent, int(path.stem.split("-")[1]))
    partial.rename(path)
    for other in shorter:
        if other != path:
            other.unlink()


def _rows(number: int, played: Demonstration) -> Iterator[dict[str, Any]]:
    for seen, word, said in zip(
        zip(played.observations.frames, played.observations.facts, strict=True),
        played.expert_actions.tolist(),
        played.episode.actions,
        strict=True,
    ):
        frame, facts = seen
        file = io.BytesIO()
        Image.fromarray(frame).save(file, **JPEG)
        yield {
            "image": {"bytes": file.getvalue(), "path": None},
            **dict(zip(FACTS, facts.tolist(), strict=True)),
            "word": word,
            "said": said,
            "episode": number,
            "seed": played.episode.seed,
        }


def _write_card(folder: Path, recipe: Recipe) -> None:
    episodes = [table["episode"].to_numpy() for table in _tables(folder, ["episode"])]
    card = _CARD.format(
        task=recipe.env.task,
        robot=recipe.env.robot,
        kept=sum(len(np.unique(numbers)) for numbers in episodes),
        played=recipe.imitation.num_demo_episodes,
        words=sum(len(numbers) for numbers in episodes),
        facts=", ".join(f"`{fact}`" for fact in FACTS),
        noise=recipe.imitation.demo_noise,
    )
    (folder / "README.md").write_text(card)


def _tables(folder: Path, columns: list[str]) -> Iterator[Any]:
    for path in sorted((folder / "data").glob("train-*.parquet")):
        yield pq.read_table(path, columns=columns)


def _wanted_tables(recipe: Recipe) -> list[Any]:
    """The rows of the recipe's demonstrations.

    Raises:
        UserError: There are none, too few, or those of another recipe.
    """
    folder = demonstrations_folder(recipe)
    if not (folder / SETTINGS_FILE).is_file():
        raise UserError(
            f"demonstrations: there are none in {str(folder)!r}; collect them with: "
            "vlm-agent demos --config RECIPE"
        )
    _prepare(folder, recipe)
    wanted, there = recipe.imitation.num_demo_episodes, 0
    tables = []
    while there < wanted and (files := _files_of(folder, there)):
        table = pq.read_table(files[-1])
        tables.append(table.filter(np.asarray(table["episode"]) < wanted))
        there = _stop_of(folder, there)
    if there < wanted:
        raise UserError(
            f"demonstrations: {there} of num_demo_episodes ({wanted}) are in {str(folder)!r}; "
            "collect the rest with: vlm-agent demos --config RECIPE"
        )
    if not sum(len(table) for table in tables):
        raise UserError(f"demonstrations: the expert solved none of those in {str(folder)!r}")
    return tables


def check_demonstrations(recipe: Recipe) -> None:
    """Find out whether a recipe's demonstrations are there.

    Raises:
        UserError: There are none, too few, or those of another recipe; or the task has no expert.
    """
    Oracle.check(recipe.env)
    _wanted_tables(recipe)


def read_demonstrations(recipe: Recipe) -> Labelled:
    """The first ``num_demo_episodes`` episodes of a recipe's demonstrations.

    Raises:
        UserError: There are none, too few, or those of another recipe.
    """
    parts = []
    for table in _wanted_tables(recipe):
        if len(table):
            frames = np.stack([_decode(cell["bytes"].as_py()) for cell in table["image"]])
            facts = np.stack([table[fact].to_numpy() for fact in FACTS], -1)
            parts.append(Labelled(Observations(frames, facts), table["word"].to_numpy()))
    return Labelled.concatenate(parts)


def read_episodes(recipe: Recipe) -> list[Episode]:
    """The same demonstrations as seeds and the words that were said.

    Raises:
        UserError: As for :func:`read_demonstrations`.
    """
    episodes = []
    for table in _wanted_tables(recipe):
        for number in np.unique(table["episode"].to_numpy()):
            rows = table.filter(np.asarray(table["episode"]) == number)
            episodes.append(Episode(rows["seed"][0].as_py(), tuple(rows["said"].to_pylist())))
    return episodes


def _decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
