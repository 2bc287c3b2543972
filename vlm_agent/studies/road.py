"""``vlm-agent road``: all that a recipe of PPO needs, from demonstrations to a measured policy.

A recipe says what it begins with: ``init_from: checkpoints/NAME_final``. If ``NAME.yaml`` lies
beside it, that is the recipe of its warm start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vlm_agent.common.errors import UserError
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.demonstrations.folder import DemonstrationsFolder
from vlm_agent.policy.building import build_encoder
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.folders import RunFolders
from vlm_agent.studies.stages import Stage, is_recorded, resumable, run_stages
from vlm_agent.studies.study import DEMO_SETTINGS

FINAL = "_final"
TEST_EPISODES = 200

OWN_KEYS = ("run_name", "init_from", "resume_from", "overwrite", "demonstrations")
"""What each recipe says for itself, or the road for it."""


class Road:
    """The stages of a recipe of PPO and of the warm start that it begins with, if any.

    Args:
        config: The recipe's file.
        overrides: ``--key value`` words for both recipes.

    Raises:
        UserError: A recipe cannot be used, or one of these keys cannot be overridden here.
    """

    def __init__(self, config: Path, overrides: Sequence[str] = ()) -> None:
        for word in overrides:
            if (key := word.removeprefix("--").split("=")[0]) in OWN_KEYS:
                raise UserError(
                    f"{word}: every recipe of the road has its own {key}: edit it there"
                )
        self.config = config
        self.overrides = tuple(overrides)
        self.recipe = self._load(config)
        if not self.recipe.evaluation.num_eval_episodes:
            raise UserError("num_eval_episodes: 0 leaves no best policy to play test episodes with")
        self.folder = Path(self.recipe.run.output_dir)
        self.start = self._find_start()

    def _load(self, config: Path) -> Recipe:
        return load_recipe(list(self._words(config)), prog="vlm-agent road")

    def _words(self, config: Path) -> tuple[str, ...]:
        return ("--config", str(config), *self.overrides)

    def _find_start(self) -> Path | None:
        """The recipe of the warm start, unless that was made by other means already."""
        begins = Path(self.recipe.run.init_from or "").name
        name = begins.removesuffix(FINAL)
        config = self.config.with_name(f"{name}.yaml")
        if not begins.endswith(FINAL) or not config.is_file():
            return None
        made = RunFolders(self._load(config)).final
        is_ours = not made.is_dir() or is_recorded(self.folder, f"warm start: {name}")
        return config if is_ours else None

    def check(self) -> None:
        """Find out whether the model can be had, before anything is collected.

        Raises:
            UserError: It cannot.
        """
        recipe = self.recipe if self.start is None else self._load(self.start)
        build_encoder(recipe.model, recipe.template)

    def stages(self) -> Iterator[Stage]:
        """Demonstrations, warm start, PPO, test episodes."""
        needs: tuple[str, ...] = ()
        begins: tuple[str, ...] = ()
        if self.start is not None:
            recipe = self._load(self.start)
            folder = DemonstrationsFolder(recipe).path
            shown = f"demonstrations: {recipe.run.run_name}"
            command = ("vlm_agent.cli", "demos", *self._words(self.start))
            yield Stage(shown, command, folder / "README.md", settings=DEMO_SETTINGS, folder=folder)
            command = ("vlm_agent.sft", *self._words(self.start))
            made = RunFolders(recipe).final
            yield self._learning("warm start", recipe, command, made, (shown,))
            needs, begins = (f"warm start: {recipe.run.run_name}",), ("--init_from", str(made))
        folders = RunFolders(self.recipe)
        command = ("vlm_agent.train", *self._words(self.config), *begins)
        learning = self._learning("PPO", self.recipe, command, folders.summary, needs)
        yield learning
        yield self.evaluation(self.recipe, folders.best, learning.name)

    def evaluation(self, recipe: Recipe, policy: Path, maker: str) -> Stage:
        """Test episodes with a policy that a recipe's stage makes."""
        result = RunFolders(recipe).run / "test.json"
        command = ["vlm_agent.cli", "eval", "--policy", str(policy), "--split", "test"]
        command += ["--num_eval_episodes", str(TEST_EPISODES), "--json", str(result)]
        command += ["--num_envs", str(recipe.rollout.num_envs)]
        if recipe.env.modules:
            command += ["--trust_modules", "true"]  # the recipe names them, too
        return Stage(f"evaluation: {recipe.run.run_name}", tuple(command), result, (maker,))

    def _learning(
        self, kind: str, recipe: Recipe, command: tuple[str, ...], makes: Path, needs: Sequence[str]
    ) -> Stage:
        name = recipe.run.run_name
        stage = Stage(f"{kind}: {name}", command, makes, tuple(needs))
        return replace(resumable(stage, name), launcher=launcher())


def launcher() -> tuple[str, ...]:
    """How ``python -m`` starts training here: one process for each GPU, or one on all cores."""
    gpus = torch.cuda.device_count()
    name = "cpu" if gpus == 0 else "single_gpu" if gpus == 1 else "multi_gpu"
    own = Path("accelerate_configs") / f"{name}.yaml"
    config = own if own.is_file() else SHIPPED / own
    words = ["accelerate.commands.launch", "--quiet", "--config_file", str(config)]
    if gpus == 0:
        words += ["--num_cpu_threads_per_process", str(len(os.sched_getaffinity(0)))]
    if gpus > 1:
        words += ["--num_processes", str(gpus)]
    return (*words, "-m")


def run_road(config: Path, overrides: Sequence[str] = ()) -> Path:
    """Run what has not been run; go on with what was stopped.

    Args:
        config: The recipe's file.
        overrides: ``--key value`` words.

    Returns:
        The file with what the test episodes gave.

    Raises:
        UserError: The model is not to be had, or a stage failed.
    """
    road = Road(config, overrides)
    road.check()
    run_stages(list(road.stages()), road.folder)
    *_, last = road.stages()
    return last.makes
