"""``PPOTrainer``: the whole algorithm on one screen, in ``train``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from vlm_agent.errors import UserError
from vlm_agent.learning.advantages import generalized_advantages
from vlm_agent.learning.checkpoints import (
    OPTIMIZER_FILE,
    RunFolders,
    load_trainer_state,
    save_checkpoint,
)
from vlm_agent.learning.evaluation import episode_rates, evaluate, summarize
from vlm_agent.learning.losses import clipped_policy_loss, value_loss
from vlm_agent.learning.ranks import (
    explained_variance_over_ranks,
    max_over_ranks,
    mean_over_ranks,
    normalize_over_ranks,
    shares_over_ranks,
)
from vlm_agent.learning.rollout import EpisodeRecord, RolloutBuffer, RolloutCollector
from vlm_agent.learning.tracking import MetricsLog
from vlm_agent.policy.policy import VLMPolicy, evaluate_actions
from vlm_agent.recipes import Recipe
from vlm_agent.robot.episode import save_episode
from vlm_agent.robot.pool import EnvPool
from vlm_agent.seeding import derive_rng


class PPOTrainer:
    """PPO for a :class:`VLMPolicy` in an :class:`EnvPool`, in any number of processes.

    Args:
        recipe: The run.
        accelerator: Wraps the policy and talks to the other processes.
        policy: The policy to train.
        pool: This process's environments.
    """

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, policy: VLMPolicy, pool: EnvPool
    ) -> None:
        self.recipe = recipe
        self.ppo = recipe.ppo
        self.accelerator = accelerator
        self.pool = pool
        self.folders = RunFolders(recipe)
        self.log = MetricsLog(self.folders.metrics, accelerator)
        head = list(policy.value_head.parameters())
        self.backbone_parameters = [p for p in policy.backbone.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": self.backbone_parameters, "lr": self.ppo.learning_rate},
                {"params": head, "lr": self.ppo.value_learning_rate},
            ],
            eps=1e-5,
            weight_decay=0.0,
        )
        # `model` is what gradients go through; `policy` is the same module without the wrapper.
        self.model, self.optimizer = accelerator.prepare(policy, optimizer)
        self.policy: VLMPolicy = accelerator.unwrap_model(self.model)
        self.collector = RolloutCollector(pool, self.ppo.seed, accelerator.process_index)
        self.words_per_step = self.ppo.num_envs * accelerator.num_processes
        self.timesteps = 0
        self.updates = 0
        self.evaluations: list[dict[str, Any]] = []

    def train(self) -> None:
        """Collect, estimate, update, log; evaluate and save on the way."""
        total, words = self.ppo.total_timesteps, self.policy.words
        if not self.evaluations:
            self.evaluate()
        self.collector.take_up()
        with self._progress_bar() as bar:
            while self.timesteps < total:
                began = time.perf_counter()
                rate_left = self._set_learning_rate()
                steps = min(
                    self.ppo.rollout_steps, -(-(total - self.timesteps) // self.words_per_step)
                )
                self.policy.eval()
                rollout, episodes = self.collector.collect_rollout(
                    self.policy, steps, lambda n: bar.update(n * self.accelerator.num_processes)
                )
                collected = time.perf_counter()
                self.policy.train()
                losses = self.update(rollout)
                self.updates += 1
                before, self.timesteps = (
                    self.timesteps,
                    self.timesteps + steps * self.words_per_step,
                )
                updated = time.perf_counter()
                self.record(
                    {
                        "timesteps": self.timesteps,
                        **episode_rates(gather_object(episodes)),
                        **losses,
                        "learning_rate": self.ppo.learning_rate * rate_left,
                        "words": dict(
                            zip(words, shares_over_ranks(rollout.actions, len(words)), strict=True)
                        ),
                        "words_per_s": (self.timesteps - before) / (updated - began),
                        "rollout_s": collected - began,
                        "update_s": updated - collected,
                    },
                    bar,
                )
                finished = self.timesteps >= total
                if finished or self.timesteps // self.ppo.eval_freq > before // self.ppo.eval_freq:
                    self.evaluate()
                    if not finished:
                        self.collector.take_up()
                if finished or self.timesteps // self.ppo.save_freq > before // self.ppo.save_freq:
                    self.save()

    def update(self, rollout: RolloutBuffer) -> dict[str, float]:
        """``n_epochs`` passes of PPO over one rollout; means over its minibatches."""
        advantages_TN, returns_TN = generalized_advantages(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            self.ppo.gamma,
            self.ppo.gae_lambda,
        )
        if self.ppo.normalize_advantage:
            advantages_TN = normalize_over_ranks(advantages_TN)
        observations = rollout.observations.flatten()
        data = {
            "actions": self._tensor(rollout.actions),
            "log_probs": self._tensor(rollout.log_probs),
            "values": self._tensor(rollout.values),
            "returns": self._tensor(returns_TN),
            "advantages": self._tensor(advantages_TN),
        }
        stats: list[torch.Tensor] = []
        for epoch in range(self.ppo.n_epochs):
            order = self._shuffle(epoch, len(observations))
            first = len(stats)
            for index in np.split(
                order, range(self.ppo.batch_size, len(order), self.ppo.batch_size)
            ):
                inputs = self.policy.encode(observations[index])
                stats.append(self._step(inputs, {k: v[index] for k, v in data.items()}))
            epoch_kl = mean_over_ranks(self.accelerator, torch.stack(stats[first:]))[3]
            if self.ppo.target_kl is not None and epoch_kl > self.ppo.target_kl:
                break
        means = mean_over_ranks(self.accelerator, torch.stack(stats))
        names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")
        return {
            **dict(zip(names, means, strict=False)),
            "explained_variance": explained_variance_over_ranks(rollout.values, returns_TN),
            "first_ratio_error": max_over_ranks(self.accelerator, stats[0][-1]),
            "n_epochs_done": epoch + 1,
        }

    def _step(
        self, inputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """One optimiser step on one minibatch; what is logged of it, as a vector."""
        log_probs, entropy, values = evaluate_actions(self.model, inputs, batch["actions"])
        policy = clipped_policy_loss(
            log_probs, batch["log_probs"], batch["advantages"], self.ppo.clip_range
        )
        critic = value_loss(values, batch["values"], batch["returns"], self.ppo.clip_range_value)
        entropy = entropy.mean()
        loss = policy.loss + self.ppo.value_coef * critic - self.ppo.entropy_coef * entropy
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.updates < self.ppo.critic_warmup_updates:
            for parameter in self.backbone_parameters:
                parameter.grad = None  # the optimiser passes over them: only the critic moves
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.ppo.max_grad_norm)
        self.optimizer.step()
        return torch.stack(
            [
                policy.loss.detach(),
                critic.detach(),
                entropy.detach(),
                policy.approx_kl,
                policy.clip_fraction,
                norm.detach(),
                policy.max_ratio_error,
            ]
        )

    def evaluate(self) -> None:
        """Play the evaluation episodes, shared among the ranks; keep the best policy."""
        if self.ppo.num_eval_episodes == 0:
            return
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.policy.eval()
        with tqdm(
            total=self.ppo.num_eval_episodes,
            desc="evaluating",
            unit="episode",
            leave=False,
            disable=not self.accelerator.is_main_process,
        ) as bar:
            mine = evaluate(
                self.policy,
                self.pool,
                range(rank, self.ppo.num_eval_episodes, ranks),
                self.ppo.seed,
                self.ppo.eval_greedy,
                lambda: bar.update(ranks),
            )
        everyone = dict(gather_object(list(mine.items())))
        records = [everyone[number] for number in sorted(everyone)]
        result = summarize(
            records,
            self.policy.words,
            timesteps=self.timesteps,
            greedy=self.ppo.eval_greedy,
            seed=self.ppo.seed,
        )
        best = max((_quality(e) for e in self.evaluations), default=None)
        self.evaluations.append({k: v for k, v in result.items() if k != "episodes"})
        self._keep(result, records, is_best=best is None or _quality(result) > best)

    def _keep(
        self, result: dict[str, Any], records: Sequence[EpisodeRecord], is_best: bool
    ) -> None:
        if not self.accelerator.is_main_process:
            return
        rates = {k: v for k, v in result.items() if k not in ("episodes", "timesteps")}
        self.log.track({"eval": rates}, self.timesteps)
        if is_best:
            save_checkpoint(self.folders.best, self.policy, self.recipe, result)
        shown = max(records, key=lambda r: (r.success, r.episode_return))
        save_episode(self.folders.episode, shown.episode, self.recipe.env, self.policy.words)

    def record(self, metrics: dict[str, Any], bar: tqdm) -> None:
        """Write one update's metrics and show the most telling ones."""
        if not self.accelerator.is_main_process:
            return
        self.log.write(metrics)
        shown = {"return": metrics["episode_return"], "success": metrics["success_rate"]}
        bar.set_postfix({k: f"{v:.2f}" for k, v in shown.items() if v is not None})

    def save(self) -> None:
        """Write ``checkpoints/{run_name}_step{N}``: the policy and all that resuming needs."""
        collectors = gather_object([self.collector.state_dict()])
        if self.accelerator.is_main_process:
            state = {
                "timesteps": self.timesteps,
                "updates": self.updates,
                "collectors": collectors,
                "evaluations": self.evaluations,
            }
            folder = self.folders.step(self.timesteps)
            save_checkpoint(folder, self.policy, self.recipe, state, self.optimizer)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the recipe's checkpoint, whose policy has been loaded already.

        Raises:
            UserError: It was written by another number of processes or environments.
        """
        folder = self.folders.resume_folder(self.recipe)
        assert folder is not None
        state = load_trainer_state(folder)
        shape = [len(c["running"]) for c in state["collectors"]]
        if shape != [self.ppo.num_envs] * self.accelerator.num_processes:
            raise UserError(
                f"resume_from: {folder} was written by {len(shape)} processes with {shape[0]} "
                f"environments each; now there are {self.accelerator.num_processes} with "
                f"{self.ppo.num_envs}"
            )
        self.optimizer.load_state_dict(
            torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        )
        self.timesteps, self.updates = state["timesteps"], state["updates"]
        self.evaluations = state["evaluations"]
        self.collector.load_state_dict(state["collectors"][self.accelerator.process_index])
        if self.accelerator.is_main_process:
            self.log.keep_until(self.timesteps)

    def _set_learning_rate(self) -> float:
        """Set the schedule's learning rates for the next update; the share of them that is left."""
        left = 1.0
        if self.ppo.lr_schedule == "linear":
            left = 1.0 - self.timesteps / self.ppo.total_timesteps
        rates = (self.ppo.learning_rate, self.ppo.value_learning_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * left
        return left

    def _shuffle(self, epoch: int, samples: int) -> np.ndarray:
        rank = self.accelerator.process_index
        rng = derive_rng(self.ppo.seed, "shuffle", rank, self.updates, epoch)
        return rng.permutation(samples)

    def _tensor(self, array_TN: np.ndarray) -> torch.Tensor:
        """(T, N) as a flat tensor on the device: float32, or int64 for indices."""
        flat = torch.from_numpy(np.ascontiguousarray(array_TN).reshape(-1))
        return (flat.float() if flat.is_floating_point() else flat.long()).to(self.policy.device)

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.ppo.total_timesteps,
            initial=self.timesteps,
            desc="training",
            unit="word",
            mininterval=0.5,
            disable=not self.accelerator.is_main_process,
        )


def _quality(evaluation: dict[str, Any]) -> tuple[float, float]:
    """What "best" means: success first, then return."""
    return evaluation["success_rate"], evaluation["mean_return"]
