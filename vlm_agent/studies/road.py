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
from vlm_agent.policy.backbone.quantization import quantization_config
from vlm_agent.policy.building import build_encoder
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.recipe.recipe import Recipe, recipe_file
from vlm_agent.runs.compatibility import different_settings
from vlm_agent.runs.folders import RunFolders
from vlm_agent.studies.stages import Stage, begun_otherwise, is_recorded, resumable, run_stages
from vlm_agent.studies.study import DEMO_SETTINGS

FINAL = "_final"
TEST_EPISODES = 200

OWN_KEYS = ("run_name", "init_from", "demonstrations")
"""What each recipe says for itself."""

ITS_KEYS = ("resume_from", "overwrite")
"""What the road says for both, stage by stage."""


def start_recipe(config: Path, recipe: Recipe) -> Path | None:
    """The file of the recipe of the warm start that a recipe begins with, if it lies beside it."""
    named = Path(recipe.run.init_from or "").name
    start = config.with_name(f"{named.removesuffix(FINAL)}.yaml")
    return start if named.endswith(FINAL) and start.is_file() else None


class Road:
    """The stages of a recipe of PPO and of the warm start that it begins with, if any.

    Args:
        config: The recipe's file, or the name of one that ships.
        overrides: ``--key value`` words for both recipes.

    Raises:
        UserError: A recipe cannot be used, or one of these keys cannot be overridden here.

    Attributes:
        recipe: The recipe of PPO.
        folder: Where everything is made.
        start: The recipe's file of the warm start, if it is the road's to make.
        begins: The policy that PPO begins with, if there is a recipe of its warm start.
    """

    def __init__(self, config: Path, overrides: Sequence[str] = ()) -> None:
        for word in overrides:
            key = word.removeprefix("--").split("=")[0]
            if key in OWN_KEYS:
                raise UserError(
                    f"{word}: every recipe of the road has its own {key}: edit it there"
                )
            if key in ITS_KEYS:
                raise UserError(
                    f"{word}: the road goes on by itself; to begin anew, delete its runs"
                )
        self.config = recipe_file(config).resolve()
        self.overrides = tuple(overrides)
        self.recipe = self._load(self.config)
        if not self.recipe.evaluation.num_eval_episodes:
            raise UserError("num_eval_episodes: 0 leaves no best policy to play test episodes with")
        self.folder = Path(self.recipe.run.output_dir)
        self.start: Path | None = None
        self.begins: Path | None = None
        self._find_start()

    def _load(self, config: Path) -> Recipe:
        return load_recipe(list(self._words(config)), prog="vlm-agent road")

    def _words(self, config: Path) -> tuple[str, ...]:
        return ("--config", str(config), *self.overrides)

    def _find_start(self) -> None:
        """Find the recipe of the warm start; what was made by other means is taken as it is."""
        config = start_recipe(self.config, self.recipe)
        if config is None:
            return
        run = self._load(config).run
        self.begins = RunFolders(self._load(config)).final
        if not self.begins.is_dir() or is_recorded(self.folder, f"warm start: {run.run_name}"):
            self.start = config

    def check(self) -> None:
        """Find out what would stop it later, before anything is collected.

        Raises:
            UserError: The model is not to be had, both recipes do not fit, or there are runs of
                these names that were begun otherwise.
        """
        recipe = self.recipe if self.start is None else self._load(self.start)
        encoder = build_encoder(recipe.model, recipe.template)
        quantization_config(recipe.model, encoder.family)
        if different := different_settings(recipe.model, self.recipe):
            raise UserError(
                f"{self.start} differs from {self.config} in {', '.join(different)}: PPO could not "
                "begin with what it makes"
            )
        for stage in begun_otherwise(list(self.stages()), self.folder):
            raise UserError(
                f"{stage.name}: there are checkpoints of it ({stage.saved}) that another command "
                "or recipe began: go on with that, or delete them"
            )

    def stages(self) -> Iterator[Stage]:
        """Demonstrations, warm start, PPO, test episodes."""
        needs: tuple[str, ...] = ()
        if self.start is not None:
            recipe = self._load(self.start)
            yield from self._demonstrating(recipe, self.start)
            shown = f"demonstrations: {recipe.run.run_name}"
            needs = () if self._has_own_demonstrations(recipe) else (shown,)
            command = ("vlm_agent.sft", *self._words(self.start))
            final = RunFolders(recipe).final
            learning = self._learning("warm start", recipe, command, final, needs)
            yield learning
            needs = (learning.name,)
        folders = RunFolders(self.recipe)
        command = ("vlm_agent.train", *self._words(self.config))
        if self.begins is not None:
            command = (*command, "--init_from", str(self.begins))
        learning = self._learning("PPO", self.recipe, command, folders.summary, needs)
        yield learning
        yield self.evaluation(self.recipe, folders.best, learning.name)

    def _demonstrating(self, recipe: Recipe, config: Path) -> Iterator[Stage]:
        """The expert's episodes, unless they were collected by other means."""
        if self._has_own_demonstrations(recipe):
            return
        folder = DemonstrationsFolder(recipe).path
        yield Stage(
            f"demonstrations: {recipe.run.run_name}",
            ("vlm_agent.cli", "demos", *self._words(config)),
            folder / "README.md",
            settings=DEMO_SETTINGS,
            folder=folder,
        )

    def _has_own_demonstrations(self, recipe: Recipe) -> bool:
        name = f"demonstrations: {recipe.run.run_name}"
        return DemonstrationsFolder(recipe).exists and not is_recorded(self.folder, name)

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
