"""``PPOTrainer``: the whole algorithm on one screen, in ``train``."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from vlm_agent.common.errors import UserError
from vlm_agent.evaluation.evaluate import episode_rates
from vlm_agent.evaluation.evaluator import Evaluator
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.reference import ReferencePolicy
from vlm_agent.ppo.update import PPOUpdate
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.collector import EpisodeRecord, RolloutBuffer, RolloutCollector
from vlm_agent.rollout.curriculum import make_curriculum
from vlm_agent.runs.checkpoints import (
    OPTIMIZER_FILE,
    RunFolders,
    load_trainer_state,
    save_checkpoint,
)
from vlm_agent.runs.distributed import shares_over_ranks
from vlm_agent.runs.launch import allow_unused_layers
from vlm_agent.runs.tracking import MetricsLog
from vlm_agent.world.pool.pool import EnvPool


class PPOTrainer:
    """PPO for a :class:`VLMPolicy` in an :class:`EnvPool`, in any number of processes.

    Args:
        recipe: The run.
        accelerator: Wraps the policy and talks to the other processes.
        policy: The policy to train.
        pool: This process's environments.
        start: Where ``kl_coef`` is set and there is no adapter to switch off, a policy with the
            weights of the run's start.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        policy: VLMPolicy,
        pool: EnvPool,
        start: VLMPolicy | None = None,
    ) -> None:
        self.recipe = recipe
        self.ppo = recipe.ppo
        self.accelerator = accelerator
        self.pool = pool
        self.folders = RunFolders(recipe)
        self.log = MetricsLog(self.folders.metrics, accelerator)
        optimizer = torch.optim.AdamW(
            [
                {"params": policy.backbone_parameters(), "lr": self.ppo.learning_rate},
                {"params": policy.head_parameters(), "lr": self.ppo.value_learning_rate},
            ],
            eps=1e-5,
            weight_decay=0.0,
        )
        allow_unused_layers(accelerator, policy)
        # `model` is what gradients go through; `policy` is the same module without the wrapper.
        self.model, self.optimizer = accelerator.prepare(policy, optimizer)
        self.policy: VLMPolicy = accelerator.unwrap_model(self.model)
        self.collector = RolloutCollector(
            pool,
            self.ppo.seed,
            accelerator.process_index,
            self.ppo.rollout_groups,
            self.ppo.feature_cache_gb * 2**30,
            make_curriculum(recipe),
        )
        reference = None
        if self.ppo.kl_coef:
            reference = ReferencePolicy(self.policy, start, accelerator.autocast)
        self.improve = PPOUpdate(self.ppo, accelerator, self.model, self.optimizer, reference)
        self.words_per_step = self.ppo.num_envs * accelerator.num_processes
        self.timesteps = 0
        self.new_timesteps = 0  # of the last rollout
        self.updates = 0
        self.began = time.perf_counter()
        self.earlier_seconds = 0.0  # of a run that was resumed
        self.best: tuple[float, float] | None = None  # how good the policy in `folders.best` is
        self.evaluator = Evaluator(recipe, accelerator, pool, self.log)

    def train(self) -> None:
        """Collect, estimate, update, log; evaluate and save on the way."""
        if not self.evaluator.history:
            self.evaluate()
        with self._progress_bar() as self.bar:
            while self.timesteps < self.ppo.total_timesteps:
                began, spent = time.perf_counter(), self.collector.seconds()
                learning_rate = self._set_learning_rate()
                rollout, episodes = self.collect()
                collected = time.perf_counter()
                self.bar.set_description("updating")
                losses = self.update(rollout)
                self.bar.set_description("training")
                updated = time.perf_counter()
                times = {
                    "words_per_s": self.new_timesteps / (updated - began),
                    "rollout_s": collected - began,
                    "update_s": updated - collected,
                    **self.collector.shares(collected - began, since=spent),
                }
                self.record(rollout, episodes, losses | {"learning_rate": learning_rate} | times)
                del rollout, episodes  # before the next ones need as much memory
                if self._is_due(self.ppo.eval_freq):
                    self.evaluate()
                if self._is_due(self.ppo.save_freq):
                    self.save()

    def collect(self) -> tuple[RolloutBuffer, list[EpisodeRecord]]:
        """One rollout; the last one is only as long as ``total_timesteps`` asks for."""
        words_left = self.ppo.total_timesteps - self.timesteps
        steps = min(self.ppo.rollout_steps, math.ceil(words_left / self.words_per_step))
        self.policy.eval()
        collected = self.collector.collect_rollout(
            self.policy, steps, lambda: self.bar.update(self.words_per_step)
        )
        self.new_timesteps = steps * self.words_per_step
        self.timesteps += self.new_timesteps
        return collected

    def update(self, rollout: RolloutBuffer) -> dict[str, float]:
        """Improve the policy on a rollout; what is logged of it."""
        measured = self.improve(rollout, self.updates)
        self.updates += 1
        return measured

    def evaluate(self) -> None:
        """Play the evaluation episodes, and keep the policy if it is the best so far."""
        if self.ppo.num_eval_episodes == 0:
            return
        self.collector.step_aside()
        result = self.evaluator(self.policy, self.timesteps)
        if self.best is None or _quality(result) > self.best:
            self.best = _quality(result)
            if self.accelerator.is_main_process:
                save_checkpoint(self.folders.best, self.policy, result)

    def record(
        self, rollout: RolloutBuffer, episodes: list[EpisodeRecord], measured: dict[str, float]
    ) -> None:
        """Write one update's metrics, of all ranks, and show the most telling ones."""
        words = self.policy.words
        shares = shares_over_ranks(rollout.actions, len(words))
        everyone = gather_object(episodes)
        rates = episode_rates(everyone)
        begins = self._move_start(everyone)
        if self.accelerator.is_main_process:
            self.log.write(
                {
                    "timesteps": self.timesteps,
                    **rates,
                    **measured,
                    **begins,
                    "words": dict(zip(words, shares, strict=True)),
                }
            )
            shown = {"return": rates["episode_return"], "success": rates["success_rate"]}
            shown |= {k: measured[f"{k}_share"] for k in ("physics", "rendering", "model")}
            self.bar.set_postfix({k: f"{v:.2f}" for k, v in shown.items() if v is not None})

    def _move_start(self, episodes: list[EpisodeRecord]) -> dict[str, float | None]:
        """Tell the curriculum, if there is one, how episodes ended; what is logged of it."""
        curriculum = self.collector.curriculum
        if curriculum is None:
            return {}
        farthest = [r for r in episodes if curriculum.is_farthest(r.seed, r.begun)]
        curriculum.learn([record.success for record in farthest])
        solved = episode_rates(farthest)["success_rate"]
        return {"curriculum_share": curriculum.share, "farthest_success_rate": solved}

    def save(self) -> None:
        """Write ``checkpoints/{run_name}_step{N}``: the policy and all that resuming needs."""
        collectors = gather_object([self.collector.state_dict()])
        if self.accelerator.is_main_process:
            state = {
                "timesteps": self.timesteps,
                "updates": self.updates,
                "seconds": self.earlier_seconds + time.perf_counter() - self.began,
                "collectors": collectors,
                "evaluations": self.evaluator.history,
            }
            folder = self.folders.step(self.timesteps)
            save_checkpoint(folder, self.policy, state, self.optimizer)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the recipe's checkpoint, whose policy has been loaded already.

        Raises:
            UserError: It was written by another number of processes.
        """
        folder = self.folders.resume_folder(self.recipe)
        assert folder is not None
        state = load_trainer_state(folder)
        ranks, now = len(state["collectors"]), self.accelerator.num_processes
        if ranks != now:
            raise UserError(f"resume_from: {folder} is of {ranks} processes, now there are {now}")
        self.optimizer.load_state_dict(
            torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        )
        self.timesteps, self.updates = state["timesteps"], state["updates"]
        self.evaluator.history, self.earlier_seconds = state["evaluations"], state["seconds"]
        self.collector.load_state_dict(state["collectors"][self.accelerator.process_index])
        if self.folders.best.is_dir():
            best = load_trainer_state(self.folders.best)
            # Later than the history: of what came of going on from here another time.
            if best["timesteps"] in [one["timesteps"] for one in self.evaluator.history]:
                self.best = _quality(best)
        if self.accelerator.is_main_process:
            self.folders.forget_after(self.timesteps)
            self.log.keep_until(self.timesteps)

    def _is_due(self, every: int) -> bool:
        """Whether the last rollout completed another ``every`` timesteps, or the run."""
        before = self.timesteps - self.new_timesteps
        return (
            self.timesteps >= self.ppo.total_timesteps or self.timesteps // every > before // every
        )

    def _set_learning_rate(self) -> float:
        """Set both learning rates for the next update; returns the backbone's."""
        left = 1.0
        if self.ppo.lr_schedule == "linear":
            left = 1.0 - self.timesteps / self.ppo.total_timesteps
        rates = (self.ppo.learning_rate, self.ppo.value_learning_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * left
        return self.ppo.learning_rate * left

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.ppo.total_timesteps,
            initial=self.timesteps,
            desc="training",
            unit="word",
            mininterval=0.5,
            smoothing=0,  # words come in bursts, between updates: only the average tells the time
            disable=not self.accelerator.is_main_process,
        )


def _quality(evaluation: dict[str, Any]) -> tuple[float, float]:
    """What "best" means: success first, then return."""
    return evaluation["success_rate"], evaluation["mean_return"]
