"""``Run``: what a run of any kind begins with, and how it ends."""

from __future__ import annotations

import functools
import json
import logging
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import known_settings
from vlm_agent.common.whole import write_whole
from vlm_agent.distributed.launch import (
    check_accelerator,
    check_device,
    start_accelerator,
    warn_of_slow_bits,
)
from vlm_agent.distributed.reductions import decided_by_main
from vlm_agent.distributed.stopping import Stopping
from vlm_agent.distributed.watch import RankWatch
from vlm_agent.policy.artifact import saved_recipe
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.report.curves import plot_curves
from vlm_agent.report.examples import save_examples
from vlm_agent.report.mind import Mind
from vlm_agent.report.summary import training_summary
from vlm_agent.report.video import film_episode
from vlm_agent.runs.compatibility import check_same_policy, check_same_run, unfamiliar
from vlm_agent.runs.folders import RunFolders, settled
from vlm_agent.runs.reporting import silent, write_report
from vlm_agent.runs.trackers.tracking import (
    MetricsFile,
    make_trackers,
    show_outputs,
    start_trackers,
)
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import load_episode
from vlm_agent.world.modules import check_trusted, foreign_modules

logger = logging.getLogger(__name__)


class Run:
    """A run on disk and among processes.

    Nothing is written before :meth:`begin`, so an earlier run of the name is only replaced by one
    whose robots, model and trackers are there.

    Args:
        recipe: The run.
        accelerator: Talks to the other processes; made by default, with the recipe's trackers.

    Attributes:
        folders: Where it writes.
        metrics: Its ``metrics.jsonl``.
        earlier_seconds: How long it ran before it was resumed.
        is_resumed: Whether somebody has taken it up at a checkpoint.
        stopping: Whether somebody wants it to end; listens to signals as a context manager.

    Raises:
        UserError: The launch, a tracker or the run's name is not as the recipe needs it.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator | None = None) -> None:
        self.recipe = recipe
        self.folders = RunFolders(recipe)
        self.earlier_seconds = 0.0
        self.is_resumed = False
        self._began = time.perf_counter()
        self._is_begun = False
        self.stopping = Stopping(recipe.run.max_hours)
        if accelerator is None:
            accelerator = start_accelerator(
                make_trackers(recipe), str(self.folders.run), recipe.run.rank_timeout
            )
        check_accelerator(accelerator)
        check_device(accelerator, recipe.model.model_name_or_path)
        warn_of_slow_bits(accelerator, recipe.model.is_quantized)
        self.accelerator = accelerator
        self.recipe = recipe = decided_by_main(accelerator, lambda: settled(recipe))
        decided_by_main(accelerator, self._check_folders)  # before a model is loaded for nothing
        if not accelerator.is_main_process:  # what all would say of the policy, one says
            for name in ("vlm_agent.policy", __name__):
                logging.getLogger(name).setLevel(logging.ERROR)
        self.metrics = MetricsFile(self.folders.metrics, accelerator.is_main_process)

    def _check_folders(self) -> None:
        self.folders.check_free()
        self.folders.check_new(self.recipe)

    def begin(self) -> None:
        """Prepare the folder, in place of an earlier run's, and start the trackers; once.

        Raises:
            UserError: Another run of the name began meanwhile; or this one is to be resumed, and
                nobody has done that.
        """
        if self.accelerator.is_main_process:
            self.folders.check_free(hold_it=True)
        if self._is_begun:
            return
        if self.recipe.run.resume_from is not None and not self.is_resumed:
            raise UserError(
                "resume_from: this run has not been resumed: load the checkpoint's policy and call "
                "trainer.resume(folder) first, or leave resume_from out"
            )
        self._is_begun = True
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if self.folders.recipe.is_file():  # another run of the name may have begun since
                self.folders.check_new(self.recipe)
            self.folders.prepare(self.recipe)
        self.accelerator.wait_for_everyone()
        start_trackers(self.accelerator, self.recipe, self.folders.run)

    def resume_folder(self) -> Path | None:
        """The checkpoint to go on from, if there is to be one; the same in all processes.

        Raises:
            UserError: There is none, or it is damaged.
        """
        find = functools.partial(self.folders.resume_folder, self.recipe)
        return decided_by_main(self.accelerator, find)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Begun, and nobody else's until this is left.

        Raises:
            UserError: As for :meth:`begin`.
        """
        self.begin()
        try:
            yield
        finally:
            if self.accelerator.is_main_process:
                self.folders.release()

    def watch(self) -> RankWatch:
        """Around what a process does in this run: its processes end together."""
        return RankWatch(self.recipe.run.rank_timeout, self.stopping)

    @property
    def seconds(self) -> float:
        """How long it has run, with the time before it was resumed."""
        return self.earlier_seconds + time.perf_counter() - self._began

    def finish(
        self, timesteps: int, evaluations: Sequence[dict[str, Any]], mind: Mind | None = None
    ) -> None:
        """Draw, film, report, and say where everything lies.

        Args:
            timesteps: How many words were said, or learnt.
            evaluations: The rates of each evaluation, oldest first.
            mind: The policy, to be asked again in the report.
        """
        if not self.accelerator.is_main_process:
            self.accelerator.end_training()
            return
        try:
            self._show(timesteps, evaluations, mind)
        finally:
            self.accelerator.end_training()

    def _show(
        self, timesteps: int, evaluations: Sequence[dict[str, Any]], mind: Mind | None
    ) -> None:
        """Of :meth:`finish`, what the main process does."""
        folders = self.folders
        plot_curves(folders.metrics, evaluations, folders.curves)
        if evaluations:
            times = evaluations[0]["timesteps"], evaluations[-1]["timesteps"]
            outputs = folders.before, folders.after
            played = tuple(folders.evaluation(time) for time in times)
            for episode in save_examples(played, outputs):
                try:
                    film_episode(*load_episode(episode), episode.with_suffix(".mp4"))
                except UserError as error:  # a world that does not replay cannot be filmed
                    print(f"no film: {error}")
                    break
        summary = {
            "run_name": folders.name,
            "timesteps": timesteps,
            "num_processes": self.accelerator.num_processes,
            "seconds": round(self.seconds, 1),
            "peak_memory_gb": peak_memory(),
            "evaluations": list(evaluations),
        }
        foreign = foreign_modules(self.recipe.env.modules)
        write_whole(folders.summary, json.dumps(summary, indent=1) + "\n")
        if mind is not None and evaluations and evaluations[-1]["timesteps"] != timesteps:
            mind = silent(mind)
        minds = {} if mind is None else {folders.name: mind}
        write_report(
            [folders.run],
            folders.report,
            minds,
            self.recipe.tracking.report_episodes,
            trust_modules=True,  # its own
        )
        show_outputs(self.accelerator, self.recipe, folders, evaluations)
        print(training_summary(summary, folders.contents(), bool(foreign)))


def peak_memory() -> dict[str, float]:
    """Gigabytes that this process, and the largest one that it started and has ended, held."""
    own, worlds = (
        resource.getrusage(who).ru_maxrss * 1024 / 1e9
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    held = {"trainer": round(own, 2), "largest world process": round(worlds, 2)}
    if torch.cuda.is_available():
        held["GPU"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return held


def start_policy(recipe: Recipe) -> VLMPolicy:
    """The policy that a run of this recipe starts from.

    Raises:
        UserError: It cannot be loaded, or is not of the recipe's kind.
    """
    disable_progress_bar()  # of loading and saving weights; the run has its own
    init_from = recipe.run.init_from
    if init_from is None:
        return build_policy(recipe.model, recipe.template, recipe.run.seed, recipe.to_dict())
    try:
        _check_modules(init_from, recipe)
    except UserError as error:
        raise UserError(f"init_from: {str(error).removeprefix('init_from: ')}") from None
    if different := unfamiliar(init_from, recipe):
        logger.warning(
            "init_from: %s has learnt with another %s; much of what it knows is probably lost",
            init_from,
            ", ".join(different),
        )
    policy = VLMPolicy.from_pretrained(init_from, template=recipe.template)
    check_same_policy(f"init_from: {init_from}", policy, recipe)
    policy.train_as(recipe.model)
    return policy


def resumed_policy(folder: Path, recipe: Recipe, also: Sequence[str] = ()) -> VLMPolicy:
    """The policy of a checkpoint that a run of this recipe goes on from.

    Args:
        folder: The checkpoint.
        recipe: The run.
        also: Settings that must not have changed, besides those of world and policy.

    Raises:
        UserError: It cannot be loaded, or another kind of run has written it.
    """
    policy = VLMPolicy.from_pretrained(folder)
    check_same_run(folder, policy, recipe, also)
    if policy.facts != recipe.template.fact_names:  # the world tells more than it did then
        policy = VLMPolicy.from_pretrained(folder, template=recipe.template)
    return policy


def _check_modules(init_from: str, recipe: Recipe) -> None:
    """Refuse a policy whose world has code that this recipe does not name too."""
    saved = saved_recipe(init_from)
    env = EnvConfig(**known_settings(EnvConfig, saved))
    foreign = set(env.modules) - set(recipe.env.modules)
    check_trusted(f"init_from: the policy {init_from!r}", foreign, recipe.run.trust_modules)
