"""Demonstrations that are damaged, or a stranger's, are refused with a sentence."""

import io
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.own_world import own_world
from vlm_agent import Recipe
from vlm_agent.common.errors import UserError
from vlm_agent.demonstrations.dataset import collect_demonstrations
from vlm_agent.demonstrations.demonstrate import play_in_parallel
from vlm_agent.demonstrations.reading import read_demonstrations, read_episodes

SETTINGS = {"num_demo_episodes": 3, "num_workers": 1, "frame_size": 28}
SETTINGS_FILE, SHARD = "demonstrations.json", "data/train-00000-00003.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """A recipe, and the folder of its demonstrations."""
    folder = tmp_path_factory.mktemp("demonstrations")
    with own_world(folder) as world, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        path = collect_demonstrations(Recipe.load(world, **SETTINGS, output_dir=str(folder)))
        yield world, path


@pytest.fixture
def mine(whole, tmp_path: Path) -> tuple[Recipe, Path]:
    """A copy that may be damaged."""
    world, path = whole
    copy = Path(shutil.copytree(path, tmp_path / "mine"))
    return Recipe.load(world, **SETTINGS, demonstrations=str(copy)), copy


def picture(wide: int, high: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((high, wide, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def column(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def but_first(table: pa.Table, name: str, value) -> pa.Table:
    return column(table, name, [value, *table[name].to_pylist()[1:]])


def image(data: bytes | None):
    return lambda table: but_first(table, "image", {"bytes": data, "path": "/etc/passwd"})


def bomb() -> bytes:
    """A picture whose header says 100,000 x 100,000."""
    data = bytearray(picture(28, 28, "PNG"))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


TABLES = {
    "a column is missing": (lambda t: t.drop_columns(["moves"]), "no column moves"),
    "no word": (lambda t: t.drop_columns(["word"]), "no column word"),
    "a word that there is not": (lambda t: but_first(t, "word", 5), "row 0: 5, and 0 to 4"),
    "said before the first": (lambda t: but_first(t, "said", -1), "column said, row 0: -1"),
    "a fact without a name": (lambda t: but_first(t, "side", 2), "column side, row 0: 2, and 0 to"),
    "no number": (lambda t: but_first(t, "word", None), "column word: 1 rows have none"),
    "a fraction": (
        lambda t: column(t, "moves", [float("nan")] * len(t)),
        "column moves: double, and integers were expected",
    ),
    "sentences": (lambda t: column(t, "word", ["left"] * len(t)), "column word: string"),
    "another seed": (lambda t: but_first(t, "seed", 4), "holds other episodes"),
    "another episode": (lambda t: but_first(t, "episode", 9), "holds other episodes"),
    "another order": (lambda t: t.take(list(range(len(t)))[::-1]), "not in the order"),
    "text for pictures": (lambda t: column(t, "image", ["a"] * len(t)), "pictures were expected"),
    "no picture": (image(None), "picture 0 is no picture"),
    "half a picture": (image(picture(28, 28)[:60]), "picture 0 is no picture"),
    "another size": (image(picture(29, 28)), "picture 0: 29 x 28 pixels; 28 x 28 expected"),
    "a bomb": (image(bomb()), "picture 0: 100000 x 100000 pixels|is no picture"),
    "another kind": (image(picture(28, 28, "TIFF")), "is no picture"),
}


@pytest.mark.parametrize("damage", TABLES)
def test_rows_that_nobody_collected(mine, damage: str):
    recipe, folder = mine
    change, message = TABLES[damage]
    pq.write_table(change(pq.read_table(folder / SHARD)), folder / SHARD)
    with pytest.raises(UserError, match=message) as refused:
        read_demonstrations(recipe)
    assert "demonstrations" in str(refused.value) and len(str(refused.value)) < 500


def test_every_damage_to_a_file_is_noticed(mine):
    recipe, folder = mine
    before = read_demonstrations(recipe)
    path = folder / SHARD
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = [whole[: int(share * len(whole))] for share in (0, 0.5, 0.99)]
    damaged.append(bytes(len(whole)))
    for bit in rng.integers(0, 8 * len(whole), 40).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        damaged.append(bytes(data))
    harmless = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            read = read_demonstrations(recipe)
        except UserError:
            continue
        # In a column's statistics, or a name that nobody reads: what is learnt is the same.
        harmless += 1
        assert np.array_equal(read.observations.frames, before.observations.frames)
        assert np.array_equal(read.observations.facts, before.observations.facts)
        assert np.array_equal(read.actions, before.actions)
    assert harmless < 25  # of 44; most of so small a file is about its columns
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="no plain file"):
        read_episodes(recipe)
    path.unlink()
    with pytest.raises(UserError, match="0 of num_demo_episodes"):
        read_episodes(recipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "holds no settings"),
        ('{"format_version": "x"}', "holds no settings"),
        ("{}", "were made with another"),
    ],
)
def test_settings_that_are_none(mine, settings: str, message: str):
    recipe, folder = mine
    (folder / SETTINGS_FILE).write_text(settings)
    with pytest.raises(UserError, match=message):
        read_demonstrations(recipe)


def test_a_setting_of_the_world_that_is_not_told_is_another_one(mine):
    recipe, folder = mine
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    del settings["action_words"]
    (folder / SETTINGS_FILE).write_text(json.dumps(settings))
    with pytest.raises(UserError, match="made with another action_words"):
        read_demonstrations(recipe)


def test_an_expert_that_is_stopped_is_not_waited_for_without_end(whole):
    recipe = Recipe.load(whole[0], **SETTINGS)
    played = play_in_parallel(recipe.env, list(range(4000)), workers=1, timeout=3)
    next(played)
    (worker,) = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    worker.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(UserError, match="has given nothing for 3 s"):
        list(played)
    assert time.monotonic() - began < 30
    worker.wait(10)
