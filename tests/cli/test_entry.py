import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from vlm_agent.cli.entry import run_command
from vlm_agent.common.errors import TrainingError, UserError
from vlm_agent.world.pool.worker import Frames


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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
def test_a_lack_of_memory_says_what_takes_less(error: Exception, capsys):
    def main():
        raise error

    assert run_command(main) == 1
    said = capsys.readouterr().err
    assert "not enough memory: " in said and "micro_batch_size" in said and "More of it" not in said


def test_no_room_in_shared_memory_is_a_sentence(monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system", "/dev/shm/pym")

    monkeypatch.setattr("multiprocessing.heap.Arena.__init__", refuse)
    with pytest.raises(UserError, match=r"num_envs: no room in shared memory for 3 .*Read-only"):
        Frames.allocate(3, (4096, 4096, 3))


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
