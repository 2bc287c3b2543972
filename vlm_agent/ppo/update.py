"""``PPOUpdate``: some epochs of PPO over one rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn

from vlm_agent.common.errors import TrainingError
from vlm_agent.distributed.learner import Learner
from vlm_agent.distributed.reductions import (
    concatenate_ranks,
    mean_over_ranks,
    parts_of,
)
from vlm_agent.policy.decisions import evaluate_actions
from vlm_agent.ppo.advantages import explained_variance
from vlm_agent.ppo.critic import ActorCritic, fit_critic
from vlm_agent.ppo.losses import clipped_policy_loss, kl_estimates, state_loss, value_loss
from vlm_agent.ppo.minibatches import Minibatch, Minibatches
from vlm_agent.ppo.ratios import FirstRatios
from vlm_agent.ppo.reference import ReferencePolicy
from vlm_agent.ppo.targets import estimate_targets
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.rollout.faults import write_fault
from vlm_agent.rollout.samples import Samples
from vlm_agent.runs.folders import RunFolders

Batch = dict[str, torch.Tensor]
"""Samples of one minibatch, or scalars of one optimiser step, by name."""

VOCABULARY_SHARE_EVERY = 10
"""Updates between two looks at how much of the vocabulary's probability the words have."""


class PPOUpdate:
    """Improves the policy on a rollout.

    Args:
        recipe: The run.
        learner: The actor-critic as accelerate wrapped it; gradients go through it.
        reference: The start policy, if ``kl_coef`` is not 0.
    """

    def __init__(
        self, recipe: Recipe, learner: Learner, reference: ReferencePolicy | None = None
    ) -> None:
        self.recipe = recipe
        self.ppo, self.critic = recipe.ppo, recipe.critic
        self.learner, self.accelerator = learner, learner.accelerator
        self.actor_critic: ActorCritic = learner.module
        self.policy = self.actor_critic.policy
        self.reference = reference
        self._first_ratios = FirstRatios(recipe, learner.accelerator)

    def __call__(
        self,
        rollout: RolloutBuffer,
        number: int,
        critic_learning_rate: float,
        on_step: Callable[[], object] = lambda: None,
    ) -> dict[str, float]:
        """``n_epochs`` passes over one rollout; means over its minibatches, if it taught anything.

        Args:
            rollout: What this rank collected.
            number: How many updates there were before.
            critic_learning_rate: Of the critic's own passes.
            on_step: Called before each step of the optimiser; what it raises leaves the update.

        Raises:
            TrainingError: A gradient is not finite; the weights are what they were before it.
        """
        self.learner.model.train()
        samples = Samples(self.actor_critic, rollout, self.accelerator.autocast, rollout.valid)
        minibatches = self._minibatches(rollout, number)
        if not minibatches.number:
            return {}
        data, returns_TN, logged = self._data(rollout, samples, minibatches)
        steps: list[Batch] = []
        logged |= self._vocabulary_share(samples, minibatches)
        for epoch in range(self.ppo.n_epochs):
            done_before = len(steps)
            for minibatch in minibatches(epoch):
                on_step()
                where = f"update {number}, epoch {epoch}, minibatch {len(steps) - done_before}"
                steps.append(self._step(samples, data, minibatch, number, where))
                if len(steps) == 1:
                    logged |= self._first_ratios(steps[0], number)
            epoch_kl = mean_over_ranks(self.accelerator, steps[done_before:])["approx_kl"]
            if self.ppo.target_kl is not None and epoch_kl > self.ppo.target_kl:
                break
        self.learner.refresh()
        if self.critic.value_epochs:
            self._teach_critic(rollout, returns_TN, number, critic_learning_rate)
        means = mean_over_ranks(self.accelerator, steps)
        del means["ratio_error"]
        if self.actor_critic.learns_values:
            watched = rollout.values[rollout.valid], returns_TN[rollout.valid]
            predicted, targets = (concatenate_ranks(array) for array in watched)
            logged["explained_variance"] = explained_variance(predicted, targets)
        return {
            **means,
            **logged,
            "n_epochs_done": epoch + 1,
        }

    def _teach_critic(
        self, rollout: RolloutBuffer, returns_TN: np.ndarray, number: int, learning_rate: float
    ) -> None:
        """Passes in which the critic learns alone."""
        fit_critic(
            self.actor_critic,
            self.accelerator,
            Samples(self.actor_critic, rollout, self.accelerator.autocast),
            np.where(rollout.valid, returns_TN, np.nan),
            recipe=self.recipe,
            epochs=self.critic.value_epochs,
            learning_rate=learning_rate,
            purpose=("value head", number),
        )
        self.learner.take_over(self._names_of(self.actor_critic.critic.parameters()))

    def _names_of(self, parameters: Iterable[nn.Parameter]) -> list[str]:
        """Of some of the actor-critic's parameters."""
        chosen = {id(parameter) for parameter in parameters}
        return [name for name, p in self.actor_critic.named_parameters() if id(p) in chosen]

    def _data(
        self, rollout: RolloutBuffer, samples: Samples, minibatches: Minibatches
    ) -> tuple[Batch, np.ndarray, dict[str, float]]:
        """What the losses need of each sample, the critic's targets (T, N), and what is logged."""
        old_log_probs_B = samples.tensor(rollout.log_probs)
        if self.ppo.recompute_log_probs:
            old_log_probs_B = self._log_probs(samples, minibatches)
        rewards_TN, logged = self._penalized_rewards(rollout, samples, old_log_probs_B, minibatches)
        advantages_TN, returns_TN, about_groups = estimate_targets(self.recipe, rollout, rewards_TN)
        logged |= about_groups
        data = {
            "actions": samples.actions,
            "log_probs": old_log_probs_B,
            "values": samples.tensor(rollout.values),
            "returns": samples.tensor(returns_TN),
            "advantages": samples.tensor(advantages_TN),
        }
        return data, returns_TN, logged

    def _step(
        self, samples: Samples, data: Batch, minibatch: Minibatch, number: int, where: str
    ) -> Batch:
        """One optimiser step on one minibatch, and what is logged of it."""
        parts: list[dict[str, Any]] = []
        shares: list[float] = []
        for part, share in self.learner.parts(minibatch.index):
            share *= minibatch.weight
            batch = {name: values[part] for name, values in data.items()}
            loss, stats = self._loss(samples.inputs(part), batch)
            self.learner.backward(loss * share)
            parts.append(stats)
            shares.append(share)
        only_critic = number < self.critic.critic_warmup_updates
        frozen = self._names_of(self.policy.actor_parameters()) if only_critic else []
        try:
            norm = self.learner.step(where, frozen)
        except TrainingError as error:
            raise self._written_down(error, samples, minibatch) from None
        errors = torch.stack([stats.pop("ratio_error") for stats in parts])
        means = {
            name: sum(share * stats[name] for share, stats in zip(shares, parts, strict=True))
            for name in parts[0]
        }
        return {**means, "grad_norm": norm, "ratio_error": errors.max()}

    def _written_down(
        self, error: TrainingError, samples: Samples, minibatch: Minibatch
    ) -> TrainingError:
        """The same error, with the place of what was to be learnt from."""
        folder = RunFolders(self.recipe).run / f"not_finite_{self.accelerator.process_index}"
        rows, words = samples.rows[minibatch.index], self.policy.words
        path = write_fault(folder, samples.rollout, rows, self.recipe.env, words, str(error))
        return TrainingError(f"{error}. Its minibatch is in {folder}: vlm-agent show {path}")

    def _loss(self, inputs: Batch, batch: Batch) -> tuple[torch.Tensor, Batch]:
        """Policy + value_coef x value + state_coef x state - entropy_coef x entropy.

        There is no value loss where nothing learns values, and no state's without a state head.
        """
        said = evaluate_actions(self.learner.model, inputs, batch["actions"])
        policy = clipped_policy_loss(
            said.log_probs, batch["log_probs"], batch["advantages"], self.ppo.clip_range
        )
        loss, also = policy.loss, {}
        if self.actor_critic.learns_values:
            critic = value_loss(
                said.values, batch["values"], batch["returns"], self.critic.clip_range_value
            )
            loss = loss + self.ppo.value_coef * critic
            also["value_loss"] = critic.detach()
        if said.states is not None:
            seeing = state_loss(said.states, inputs["privileged_state"])
            loss = loss + self.critic.state_coef * seeing
            also["state_loss"] = seeing.detach()
        entropy = said.entropy.mean()
        return loss - self.ppo.entropy_coef * entropy, {
            "policy_loss": policy.loss.detach(),
            **also,
            "entropy": entropy.detach(),
            "approx_kl": policy.approx_kl,
            "clip_fraction": policy.clip_fraction,
            "ratio_error": policy.max_ratio_error,
        }

    @torch.no_grad()
    def _log_probs(
        self,
        samples: Samples,
        minibatches: Minibatches,
        reference: ReferencePolicy | None = None,
    ) -> torch.Tensor:
        """Log-probabilities of all samples' words, (B,), in minibatches as of the first epoch.

        Args:
            samples: The rollout.
            minibatches: How they are dealt out.
            reference: Whose; the policy's own without it.
        """
        result = torch.empty(len(samples), device=self.policy.device)
        for minibatch in minibatches(0):
            for part in parts_of(minibatch.index, self.ppo.micro_batch_size):
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
        minibatches: Minibatches,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Rewards minus ``kl_coef`` times the estimated KL to the reference, word by word."""
        if self.reference is None:
            return rollout.rewards, {}
        kl_B = kl_estimates(
            log_probs_B,
            self._log_probs(samples, minibatches, self.reference),
            self.ppo.kl_estimator,
        )
        share = kl_B.mean() * minibatches.weight
        mean = mean_over_ranks(self.accelerator, [{"reference_kl": share}])
        kl_TN = np.zeros(rollout.rewards.shape)
        kl_TN.flat[samples.rows] = kl_B.double().cpu().numpy()
        return rollout.rewards - self.ppo.kl_coef * kl_TN, mean

    def _vocabulary_share(self, samples: Samples, minibatches: Minibatches) -> dict[str, float]:
        """Now and then, the words' share of the vocabulary's probability on one minibatch."""
        if minibatches.update % VOCABULARY_SHARE_EVERY or self.policy.action_head is not None:
            return {}
        index = minibatches(0)[0].index
        shares = []
        for part in parts_of(index, self.ppo.micro_batch_size):
            inputs = samples.fresh_inputs(part)
            inputs.pop("privileged_state", None)
            with self.accelerator.autocast():
                shares.append(self.policy.vocabulary_share(**inputs))
        share = torch.cat(shares).mean()
        return mean_over_ranks(self.accelerator, [{"vocabulary_share": share}])

    def _minibatches(self, rollout: RolloutBuffer, number: int) -> Minibatches:
        """How all processes deal out their samples."""
        valid = rollout.valid
        counts = gather_object([(int(valid.sum()), valid.size)])
        return Minibatches(
            self.recipe.run.seed,
            self.accelerator.process_index,
            self.ppo.batch_size,
            [count for count, _ in counts],
            number,
            all(count == size for count, size in counts),
        )
