"""One training run from recipe to summary."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from vlm_agent.common.errors import UserError
from vlm_agent.demonstrations.dataset import check_demonstrations
from vlm_agent.evaluation.evaluator import Evaluator
from vlm_agent.imitation.trainer import ImitationTrainer
from vlm_agent.policy.artifact import named_policy
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.trainer import PPOTrainer
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.report.curves import plot_curves
from vlm_agent.report.summary import training_summary
from vlm_agent.report.video import film_episode
from vlm_agent.runs.checkpoints import RunFolders, check_same_policy, check_same_run
from vlm_agent.runs.launch import cores_per_process, rendering_gpu, start_accelerator
from vlm_agent.runs.tracking import check_trackers, start_trackers, tracker_names
from vlm_agent.world.pool.pool import EnvPool
from vlm_agent.world.pool.worker import MakeEnv
from vlm_agent.world.robosuite.env import LanguageActionEnv
from vlm_agent.world.robosuite.expert import ExpertEnv


def _start_policy(recipe: Recipe) -> VLMPolicy:
    """The policy that a run of this recipe starts from."""
    if recipe.ppo.init_from is None:
        return build_policy(recipe.model, recipe.template, recipe.ppo.seed, recipe.to_dict())
    policy = VLMPolicy.from_pretrained(named_policy(recipe.ppo.init_from), template=recipe.template)
    check_same_policy(f"init_from: {recipe.ppo.init_from}", policy, recipe)
    return _with_recipe(policy, recipe)


def _with_recipe(policy: VLMPolicy, recipe: Recipe) -> VLMPolicy:
    """A policy that was read, to be trained as the recipe says."""
    policy.recipe = recipe.to_dict()
    policy.train_as(recipe.model)
    return policy


@dataclass(frozen=True)
class Run:
    """What a run of any kind begins with."""

    folders: RunFolders
    accelerator: Accelerator
    policy: VLMPolicy
    pool: EnvPool
    began: float


@contextmanager
def begin_run(recipe: Recipe, make_env: MakeEnv = LanguageActionEnv) -> Iterator[Run]:
    """Check the launch, start the robots, make or load the policy, prepare the run's folder.

    In this order, so that an earlier run is only replaced by one that can begin.

    Args:
        recipe: The run.
        make_env: Makes an environment.

    Raises:
        UserError: The launch, the model or the run's folder is not as the recipe needs it.
    """
    disable_progress_bar()  # of loading and saving weights; the run has its own
    folders = RunFolders(recipe)
    accelerator = start_accelerator(tracker_names(recipe), str(folders.run))
    began = time.perf_counter()
    if accelerator.is_main_process:
        folders.check_new(recipe)  # before a large model is loaded for nothing
    check_trackers(recipe)
    resume_folder = folders.resume_folder(recipe)
    num_workers = recipe.ppo.num_workers or cores_per_process(os.environ)
    pool = EnvPool(
        recipe.env,
        recipe.ppo.num_envs,
        num_workers,
        recipe.ppo.gamma,
        gpu=rendering_gpu(os.environ, torch.cuda.device_count()),
        timeout=recipe.ppo.worker_timeout,
        max_restarts=recipe.ppo.max_worker_restarts,
        make_env=make_env,
    )
    with pool:
        if resume_folder is not None:
            policy = VLMPolicy.from_pretrained(resume_folder)
            check_same_run(resume_folder, policy, recipe)
            _with_recipe(policy, recipe)
        else:
            policy = _start_policy(recipe)
        pool.wait_until_ready()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            folders.prepare(recipe)
        accelerator.wait_for_everyone()
        start_trackers(accelerator, recipe, folders.run)
        yield Run(folders, accelerator, policy, pool, began)


def run_training(recipe: Recipe) -> None:
    """PPO as the recipe says; leave checkpoints, metrics, curves and a video.

    Raises:
        UserError: As for :func:`begin_run`.
    """
    if recipe.ppo.curriculum != "none":
        check_demonstrations(recipe)
    with begin_run(recipe) as run:
        needs_start = recipe.ppo.kl_coef > 0 and (
            not recipe.model.use_peft or recipe.ppo.init_from is not None
        )
        start = _start_policy(recipe) if needs_start else None
        trainer = PPOTrainer(recipe, run.accelerator, run.policy, run.pool, start)
        if recipe.ppo.resume_from is not None:
            trainer.resume()
        trainer.train()
    _finish(run, trainer.timesteps, trainer.earlier_seconds, trainer.evaluator)


def run_imitation(recipe: Recipe) -> None:
    """The warm start as the recipe says; leave the policy, metrics, curves and a video.

    Raises:
        UserError: As for :func:`begin_run`; or the demonstrations are missing.
    """
    if recipe.ppo.resume_from is not None:
        raise UserError("resume_from: a warm start cannot be resumed; it begins anew")
    if recipe.model.value_input == "state":
        raise UserError("value_input: 'state' is for PPO: demonstrations do not hold the state")
    if recipe.model.mask_senseless_words:
        raise UserError(
            "mask_senseless_words: a warm start learns all of the expert's words; "
            "set it for PPO and evaluation"
        )
    check_demonstrations(recipe)  # before an earlier run is overwritten for nothing
    with begin_run(recipe, ExpertEnv) as run:
        trainer = ImitationTrainer(recipe, run.accelerator, run.policy, run.pool)
        trainer.train()
    _finish(run, trainer.words_learnt, 0.0, trainer.evaluator)


def _finish(run: Run, timesteps: int, earlier_seconds: float, evaluator: Evaluator) -> None:
    """Draw, film, and say where everything lies."""
    run.accelerator.end_training()
    if not run.accelerator.is_main_process:
        return
    folders = run.folders
    plot_curves(folders.metrics, evaluator.history, folders.curves)
    evaluator.save_examples()
    for episode in (folders.before, folders.after):
        if episode.is_file():
            film_episode(episode, episode.with_suffix(".mp4"))
    summary = {
        "run_name": folders.name,
        "timesteps": timesteps,
        "num_processes": run.accelerator.num_processes,
        "seconds": round(earlier_seconds + time.perf_counter() - run.began, 1),
        "evaluations": evaluator.history,
    }
    folders.summary.write_text(json.dumps(summary, indent=1) + "\n")
    print(training_summary(summary, folders.contents()))
