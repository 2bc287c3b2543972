import os

import pytest

from vlm_agent.cli.entry import run_command
from vlm_agent.common.errors import UserError


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


def test_threads_wait_without_spinning_unless_told_otherwise(monkeypatch):
    seen = []
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert run_command(lambda: seen.append(os.environ["OMP_WAIT_POLICY"])) == 0
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run_command(lambda: seen.append(os.environ["OMP_WAIT_POLICY"]))
    assert seen == ["PASSIVE", "ACTIVE"]
