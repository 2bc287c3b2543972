"""A newcomer: a fresh clone, a fresh environment, and every command of the README as it stands.

``make newcomer`` runs it; ``ARGS=--short`` leaves out what takes longer than ten minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from tests.conftest import ROOT
from tests.test_readme import shell_lines

LONG = ("make test", "make full MODEL=tiny")
PAGE = "http://127.0.0.1:7860"
NO_HUB = "from the Hugging Face hub"
"""What is said where there is no hub; that is an answer, too."""

TYPED = """
cd "$(cat {folder}/cwd)"; [ -f {folder}/state ] && source {folder}/state
{command}
code=$?; export -p > {folder}/state; pwd > {folder}/cwd; exit $code
"""
"""A command in a shell that knows what those before it left: the folder, the environment."""


def main() -> int:
    """Type all of it; the number of commands that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="leave out what takes long")
    short = parser.parse_args().short
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder, clone = Path(name), Path(name) / "vlm-agent"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        (folder / "cwd").write_text(f"{clone}\n")
        for command in shell_lines((clone / "README.md").read_text()):
            if short and command.startswith(LONG):
                print(f"left out: {command}", flush=True)
                continue
            print(f"$ {command}", flush=True)
            began = time.monotonic()
            if not typed(command, folder):
                failed.append(command)
            print(f"[{time.monotonic() - began:.0f} s]", flush=True)
    for command in failed:
        print(f"FAILED: {command}")
    return len(failed)


def typed(command: str, folder: Path) -> bool:
    """Whether a command does what the README says it does."""
    script = TYPED.format(folder=folder, command=command)
    # Nothing of the environment in which this runs may be known to the newcomer.
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "HF_HUB_OFFLINE")
    environ = {key: value for key, value in os.environ.items() if key not in hidden}
    environ["PATH"] = os.pathsep.join(
        part for part in environ["PATH"].split(os.pathsep) if str(ROOT) not in part
    )
    log = folder / "log"
    with log.open("w") as file:
        done = subprocess.Popen(
            ["bash", "-c", script], env=environ, stdout=file, stderr=file, start_new_session=True
        )
        if " play" in command:
            is_right = page_answers()
            os.killpg(done.pid, signal.SIGTERM)
            done.wait(60)
        else:
            code = done.wait()
            is_right = code == 0 or (command == "make full" and NO_HUB in log.read_text())
    if not is_right:
        print(log.read_text()[-4000:])
    return is_right


def page_answers(seconds: float = 60) -> bool:
    """Whether a page is served, sooner or later."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            return requests.get(PAGE, timeout=5).status_code == 200
        except requests.ConnectionError:
            time.sleep(0.5)
    return False


if __name__ == "__main__":
    sys.exit(main())
