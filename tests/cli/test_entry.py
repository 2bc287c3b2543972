import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from vlm_agent.cli.entry import run_command
from vlm_agent.common.errors import TrainingError, UserError


def test_user_errors_become_a_message_and_exit_code_2(capsys):
    def main():
        raise UserError("gamma: 2 is too much")

    assert run_command(main) == 2
    assert capsys.readouterr().err == "vlm-agent: error: gamma: 2 is too much\n"


def test_other_errors_keep_their_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)


def test_ctrl_c_ends_quietly(capsys):
    def main():
        raise KeyboardInterrupt

    assert run_command(main) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_run_that_cannot_go_on_is_a_message_and_exit_code_1(capsys):
    def main():
        raise TrainingError("the loss is nan in update 3")

    assert run_command(main) == 1
    assert capsys.readouterr().err == "\nvlm-agent: the run stopped: the loss is nan in update 3\n"


def import_first(code: str, **variables: str) -> tuple[str, str]:
    """What a fresh process prints, and what it warns of."""
    environ = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | variables
    show = "; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    child = subprocess.run(
        [sys.executable, "-c", f"import os, sys; {code}{show}"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.strip(), child.stderr


def test_whoever_imports_the_package_first_has_threads_that_sleep():
    assert import_first("import vlm_agent") == ("PASSIVE False", "")
    assert import_first("import vlm_agent", OMP_WAIT_POLICY="ACTIVE") == ("ACTIVE False", "")


def test_whoever_imports_torch_first_is_told_what_to_do():
    said, warned = import_first("import torch, vlm_agent")
    assert said == "PASSIVE True"  # for the processes that it starts
    assert "UserWarning: torch was imported before vlm_agent" in warned
    assert "import vlm_agent first, or set OMP_WAIT_POLICY=PASSIVE" in warned
    _, warned = import_first("import torch, vlm_agent", OMP_WAIT_POLICY="ACTIVE")
    assert warned == ""
