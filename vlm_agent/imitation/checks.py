"""What a warm start cannot do, and what it can go on from."""

from __future__ import annotations

from pathlib import Path

from vlm_agent.common.errors import UserError
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.checkpoints import load_trainer_state
from vlm_agent.runs.folders import RunFolders


def check_warm_start(recipe: Recipe) -> None:
    """Refuse a recipe that asks for what only PPO does.

    Raises:
        UserError: Naming the key.
    """
    if recipe.model.mask_senseless_words:
        raise UserError(
            "mask_senseless_words: a warm start learns all of the expert's words; "
            "set it for PPO and evaluation"
        )


def learnt_stages(folders: RunFolders, folder: Path, processes: int) -> dict[int, Path]:
    """The checkpoints of all stages up to one of them.

    Args:
        folders: The run's.
        folder: The checkpoint to go on from.
        processes: How many run now.

    Raises:
        UserError: It was written by another number of processes, or one before it is missing.
    """
    state = load_trainer_state(folder)
    if state["processes"] != processes:
        raise UserError(
            f"resume_from: {folder} is of {state['processes']} processes, now there are {processes}"
        )
    written = {load_trainer_state(path)["stage"]: path for path in folders.steps()}
    found = {stage: path for stage, path in written.items() if stage <= state["stage"]}
    if lacking := set(range(state["stage"])) - set(found):
        before = f"round {min(lacking)} of DAgger" if min(lacking) else "the demonstrations"
        raise UserError(
            f"resume_from: to go on from {folder}, the checkpoint that {before} left is needed "
            "too, and it is gone"
        )
    return found
