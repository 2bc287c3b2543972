"""What a warm start goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vlm_agent.common.errors import UserError
from vlm_agent.distributed.learner import Learner
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.checkpoints import load_trainer_state
from vlm_agent.runs.folders import OPTIMIZER_FILE, RunFolders, delete_checkpoint


@dataclass(frozen=True)
class Within:
    """A stage that a run was stopped in.

    Attributes:
        stage: Its number.
        folder: The last checkpoint.
        lessons: How far each process came, see :meth:`Lesson.state_dict`.
    """

    stage: int
    folder: Path
    lessons: list[dict[str, Any]]


NOWHERE = Within(-1, Path(), [])


def within_stage(folder: Path, state: dict[str, Any]) -> Within:
    """The stage in which a checkpoint was written; ``NOWHERE`` for one of a whole stage."""
    within = state.get("within")
    return Within(within["stage"], folder, within["lessons"]) if within else NOWHERE


def forget_passes(folders: RunFolders, latest: Path) -> None:
    """Delete a run's checkpoints from between two batches, but for the latest one.

    Callbacks save where a pass ends: those are theirs.
    """
    for path in folders.steps():
        within = within_stage(path, load_trainer_state(path))
        if path != latest and any(lesson["seen"] for lesson in within.lessons):
            delete_checkpoint(path)


def learnt_stages(
    folders: RunFolders, folder: Path, recipe: Recipe, processes: int
) -> dict[int, Path]:
    """The checkpoints of all whole stages up to one of them.

    Args:
        folders: The run's.
        folder: The checkpoint to go on from.
        recipe: The run.
        processes: How many run now.

    Raises:
        UserError: It was not written by this warm start's stages, or by another number of
            processes, or the checkpoint of a stage before it is gone.
    """
    state = load_trainer_state(folder)
    if "stage" not in state:
        raise UserError(f"resume_from: {folder} is of a run of PPO: go on with vlm_agent.train")
    stage, wrote = state["stage"], state["processes"]
    within = within_stage(folder, state)
    if stage is None and within is NOWHERE:
        raise UserError(f"resume_from: {folder} does not say how far the warm start had come")
    stage = within.stage - 1 if stage is None else stage
    if stage > recipe.imitation.dagger_rounds:
        raise UserError(
            f"dagger_rounds: {recipe.imitation.dagger_rounds} is less than the {stage} rounds that "
            f"{folder} has had"
        )
    if wrote != processes:
        raise UserError(f"resume_from: {folder} is of {wrote} processes, now there are {processes}")
    # The main process may be deleting later ones.
    later = folders.steps(after=state["timesteps"])
    before = [path for path in folders.steps() if path not in later]
    written = {load_trainer_state(path)["stage"]: path for path in before}
    found = {number: path for number, path in written.items() if number is not None}
    if lacking := set(range(stage + 1)) - set(found):
        left = f"round {min(lacking)} of DAgger" if min(lacking) else "the demonstrations"
        raise UserError(
            f"resume_from: to go on from {folder}, the checkpoint that {left} left is needed too, "
            "and it is gone"
        )
    return found


def restore(learner: Learner, folder: Path) -> None:
    """Have a policy and its optimiser be as a stage left them.

    Args:
        learner: Of the policy; what of it is not trained stays as it is.
        folder: The checkpoint.
    """
    saved = dict(VLMPolicy.from_pretrained(folder).named_parameters())
    with torch.no_grad():
        for name, parameter in learner.module.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name])
    learner.take_over()
    learner.load_optimizer_state(load_file(folder / OPTIMIZER_FILE))
