"""Checkpoints: a folder that can be evaluated alone, and what is needed to go on training."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from vlm_agent.common.errors import UserError
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.world.config import EnvConfig

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.pt"
PARTIAL = ".partial"
"""What the name of a folder ends in that is being written or deleted."""


class RunFolders:
    """Where a run writes: ``runs/{run_name}/`` and ``checkpoints/{run_name}_*/``."""

    def __init__(self, recipe: Recipe) -> None:
        self.name = recipe.ppo.run_name
        self.run = Path(recipe.ppo.output_dir) / "runs" / self.name
        self.checkpoints = Path(recipe.ppo.output_dir) / "checkpoints"
        self.metrics = self.run / "metrics.jsonl"
        self.summary = self.run / "summary.json"
        self.curves = self.run / "curves.png"
        self.before = self.run / "before.json"
        self.after = self.run / "after.json"
        self.recipe = self.run / "recipe.yaml"
        self.best = self.checkpoints / f"{self.name}_best"
        self.final = self.checkpoints / f"{self.name}_final"

    def evaluation(self, timesteps: int) -> Path:
        """All episodes of the evaluation after so many timesteps."""
        return self.run / "evaluations" / f"{timesteps}.json"

    def step(self, timesteps: int) -> Path:
        """The checkpoint after so many timesteps."""
        return self.checkpoints / f"{self.name}_step{timesteps}"

    def steps(self, after: int = -1) -> list[Path]:
        """The checkpoints that exist of more than so many timesteps, oldest first."""
        pattern = re.compile(rf"{re.escape(self.name)}_step(\d+)")
        matches = [(pattern.fullmatch(p.name), p) for p in self.checkpoints.glob("*_step*")]
        found = sorted((int(match[1]), path) for match, path in matches if match)
        return [path for timesteps, path in found if timesteps > after]

    def forget_after(self, timesteps: int) -> None:
        """Delete what a run left that went on from here, so that it can go on in another way."""
        # The newest first: what is left when this is interrupted is a run that ended earlier.
        for checkpoint in reversed(self.steps(after=timesteps)):
            partial = checkpoint.with_name(checkpoint.name + PARTIAL)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(checkpoint.rename(partial))
        for path in self.evaluation(0).parent.glob("*.json"):
            if path.stem.isdecimal() and int(path.stem) > timesteps:
                path.unlink()

    def contents(self) -> dict[str, Path]:
        """What a finished run leaves, with a label for each."""
        return {
            "metrics": self.metrics,
            "curves": self.curves,
            "film before": self.before.with_suffix(".mp4"),
            "film after": self.after.with_suffix(".mp4"),
            "summary": self.summary,
            "recipe": self.recipe,
            "wandb": self.run / "wandb",
            "last policy": (self.steps() or [self.step(0)])[-1],
            "best policy": self.best,
            "final policy": self.final,
        }

    def check_new(self, recipe: Recipe) -> None:
        """Refuse to write over an earlier run.

        Raises:
            UserError: A run of this name exists, and the recipe neither resumes nor overwrites it.
        """
        for name in (recipe.model.model_name_or_path, recipe.ppo.init_from or ""):
            base = Path(name).resolve()
            if recipe.ppo.overwrite and base in [path.resolve() for path in self._all()]:
                raise UserError(f"overwrite: this run would delete its own model {str(base)!r}")
        fresh = recipe.ppo.resume_from is None and not recipe.ppo.overwrite
        if fresh and any(path.exists() for path in self._all()):
            raise UserError(
                f"run_name: there is a run {self.name!r} already ({self.run}); choose another "
                "name, or give --resume_from latest or --overwrite true"
            )

    def prepare(self, recipe: Recipe) -> None:
        """Make the run's folder, with the resolved recipe in it, in place of an overwritten one.

        Raises:
            UserError: As for :meth:`check_new`.
        """
        self.check_new(recipe)
        if recipe.ppo.resume_from is None:
            for path in self._all():
                shutil.rmtree(path, ignore_errors=True)
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            self.recipe.write_text(recipe.to_yaml())
        except OSError as error:
            raise UserError(f"output_dir: cannot write to {str(self.run)!r}: {error}") from None

    def _all(self) -> list[Path]:
        return [self.run, self.best, self.final, *self.steps()]

    def resume_folder(self, recipe: Recipe) -> Path | None:
        """The checkpoint to resume from, if the recipe names one.

        Raises:
            UserError: There is none.
        """
        wanted = recipe.ppo.resume_from
        if wanted is None:
            return None
        if wanted == "latest":
            if not self.steps():
                raise UserError(
                    f"resume_from: there is no checkpoint {self.checkpoints / self.name}_step*"
                )
            wanted = str(self.steps()[-1])
        if not (Path(wanted) / OPTIMIZER_FILE).is_file():
            raise UserError(
                f"resume_from: no checkpoint of a run of PPO in {wanted!r} (no {OPTIMIZER_FILE})"
            )
        if Path(wanted).resolve() not in [path.resolve() for path in self.steps()]:
            raise UserError(f"resume_from: {wanted!r} is no checkpoint of the run {self.name!r}")
        return Path(wanted)


def save_checkpoint(
    folder: Path,
    policy: VLMPolicy,
    state: dict[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Write a checkpoint; the folder appears under its name only when it is whole.

    Args:
        folder: Where to.
        policy: Adapter or weights, heads, processor, prompt, words and recipe.
        state: JSON values: what the trainer needs to go on, or how good the policy is.
        optimizer: Its state too, if training is to go on from here.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    policy.save_pretrained(partial)
    (partial / STATE_FILE).write_text(json.dumps(state))
    if optimizer is not None:
        torch.save(optimizer.state_dict(), partial / OPTIMIZER_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def check_same_run(folder: Path, policy: VLMPolicy, recipe: Recipe) -> None:
    """Refuse to resume with a recipe that describes another world or policy.

    What may change is how to learn: learning rates, epochs, how long, how often to evaluate. What
    must not is the world, the policy, and the episodes by which the best one is chosen.

    Args:
        folder: The checkpoint.
        policy: Its policy.
        recipe: What it is to be resumed with.

    Raises:
        UserError: Naming the settings that differ.
    """
    saved, wanted = policy.recipe, recipe.to_dict()
    fixed = [field.name for cls in (EnvConfig, ModelConfig) for field in fields(cls)]
    fixed.remove("gradient_checkpointing")  # costs time and saves memory, and changes no number
    fixed += [
        "seed",
        "gamma",
        "num_envs",
        "num_eval_episodes",
        "eval_greedy",
        "init_from",
        "curriculum",
    ]
    if recipe.ppo.curriculum != "none":
        fixed += ["num_demo_episodes", "demo_noise"]
    different = [key for key in fixed if saved.get(key) != wanted[key]]
    if policy.encoder.template != recipe.template:
        different.append("prompt_template, task_description or action_words")
    if different:
        raise UserError(
            f"resume_from: {folder} was written by a run that differs in {', '.join(different)}"
        )


def check_same_policy(what: str, policy: VLMPolicy, recipe: Recipe) -> None:
    """Refuse to start from a policy that is not of the recipe's kind.

    Args:
        what: Names the policy in the message.
        policy: Where the run is to start.
        recipe: The run.

    Raises:
        UserError: Naming the settings that differ.
    """
    wanted = recipe.model
    # What VLMPolicy.train_as takes from the recipe, and where the weights once came from.
    free = {"gradient_checkpointing", "freeze_vision", "detach_value", "model_revision"}
    free |= {"temperature", "mask_senseless_words", "value_input"}
    if wanted.value_input != policy.config.value_input:  # then the value head is new
        free |= {"value_head_width", "value_head_depth"}
    if wanted.scoring == "auto":
        free.add("scoring")  # it was chosen when the policy was made
    names = [field.name for field in fields(ModelConfig) if field.name not in free]
    different = [n for n in names if getattr(policy.config, n) != getattr(wanted, n)]
    if different:
        raise UserError(f"{what} is a policy that differs in {', '.join(different)}")


def load_trainer_state(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint."""
    return json.loads((folder / STATE_FILE).read_text())


def load_policy(folder: str | Path) -> tuple[VLMPolicy, EnvConfig, float]:
    """A saved policy, the scene it was trained in, and the discount of its rewards.

    Args:
        folder: A checkpoint, or a policy's name on the hub.

    Raises:
        UserError: There is no policy, or its recipe is not with it.
    """
    policy = VLMPolicy.from_pretrained(folder)
    values = policy.recipe
    wanted = ["gamma", *(field.name for field in fields(EnvConfig))]
    if missing := [key for key in wanted if key not in values]:
        raise UserError(f"the recipe of the policy {str(folder)!r} lacks {', '.join(missing)}")
    env = EnvConfig(**{field.name: values[field.name] for field in fields(EnvConfig)})
    return policy, env, values["gamma"]
