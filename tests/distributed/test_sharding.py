"""DDP, ZeRO and FSDP2 with two processes on the CPU: the same numbers, and each other's files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.torch import load_file

from tests.conftest import ROOT

SCRIPT = ROOT / "tests" / "distributed" / "sharded.py"
LONG = "zero2"
CONFIGS = {"ddp": "cpu_2proc", "zero2": "zero2", "zero3": "zero3", "fsdp2": "fsdp2"}
EACH = [pytest.param(one, marks=[pytest.mark.long] * (one == LONG)) for one in CONFIGS]


@pytest.fixture
def shardings(request) -> list[str]:
    return [one for one in CONFIGS if one != LONG or request.config.getoption("long")]


def launch(sharding: str, folder: Path, *words: str) -> None:
    """Run the script in two processes, or alone."""
    folder.mkdir()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environ.pop("WORLD_SIZE", None)
    command = [sys.executable, str(SCRIPT), str(folder), *words]
    if sharding != "one":
        config = str(ROOT / "accelerate_configs" / f"{CONFIGS[sharding]}.yaml")
        launcher = ["-m", "accelerate.commands.launch", "--config_file", config]
        launcher += ["--num_processes", "2", "--main_process_port", "0"]
        command = [sys.executable, *launcher, *command[1:]]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder that all workers of pytest share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sharded"
    folder.mkdir(exist_ok=True)
    return folder


def made(folder: Path, sharding: str, form: str = "full") -> Path:
    """What one process gives, or two: made once, by whichever test needs it first."""
    path = folder / f"{sharding}_{form}"
    others = [made(folder, "one")] if form == "full" and sharding != "one" else []
    with FileLock(folder / f"{path.name}.lock"):
        if not path.exists():
            launch(sharding, path, form, *map(str, others))
    return path


def distance(one: Path, other: Path, but: str = "nothing") -> float:
    """The largest difference of any two numbers of two files, but for those of a name."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a if but not in k)


def check_the_same(here: Path, there: Path) -> None:
    """Two files hold the same, up to rounding.

    The value head also has passes of its own, with an Adam whose ``eps`` of 1e-8 makes more of it.
    """
    assert distance(here, there, but="value_head") < 5e-6
    assert distance(here, there) < 1e-4


def check_all_the_same(here: Path, one: Path) -> None:
    for name in ("first", "first_optimizer", "then", "then_optimizer"):
        check_the_same(here / f"{name}.safetensors", one / f"{name}.safetensors")
    assert distance(here / "then.safetensors", here / "first.safetensors", "value_head") > 1e-4


@pytest.mark.parametrize("sharding", EACH)
def test_two_processes_learn_what_one_does(sharding: str, folder: Path):
    check_all_the_same(made(folder, sharding), made(folder, "one"))


@pytest.mark.long
@pytest.mark.parametrize("sharding", ["ddp", "zero3"])
def test_so_they_do_with_adapters(sharding: str, folder: Path):
    check_all_the_same(made(folder, sharding, "lora"), made(folder, "one", "lora"))


@pytest.mark.parametrize("sharding", EACH)
def test_a_checkpoint_gives_the_same_again(sharding: str, folder: Path):
    here = made(folder, sharding)
    error = distance(here / "again.safetensors", here / "then.safetensors")
    assert error == 0 if sharding == "ddp" else error < 1e-6


@pytest.mark.parametrize("sharding", EACH)
def test_they_go_on_from_what_one_process_wrote(sharding: str, folder: Path):
    here, one = made(folder, sharding), made(folder, "one")
    check_the_same(here / "from_one_full.safetensors", one / "then.safetensors")


def test_one_process_goes_on_from_what_each_of_them_wrote(folder: Path, shardings: list[str]):
    wrote = [made(folder, sharding) for sharding in shardings]
    launch("one", folder / "reader", "full", *map(str, wrote))
    for path in wrote:
        read = folder / "reader" / f"from_{path.name}.safetensors"
        check_the_same(read, path / "then.safetensors")


def test_weights_are_divided(folder: Path, shardings: list[str]):
    for sharding in shardings:
        files = [made(folder, sharding) / f"rank{rank}.json" for rank in (0, 1)]
        held = [json.loads(file.read_text())["held"] for file in files]
        if sharding in ("zero3", "fsdp2"):
            assert max(held) < 0.55, "each process has half of them"
        else:
            assert held == [1, 1]
