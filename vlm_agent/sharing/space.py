"""A folder that is a Space of the Hugging Face hub: a policy, and the page on which to play it."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from huggingface_hub import RepoCard
from packaging.requirements import Requirement

import vlm_agent
from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import known_settings
from vlm_agent.common.whole import whole_folder
from vlm_agent.policy.artifact import saved_recipe
from vlm_agent.sharing.publish import write_public
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.modules import foreign_modules

PACKAGE = Path(vlm_agent.__file__).parent
ASSETS = Path(__file__).parent / "assets"


def write_space(name: str, repository: str, output: Path, licence: str = "apache-2.0") -> Path:
    """Write a Space: the policy without places of this machine, the package, and what runs it.

    Args:
        name: The policy, as it is loaded.
        repository: The Space's name on the hub, ``USER/NAME``.
        output: A new folder.
        licence: Of the weights.

    Raises:
        UserError: There is no such policy, a name that the hub would refuse, or a world that is
            not the package's own.
    """
    env = EnvConfig(**known_settings(EnvConfig, saved_recipe(name)))
    if code := foreign_modules(env.modules):
        raise UserError(f"space: the policy's world is code of yours, which it lacks: {code[0]}")
    with whole_folder(output) as partial:
        write_public(name, repository, partial / "policy", licence=licence)
        ignore = shutil.ignore_patterns("__pycache__", "policies", "results")
        shutil.copytree(PACKAGE, partial / "vlm_agent", ignore=ignore)
        (partial / "requirements.txt").write_text(requirements())
        shutil.copy(ASSETS / "Dockerfile", partial)
        about = {"title": repository.partition("/")[2], "world": env.name, "licence": licence}
        card = RepoCard((ASSETS / "space.md").read_text().format(**about))
        card.save(partial / "README.md")
    return output


def requirements() -> str:
    """What the package needs, in the versions that are installed here; torch for a CPU."""
    needs = [Requirement(need) for need in importlib.metadata.requires("vlm-agent") or []]
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu"]
    for need in sorted(needs, key=lambda need: need.name):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            version = importlib.metadata.version(need.name).split("+")[0]
            lines.append(f"{need.name}=={version}")
    return "\n".join(lines) + "\n"
