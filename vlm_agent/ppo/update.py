"""``PPOUpdate``: some epochs of PPO over one rollout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from vlm_agent.common.seeding import derive_rng
from vlm_agent.policy.decisions import evaluate_actions
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.advantages import generalized_advantages
from vlm_agent.ppo.critic import fit_value_head
from vlm_agent.ppo.losses import clipped_policy_loss, kl_estimates, value_loss
from vlm_agent.ppo.reference import ReferencePolicy
from vlm_agent.recipe.recipe import PPOConfig
from vlm_agent.rollout.collector import RolloutBuffer
from vlm_agent.rollout.samples import Samples
from vlm_agent.runs.distributed import (
    explained_variance_over_ranks,
    max_over_ranks,
    mean_over_ranks,
    normalize_over_ranks,
)

StepStats = dict[str, torch.Tensor]
"""Scalars of one optimiser step."""

VOCABULARY_SHARE_EVERY = 10
"""Updates between two looks at how much of the vocabulary's probability the words have."""


class PPOUpdate:
    """Improves the policy on a rollout.

    Args:
        ppo: The recipe's part about learning.
        accelerator: Talks to the other processes.
        model: The policy as accelerate wrapped it; gradients go through it.
        optimizer: Its optimiser.
        reference: The start policy, if ``kl_coef`` is not 0.
    """

    def __init__(
        self,
        ppo: PPOConfig,
        accelerator: Accelerator,
        model: Any,
        optimizer: Any,
        reference: ReferencePolicy | None,
    ) -> None:
        self.ppo = ppo
        self.accelerator = accelerator
        self.model = model
        self.policy: VLMPolicy = accelerator.unwrap_model(model)
        self.optimizer = optimizer
        self.reference = reference

    def __call__(self, rollout: RolloutBuffer, number: int) -> dict[str, float]:
        """``n_epochs`` passes over one rollout; means over its minibatches.

        Args:
            rollout: What this rank collected.
            number: How many updates there were before.
        """
        self.policy.train()
        samples = Samples(self.policy, rollout, self.accelerator.autocast)
        order = self._minibatches(number, 0, len(samples))
        old_log_probs = samples.tensor(rollout.log_probs)
        if self.ppo.recompute_log_probs:
            old_log_probs = self._log_probs(samples, order)
        rewards_TN, about_kl = self._penalized_rewards(rollout, samples, old_log_probs, order)
        advantages_TN, returns_TN = self._advantages(rollout, rewards_TN)
        if self.ppo.normalize_advantage:
            advantages_TN = normalize_over_ranks(advantages_TN)
        data = {
            "actions": samples.actions,
            "log_probs": old_log_probs,
            "values": samples.tensor(rollout.values),
            "returns": samples.tensor(returns_TN),
            "advantages": samples.tensor(advantages_TN),
        }
        about_words = self._vocabulary_share(samples, order[0], number)
        steps: list[StepStats] = []
        for epoch in range(self.ppo.n_epochs):
            done_before = len(steps)
            for index in self._minibatches(number, epoch, len(samples)):
                batch = {k: v[index] for k, v in data.items()}
                steps.append(self._step(samples.inputs(index), batch, number))
            epoch_kl = mean_over_ranks(self.accelerator, steps[done_before:])["approx_kl"]
            if self.ppo.target_kl is not None and epoch_kl > self.ppo.target_kl:
                break
        if self.ppo.value_epochs:
            fit_value_head(
                self.policy,
                self.accelerator,
                samples,
                returns_TN,
                ppo=self.ppo,
                epochs=self.ppo.value_epochs,
                learning_rate=self.optimizer.param_groups[1]["lr"],
                purpose=("value head", number),
            )
        means = mean_over_ranks(self.accelerator, steps)
        del means["ratio_error"]
        return {
            **means,
            **about_kl,
            **about_words,
            "explained_variance": explained_variance_over_ranks(rollout.values, returns_TN),
            "first_ratio_error": max_over_ranks(self.accelerator, steps[0]["ratio_error"]),
            "n_epochs_done": epoch + 1,
        }

    def _advantages(
        self, rollout: RolloutBuffer, rewards_TN: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Advantages, and the value head's targets, which may have a lambda of their own."""
        watched = (
            rewards_TN,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            self.ppo.gamma,
        )
        advantages_TN, returns_TN = generalized_advantages(*watched, self.ppo.gae_lambda)
        if self.ppo.value_lambda is not None:
            _, returns_TN = generalized_advantages(*watched, self.ppo.value_lambda)
        return advantages_TN, returns_TN

    def _step(
        self, inputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], number: int
    ) -> StepStats:
        """One optimiser step on one minibatch, and what is logged of it."""
        log_probs, entropy, values = evaluate_actions(self.model, inputs, batch["actions"])
        policy = clipped_policy_loss(
            log_probs, batch["log_probs"], batch["advantages"], self.ppo.clip_range
        )
        critic = value_loss(values, batch["values"], batch["returns"], self.ppo.clip_range_value)
        entropy = entropy.mean()
        loss = policy.loss + self.ppo.value_coef * critic - self.ppo.entropy_coef * entropy
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if number < self.ppo.critic_warmup_updates:
            for parameter in self.policy.actor_parameters():
                parameter.grad = None  # the optimiser passes over them: only the critic moves
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.ppo.max_grad_norm)
        self.optimizer.step()
        return {
            "policy_loss": policy.loss.detach(),
            "value_loss": critic.detach(),
            "entropy": entropy.detach(),
            "approx_kl": policy.approx_kl,
            "clip_fraction": policy.clip_fraction,
            "grad_norm": norm.detach(),
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
            inputs, actions = samples.inputs(index), samples.actions[index]
            if reference is None:
                result[index] = evaluate_actions(self.policy, inputs, actions)[0]
            else:
                result[index] = reference.log_probs(inputs, actions)
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

    def _vocabulary_share(
        self, samples: Samples, index: np.ndarray, number: int
    ) -> dict[str, float]:
        """Now and then, the words' share of the vocabulary's probability on one minibatch."""
        if number % VOCABULARY_SHARE_EVERY or self.policy.action_head is not None:
            return {}
        with self.accelerator.autocast():
            share = self.policy.vocabulary_share(**samples.inputs(index)).mean()
        return mean_over_ranks(self.accelerator, [{"vocabulary_share": share}])

    def _minibatches(self, number: int, epoch: int, samples: int) -> list[np.ndarray]:
        rank, size = self.accelerator.process_index, self.ppo.batch_size
        rng = derive_rng(self.ppo.seed, "shuffle", rank, number, epoch)
        return np.split(rng.permutation(samples), range(size, samples, size))
