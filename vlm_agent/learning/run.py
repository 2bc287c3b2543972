"""One training run from recipe to summary."""

from __future__ import annotations

import json
import os
import time

import torch
from transformers.utils.logging import disable_progress_bar

from vlm_agent.learning.checkpoints import RunFolders, check_same_run
from vlm_agent.learning.launch import cores_per_process, rendering_gpu, start_accelerator
from vlm_agent.learning.tracking import start_trackers, tracker_names
from vlm_agent.learning.trainer import PPOTrainer
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipes import Recipe
from vlm_agent.report.curves import plot_curves
from vlm_agent.report.summary import training_summary
from vlm_agent.report.video import film_episode
from vlm_agent.robot.pool import EnvPool


def _start_policy(recipe: Recipe) -> VLMPolicy:
    """The policy that a run of this recipe starts from."""
    return build_policy(recipe.model, recipe.template, recipe.ppo.seed, recipe.to_dict())


def run_training(recipe: Recipe) -> None:
    """Train as the recipe says; leave checkpoints, metrics, curves and a video.

    Raises:
        UserError: The launch, the model or the run's folder is not as the recipe needs it.
    """
    disable_progress_bar()  # of loading and saving weights; the run has its own
    folders = RunFolders(recipe)
    accelerator = start_accelerator(tracker_names(recipe), str(folders.run))
    began = time.perf_counter()
    if accelerator.is_main_process:
        folders.check_new(recipe)  # before a large model is loaded for nothing
    resume_folder = folders.resume_folder(recipe)
    if resume_folder is not None:
        policy = VLMPolicy.from_pretrained(resume_folder)
        check_same_run(resume_folder, policy, recipe)
        policy.recipe = recipe.to_dict()
        policy.set_gradient_checkpointing(recipe.model.gradient_checkpointing)
    else:
        policy = _start_policy(recipe)
    if accelerator.is_main_process:
        folders.prepare(recipe)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, recipe, folders.run)
    num_workers = recipe.ppo.num_workers or cores_per_process(os.environ)
    pool = EnvPool(
        recipe.env,
        recipe.ppo.num_envs,
        num_workers,
        recipe.ppo.gamma,
        gpu=rendering_gpu(os.environ, torch.cuda.device_count()),
        timeout=recipe.ppo.worker_timeout,
        max_restarts=recipe.ppo.max_worker_restarts,
    )
    with pool:
        needs_start = recipe.ppo.kl_coef > 0 and not recipe.model.use_peft
        start = _start_policy(recipe) if needs_start else None
        trainer = PPOTrainer(recipe, accelerator, policy, pool, start)
        if resume_folder is not None:
            trainer.resume()
        trainer.train()
    accelerator.end_training()
    if accelerator.is_main_process:
        plot_curves(folders.metrics, trainer.evaluations, folders.curves)
        if folders.episode.is_file():
            film_episode(folders.episode, folders.video)
        summary = {
            "run_name": recipe.ppo.run_name,
            "timesteps": trainer.timesteps,
            "num_processes": accelerator.num_processes,
            "seconds": round(trainer.earlier_seconds + time.perf_counter() - began, 1),
            "evaluations": trainer.evaluations,
        }
        folders.summary.write_text(json.dumps(summary, indent=1) + "\n")
        print(training_summary(summary, folders.contents()))
