"""``PPOUpdate``: some epochs of PPO over one rollout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from vlm_agent.common.seeding import derive_rng
from vlm_agent.policy.decisions import evaluate_actions
from vlm_agent.ppo.advantages import explained_variance, generalized_advantages
from vlm_agent.ppo.critic import ActorCritic, fit_critic
from vlm_agent.ppo.losses import clipped_policy_loss, kl_estimates, value_loss
from vlm_agent.ppo.reference import ReferencePolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.rollout.samples import Samples
from vlm_agent.runs.distributed import (
    concatenate_ranks,
    max_over_ranks,
    mean_over_ranks,
    micro_batches,
    normalize_over_ranks,
    parts_of,
)
from vlm_agent.runs.guard import check_finite

Batch = dict[str, torch.Tensor]
"""Samples of one minibatch, or scalars of one optimiser step, by name."""

VOCABULARY_SHARE_EVERY = 10
"""Updates between two looks at how much of the vocabulary's probability the words have."""


class PPOUpdate:
    """Improves the policy on a rollout.

    Args:
        recipe: The run.
        accelerator: Talks to the other processes.
        model: The actor-critic as accelerate wrapped it; gradients go through it.
        optimizer: Its optimiser.
        reference: The start policy, if ``kl_coef`` is not 0.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        model: Any,
        optimizer: Any,
        reference: ReferencePolicy | None = None,
    ) -> None:
        self.recipe = recipe
        self.ppo, self.critic = recipe.ppo, recipe.critic
        self.accelerator = accelerator
        self.model = model
        self.actor_critic: ActorCritic = accelerator.unwrap_model(model)
        self.policy = self.actor_critic.policy
        self.optimizer = optimizer
        self.reference = reference

    def __call__(
        self, rollout: RolloutBuffer, number: int, critic_learning_rate: float
    ) -> dict[str, float]:
        """``n_epochs`` passes over one rollout; means over its minibatches.

        Args:
            rollout: What this rank collected.
            number: How many updates there were before.
            critic_learning_rate: Of the critic's own passes.

        Raises:
            TrainingError: A gradient is not finite; the weights are what they were before it.
        """
        self.actor_critic.train()
        samples = Samples(self.actor_critic, rollout, self.accelerator.autocast)
        data, returns_TN, about_kl = self._data(rollout, samples, number)
        steps: list[Batch] = []
        about_words = self._vocabulary_share(samples, number)
        for epoch in range(self.ppo.n_epochs):
            done_before = len(steps)
            for index in self._minibatches(number, epoch, len(samples)):
                where = f"update {number}, epoch {epoch}, minibatch {len(steps) - done_before}"
                steps.append(self._step(samples, data, index, number, where))
            epoch_kl = mean_over_ranks(self.accelerator, steps[done_before:])["approx_kl"]
            if self.ppo.target_kl is not None and epoch_kl > self.ppo.target_kl:
                break
        if self.critic.value_epochs:
            fit_critic(
                self.actor_critic,
                self.accelerator,
                samples,
                returns_TN,
                recipe=self.recipe,
                epochs=self.critic.value_epochs,
                learning_rate=critic_learning_rate,
                purpose=("value head", number),
            )
        means = mean_over_ranks(self.accelerator, steps)
        del means["ratio_error"]
        predicted, targets = concatenate_ranks(rollout.values), concatenate_ranks(returns_TN)
        return {
            **means,
            **about_kl,
            **about_words,
            "explained_variance": explained_variance(predicted, targets),
            "first_ratio_error": max_over_ranks(self.accelerator, steps[0]["ratio_error"]),
            "n_epochs_done": epoch + 1,
        }

    def _data(
        self, rollout: RolloutBuffer, samples: Samples, number: int
    ) -> tuple[Batch, np.ndarray, dict[str, float]]:
        """What the losses need of each sample, the critic's targets (T, N), and what is logged."""
        order = self._minibatches(number, 0, len(samples))
        old_log_probs_B = samples.tensor(rollout.log_probs)
        if self.ppo.recompute_log_probs:
            old_log_probs_B = self._log_probs(samples, order)
        rewards_TN, about_kl = self._penalized_rewards(rollout, samples, old_log_probs_B, order)
        advantages_TN, returns_TN = self._advantages(rollout, rewards_TN)
        if self.ppo.normalize_advantage:
            advantages_TN = normalize_over_ranks(advantages_TN)
        data = {
            "actions": samples.actions,
            "log_probs": old_log_probs_B,
            "values": samples.tensor(rollout.values),
            "returns": samples.tensor(returns_TN),
            "advantages": samples.tensor(advantages_TN),
        }
        return data, returns_TN, about_kl

    def _advantages(
        self, rollout: RolloutBuffer, rewards_TN: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Advantages, and the critic's targets, which may have a lambda of their own."""
        watched = (
            rewards_TN,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            self.ppo.gamma,
        )
        advantages_TN, returns_TN = generalized_advantages(*watched, self.ppo.gae_lambda)
        if self.critic.value_lambda is not None:
            _, returns_TN = generalized_advantages(*watched, self.critic.value_lambda)
        return advantages_TN, returns_TN

    def _step(
        self, samples: Samples, data: Batch, index: np.ndarray, number: int, where: str
    ) -> Batch:
        """One optimiser step on one minibatch, and what is logged of it."""
        self.optimizer.zero_grad()
        parts, shares = [], []
        size = self.ppo.micro_batch_size
        for part, share in micro_batches(self.accelerator, self.model, index, size):
            batch = {name: values[part] for name, values in data.items()}
            loss, stats = self._loss(samples.inputs(part), batch)
            self.accelerator.backward(loss * share)
            parts.append(stats)
            shares.append(share)
        if number < self.critic.critic_warmup_updates:
            for parameter in self.policy.actor_parameters():
                parameter.grad = None  # the optimiser passes over them: only the critic moves
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.ppo.max_grad_norm)
        check_finite(norm, self.accelerator, where)
        self.optimizer.step()
        errors = torch.stack([stats.pop("ratio_error") for stats in parts])
        means = {
            name: sum(share * stats[name] for share, stats in zip(shares, parts, strict=True))
            for name in parts[0]
        }
        return {**means, "grad_norm": norm.detach(), "ratio_error": errors.max()}

    def _loss(self, inputs: Batch, batch: Batch) -> tuple[torch.Tensor, Batch]:
        """Policy + value_coef x value - entropy_coef x entropy, and what is logged of it."""
        log_probs, entropy, values = evaluate_actions(self.model, inputs, batch["actions"])
        policy = clipped_policy_loss(
            log_probs, batch["log_probs"], batch["advantages"], self.ppo.clip_range
        )
        critic = value_loss(values, batch["values"], batch["returns"], self.critic.clip_range_value)
        entropy = entropy.mean()
        loss = policy.loss + self.ppo.value_coef * critic - self.ppo.entropy_coef * entropy
        return loss, {
            "policy_loss": policy.loss.detach(),
            "value_loss": critic.detach(),
            "entropy": entropy.detach(),
            "approx_kl": policy.approx_kl,
            "clip_fraction": policy.clip_fraction,
            "ratio_error": policy.max_ratio_error,
        }

    @torch.no_grad()
    def _log_probs(
        self,
        samples: Samples,
        order: list[np.ndarray],
        reference: ReferencePolicy | None = None,
    ) -> torch.Tensor:
        """Log-probabilities of all samples' words, (B,), in minibatches as of the first epoch.

        Args:
            samples: The rollout.
            order: The minibatches.
            reference: Whose; the policy's own without it.
        """
        result = torch.empty(len(samples), device=self.policy.device)
        for index in order:
            for part in parts_of(index, self.ppo.micro_batch_size):
                inputs, actions = samples.inputs(part), samples.actions[part]
                if reference is None:
                    result[part] = evaluate_actions(self.actor_critic, inputs, actions)[0]
                else:
                    inputs.pop("privileged_state", None)
                    with self.accelerator.autocast():
                        result[part] = reference.log_probs(inputs, actions)
        return result

    def _penalized_rewards(
        self,
        rollout: RolloutBuffer,
        samples: Samples,
        log_probs_B: torch.Tensor,
        order: list[np.ndarray],
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Rewards minus ``kl_coef`` times the estimated KL to the reference, word by word."""
        if self.reference is None:
            return rollout.rewards, {}
        kl_B = kl_estimates(
            log_probs_B, self._log_probs(samples, order, self.reference), self.ppo.kl_estimator
        )
        mean = mean_over_ranks(self.accelerator, [{"reference_kl": kl_B.mean()}])
        kl_TN = kl_B.double().cpu().numpy().reshape(rollout.rewards.shape)
        return rollout.rewards - self.ppo.kl_coef * kl_TN, mean

    def _vocabulary_share(self, samples: Samples, number: int) -> dict[str, float]:
        """Now and then, the words' share of the vocabulary's probability on one minibatch."""
        if number % VOCABULARY_SHARE_EVERY or self.policy.action_head is not None:
            return {}
        index = self._minibatches(number, 0, len(samples))[0]
        shares = []
        for part in parts_of(index, self.ppo.micro_batch_size):
            inputs = samples.inputs(part)
            inputs.pop("privileged_state", None)
            with self.accelerator.autocast():
                shares.append(self.policy.vocabulary_share(**inputs))
        share = torch.cat(shares).mean()
        return mean_over_ranks(self.accelerator, [{"vocabulary_share": share}])

    def _minibatches(self, number: int, epoch: int, samples: int) -> list[np.ndarray]:
        """A fresh partition of the samples for each epoch."""
        rank, size = self.accelerator.process_index, self.ppo.batch_size
        rng = derive_rng(self.recipe.run.seed, "shuffle", rank, number, epoch)
        return np.split(rng.permutation(samples), range(size, samples, size))
