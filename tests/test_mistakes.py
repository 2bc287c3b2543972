"""The likeliest mistakes: each is made, and said to be what docs/troubleshooting.md says it is."""

import contextlib
import ctypes.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from vlm_agent.cli.entry import run_command
from vlm_agent.cli.main import main
from vlm_agent.play.server import HERE

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
MISTAKES = dict(re.findall(r"^```console\n\$ (.+?)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
GOES_ON = {
    "--load_in_4bit": {"total_timesteps": 16},
    "--report_to wandb": {"total_timesteps": 16},
}
"""Mistakes with which a run goes on, and how it is made short."""

SHORT = {"num_envs": 2, "rollout_steps": 8, "num_eval_episodes": 0, "num_workers": 1}
SHORT |= {"batch_size": 16, "report_episodes": 0}


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """Type a command in a folder of one's own: its exit code, and what stands in the terminal."""
    (tmp_path / "mine.jinja").write_text("Where is the can? {{ actions }}\n")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    kept |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    kept |= {"NETRC": str(tmp_path / "netrc"), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def type_it(line: str) -> tuple[int, str]:
        variables, _, words = line.partition("vlm-agent ")
        if "quick" in words and not variables:  # it needs no environment of its own: sooner so
            with contextlib.chdir(tmp_path):
                code = run_command(lambda: main(shlex.split(words)))
            return code, "".join(capsys.readouterr())
        environ = kept | dict(word.split("=") for word in variables.split())
        command = [sys.executable, "-m", "vlm_agent.cli", *shlex.split(words)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200
        )
        return done.returncode, done.stdout + done.stderr

    return type_it


def flat(text: str) -> str:
    return " ".join(text.split())


def test_there_are_ten():
    assert len(MISTAKES) + PAGE.count("```text\nvlm-agent: the run stopped") == 10


@pytest.mark.parametrize("line", [line for line in MISTAKES if "--port" not in line])
def test_a_mistake_is_answered_with_what_the_page_says(line: str, say):
    if "osmesa" in line and ctypes.util.find_library("OSMesa"):
        pytest.skip("OSMesa is here")
    short = next((more for mistake, more in GOES_ON.items() if mistake in line), None)
    typed = line
    if short is not None:
        typed += "".join(f" --{key} {value}" for key, value in {**SHORT, **short}.items())
    code, said = say(typed)
    assert code == (2 if short is None else 0), said
    assert flat(MISTAKES[line]) in flat(said)
    assert "Traceback" not in said


def test_a_port_that_is_taken(say):
    (line,) = [line for line in MISTAKES if "--port" in line]
    place = HERE.open_port(0)
    port = str(place.getsockname()[1])
    code, said = say(line.replace("7860", port))
    place.close()
    assert (code, flat(said)) == (2, flat(MISTAKES[line].replace("7860", port)))


def test_out_of_memory(capsys):
    (said,) = re.findall(r"^```text\n(vlm-agent: the run stopped.*?)\n```", PAGE, re.M | re.S)
    before, _, reason = said.partition("not enough memory: ")
    after = reason.partition(". Less")[2]
    assert run_command(lambda: len(np.empty(10**15))) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith(f"{before}not enough memory: Unable to allocate")
    assert told.endswith(f". Less{after}")
