"""Checkpoints are whole or absent, and a damaged one is never taken for a whole one."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.short_runs import trainer_for
from vlm_agent import VLMPolicy
from vlm_agent.common import whole
from vlm_agent.common.errors import UserError
from vlm_agent.common.whole import check_whole, whole_folder, write_whole
from vlm_agent.runs.checkpoints import save_checkpoint
from vlm_agent.runs.folders import RunFolders


@pytest.fixture
def run(tmp_path: Path, recipe_for) -> RunFolders:
    """A run with two checkpoints."""
    settings = {"use_peft": True, "total_timesteps": 64, "save_freq": 32, "num_eval_episodes": 2}
    recipe = recipe_for(output_dir=str(tmp_path / "run"), **settings)
    trainer_for(recipe).train()
    return RunFolders(recipe)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def damages(path: Path, others: Path) -> Iterator[str]:
    """Damages a file in one way after the other; whoever looks has to mend it in between."""
    original, size = path.read_bytes(), path.stat().st_size
    for share in (0, 0.5, 0.99):
        os.truncate(path, int(share * size))
        yield f"cut to {share}"
    rng = np.random.default_rng(size)
    for bit in rng.integers(0, 8 * size, 20).tolist():
        flip(path, bit)
        yield f"bit {bit}"
    path.unlink()
    yield "deleted"
    path.write_bytes(bytes(size))
    yield "zeros"
    shutil.copy(others / path.name, path)
    if path.read_bytes() != original:  # some are the same in all of a run's checkpoints
        yield "another checkpoint's"


def test_every_damage_is_noticed_and_the_one_before_is_taken(
    run: RunFolders, tmp_path: Path, recipe_for, caplog
):
    first, latest = run.steps()
    recipe = recipe_for(output_dir=str(tmp_path / "mine"), resume_from="latest")
    folders = RunFolders(recipe)
    shutil.copytree(first, folders.checkpoints / first.name)
    mine = folders.checkpoints / latest.name
    shutil.copytree(latest, mine)
    names = sorted(path.name for path in latest.iterdir() if path.name != "README.md")
    assert {"manifest.json", "optimizer.safetensors", "trainer_state.json"} <= set(names)
    noticed = 0
    for name in names:
        for damage in damages(mine / name, first):
            if (mine / name).is_file() and (mine / name).read_bytes() == (
                latest / name
            ).read_bytes():
                continue  # the same in both
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                assert folders.resume_folder(recipe) == folders.checkpoints / first.name, damage
            assert "passed over" in caplog.text and "is not whole" in caplog.text
            with pytest.raises(UserError, match="is not whole|no policy|is no JSON"):
                VLMPolicy.from_pretrained(mine)
            shutil.copy(latest / name, mine / name)
            noticed += 1
    assert noticed > 25 * (len(names) - 3)
    assert folders.resume_folder(recipe) == mine
    for path in folders.steps():
        flip(path / "trainer_state.json", 3)
    with pytest.raises(UserError, match="resume_from: no checkpoint .* is whole: .*trainer_state"):
        folders.resume_folder(recipe)


class Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


class Fault:
    """Raises at the n-th call of what a save asks the system for."""

    CALLS = ("fsync", "open", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.error, self.left = error, 0
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))
        monkeypatch.setattr(whole, "_exchange", self.wrapped(whole._exchange))

    def wrapped(self, function):
        def call(*arguments, **options):
            if self.left > 0:
                self.left -= 1
                if self.left == 0:
                    raise self.error
            return function(*arguments, **options)

        return call


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("kind", ["killed", "disk full"])
def test_a_save_that_is_stopped_anywhere_leaves_the_former_or_the_new_one(
    kind: str, can_exchange: bool, tmp_path: Path, make_policy, monkeypatch
):
    policy, folder = make_policy(use_peft=True), tmp_path / "checkpoints" / "run_best"
    save_checkpoint(folder, policy, {"timesteps": 0})
    if not can_exchange:
        monkeypatch.setattr(whole, "_exchange", lambda *_: False)
    error = Killed() if kind == "killed" else OSError(errno.ENOSPC, "No space left on device")
    fault = Fault(monkeypatch, error)
    stopped = 0
    for number in range(1, 400, 3):
        fault.left = number
        try:
            save_checkpoint(folder, policy, {"timesteps": number})
            if fault.left > 0:
                break  # there was no call of that number
        except Killed:
            pass
        except UserError as problem:
            assert "run_best" in str(problem) and "MB free" in str(problem)
        stopped += 1
        if can_exchange or folder.exists():
            check_whole(folder)
        else:  # a file system that cannot exchange: the former one is there, by another name
            check_whole(folder.with_name(".run_best.former"))
        if kind == "disk full":
            assert folder.exists()
            assert [path.name for path in folder.parent.glob("[!.]*")] == ["run_best"]
    assert stopped > 10
    check_whole(folder)
    assert VLMPolicy.from_pretrained(folder).words == policy.words
    assert [path.name for path in folder.parent.iterdir()] == ["run_best"]


def test_a_file_is_as_before_until_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "one")
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(UserError, match=r"cannot write '.*a\.json': No space .* MB free"):
        write_whole(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_for_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "made") as folder:
            (folder / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "made" / "weights").stat().st_mode & 0o777 == 0o640
    check_whole(tmp_path / "made")


def test_what_a_killed_process_left_half_is_gone_after_a_restart(recipe_for, tmp_path):
    settings = {"output_dir": str(tmp_path), "total_timesteps": 64, "save_freq": 32}
    trainer_for(recipe_for(**settings)).train()
    folders = RunFolders(recipe_for(**settings))
    half = [
        folders.checkpoints / ".vlm-agent_step48.partial",
        folders.run / ".summary.json.partial",
    ]
    others = folders.checkpoints / ".other_step48.partial"
    for path in (half[0], others):
        path.mkdir()
        (path / "model.safetensors").touch()
    half[1].touch()
    again = recipe_for(**settings, resume_from="latest")
    trainer = trainer_for(again, VLMPolicy.from_pretrained(folders.steps()[-1]))
    trainer.resume(folders.steps()[-1])
    trainer.train()
    assert not any(path.exists() for path in half)
    assert others.exists()  # it may be another run's, that is being written now
