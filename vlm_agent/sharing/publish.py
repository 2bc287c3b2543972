"""A policy's folder as others are to have it: with a card, and without places of this machine."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import known_settings
from vlm_agent.common.whole import whole_folder
from vlm_agent.policy.artifact import RECIPE_FILE, write_policy
from vlm_agent.policy.places import policy_folder
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.checkpoints import STATE_FILE
from vlm_agent.runs.folders import RunFolders
from vlm_agent.sharing.card import model_card
from vlm_agent.world.config import EnvConfig

CHECKPOINT = re.compile(r"(.+)_(?:best|final|step\d+)")


@dataclass(frozen=True)
class Beside:
    """What a run left of a policy.

    Attributes:
        timesteps: How many words it was trained for; ``None`` if nobody knows.
        evaluation: What its evaluation wrote.
        files: Name -> where it lies.
    """

    timesteps: int | None
    evaluation: dict[str, Any] | None
    files: dict[str, Path]


def what_lies_beside(folder: Path) -> Beside:
    """What the run of a checkpoint left of it: its evaluation, curves, a film."""
    match = CHECKPOINT.fullmatch(folder.resolve().name)
    try:
        timesteps = json.loads((folder / STATE_FILE).read_text()).get("timesteps")
    except (OSError, ValueError):
        timesteps = None
    if match is None:
        return Beside(timesteps, None, {})
    run = folder.resolve().parents[1] / "runs" / match[1]
    files = {"curves.png": run / "curves.png"}
    if _last_words(run) == timesteps:
        files["film.mp4"] = run / "after.mp4"
    measured = run / "evaluations" / f"{timesteps}.json"
    evaluation = json.loads(measured.read_text()) if measured.is_file() else None
    return Beside(timesteps, evaluation, {n: path for n, path in files.items() if path.is_file()})


def _last_words(run: Path) -> int | None:
    """After how many words a run was evaluated last: its film is of that policy."""
    numbers = [path.stem for path in (run / "evaluations").glob("*.json")]
    return max((int(number) for number in numbers if number.isdecimal()), default=None)


def check_repository(repository: str, key: str = "repository") -> None:
    """Refuse a name that the hub would refuse.

    Raises:
        UserError: Naming the key.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{key}: {error}") from None
    if "/" not in repository:
        raise UserError(f"{key}: {repository!r}: expected USER/NAME")


def check_push_to_hub(recipe: Recipe) -> None:
    """Find out, before a run begins, whether its policy could be pushed at its end.

    Raises:
        UserError: The hub does not know who asks, or cannot be reached.
    """
    if (repository := recipe.tracking.push_to_hub) is None:
        return
    check_repository(repository, "push_to_hub")
    api = HfApi()
    try:
        api.whoami()
    except Exception as error:  # of its HTTP library, too
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"push_to_hub: {api.endpoint} does not know you: {reason}; log in (hf auth login), or "
            "leave it out and push afterwards: vlm-agent push"
        ) from None


def push_run(recipe: Recipe) -> str | None:
    """Put the policy that a run left on the hub, if its recipe says so: its best one, or its last.

    Returns:
        Its address.

    Raises:
        UserError: The hub refuses; the policy lies where it was.
    """
    if (repository := recipe.tracking.push_to_hub) is None:
        return None
    folders = RunFolders(recipe)
    places = [folders.best, folders.final, *reversed(folders.steps())]
    policy = next(place for place in places if place.is_dir())
    try:
        with tempfile.TemporaryDirectory() as folder:
            public = write_public(str(policy), repository, Path(folder) / "policy")
            return push(public, repository, recipe.tracking.hub_private_repo)
    except UserError as error:
        raise UserError(f"{error}; for another try: vlm-agent push {policy} {repository}") from None


def write_public(
    name: str,
    repository: str,
    output: Path,
    evaluation: dict[str, Any] | None = None,
    licence: str = "apache-2.0",
) -> Path:
    """Write a policy's folder for others.

    Args:
        name: The policy, as it is loaded.
        repository: Its name on the hub.
        output: A new folder.
        evaluation: What an evaluation wrote; by default what its run measured.
        licence: Of the weights.

    Raises:
        UserError: There is no such policy, or a name that the hub would refuse.
    """
    check_repository(repository)
    folder = policy_folder(name)
    policy = VLMPolicy.from_pretrained(folder)
    beside = what_lies_beside(folder)
    evaluation = evaluation or beside.evaluation
    files = tuple(beside.files)
    env = known_settings(EnvConfig, policy.recipe)
    with whole_folder(output) as partial:
        write_policy(policy, partial, is_public=True)
        if evaluation is not None:
            told = {"env": env, **evaluation, "policy": repository}
            (partial / "evaluation.json").write_text(json.dumps(told) + "\n")
        for file, path in beside.files.items():
            shutil.copy(path, partial / file)
        recipe = json.loads((partial / RECIPE_FILE).read_text())
        card = model_card(policy, repository, recipe, evaluation, beside.timesteps, files, licence)
        card.save(partial / "README.md")
    return output


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Put a folder on the hub.

    Args:
        folder: What :func:`write_public` wrote.
        repository: ``USER/NAME``; made if it is not there.
        private: Whether others may not see it.

    Returns:
        Its address.

    Raises:
        UserError: The hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise UserError(f"push: {repository} is there, and public: make it private first")
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="A policy of vlm-agent"
        )
    except UserError:
        raise
    except Exception as error:  # of its HTTP library, too
        reason = " ".join(str(error).split())[:400]
        raise UserError(
            f"push: {repository}: {reason}; are you logged in (hf auth login), and can "
            f"{api.endpoint} be reached?"
        ) from None
    return f"{api.endpoint}/{repository}"
