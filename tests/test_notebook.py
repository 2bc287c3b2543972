"""The examples of docs/library.md and docs/first-run.ipynb, but smaller."""

import contextlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

SMALLER = (
    "total_timesteps=64, num_envs=2, rollout_steps=16, batch_size=16, num_eval_episodes=2, "
    'horizon=5, report_to="none", num_workers=1'
)

WHOLE_LINES = """
import sys

def print(*what):
    sys.stdout.write(" ".join(map(str, what)) + "\\n")

"""
"""Python writes a line in pieces, and those of two processes would mix."""


@pytest.fixture
def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "PPOTrainer(" in block]
    smaller = block.replace("total_timesteps=512", SMALLER).replace("episodes=20", "episodes=2")
    assert smaller.count("64") == smaller.count("episodes=2)") == 1
    return smaller


def run(command: list[str], folder: Path) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_in_one_process(example: str, tmp_path: Path, capsys):
    with contextlib.chdir(tmp_path):
        exec(compile(example, "library.md", "exec"), {"__name__": "notebook"})
    update, *_, success, word = capsys.readouterr().out.splitlines()
    assert update.startswith("32 ")
    assert 0 <= float(success) <= 1
    assert "{'a little forward': 0." in word
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"quick_best", "quick_step64"}
    assert len((tmp_path / "runs/quick/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.long
def test_it_runs_in_two_processes(example: str, tmp_path: Path):
    script = tmp_path / "example.py"
    body = textwrap.indent(example, "    ")
    script.write_text(
        f"{WHOLE_LINES}def main():\n{body}\n\nif __name__ == '__main__':\n    main()\n"
    )
    config = str(ROOT / "accelerate_configs" / "cpu_2proc.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    said = run([*launch, "--main_process_port", "0", str(script)], tmp_path).splitlines()
    assert len([line for line in said if line.startswith("64 ")]) == 2  # each says so, once
    assert len({line for line in said if re.fullmatch(r"[01]\.\d+", line)}) == 1  # and agrees
    assert len((tmp_path / "runs/quick/metrics.jsonl").read_text().splitlines()) == 1


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path, capsys, monkeypatch):
    """``make notebook`` does so with its own numbers, in Jupyter."""
    shown: list[bytes] = []
    display = ModuleType("IPython.display")
    display.Image = lambda data: shown.append(data)
    package = ModuleType("IPython")
    package.get_ipython, package.version_info = lambda: None, (9, 0)  # matplotlib asks for them
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    cells = json.loads((ROOT / "docs" / "first-run.ipynb").read_text())["cells"]
    names = {"__name__": "notebook"}
    with contextlib.chdir(tmp_path):
        for cell in cells:
            if cell["cell_type"] == "code":
                source = "".join(cell["source"]).replace("num_episodes=50", "num_episodes=2")
                source = source.replace("num_eval_episodes=0", f"**dict({SMALLER})")
                source = source.replace(', report_to="none", **', ", **")
                exec(compile(source, "first-run.ipynb", "exec"), names)
    said = capsys.readouterr().out
    assert "far forward" in said and "solved" in said and "p = " in said
    assert shown[0].startswith(b"GIF89a")
