"""``ImitationTrainer``: the warm start, from the expert's words to a policy PPO can improve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from vlm_agent.common.seeding import derive_rng
from vlm_agent.demonstrations.dataset import Labelled, read_demonstrations
from vlm_agent.evaluation.evaluate import episode_rates
from vlm_agent.evaluation.evaluator import Evaluator
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.advantages import generalized_advantages
from vlm_agent.ppo.critic import fit_value_head
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.collector import RolloutBuffer, RolloutCollector
from vlm_agent.rollout.samples import Samples
from vlm_agent.runs.checkpoints import RunFolders, save_checkpoint
from vlm_agent.runs.distributed import mean_over_ranks
from vlm_agent.runs.launch import allow_unused_layers
from vlm_agent.runs.tracking import MetricsLog
from vlm_agent.world.pool.pool import EnvPool

WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""

WEIGHT_DECAY = 0.01

MAX_GRAD_NORM = 1.0

VALUE_EPOCHS = 20
"""Passes of the value head over the pupil's returns; they cost next to nothing."""


class ImitationTrainer:
    """Cross-entropy on the expert's words, through the scores that PPO uses, then DAgger.

    In a round of DAgger (Ross, Gordon & Bagnell 2011) the pupil speaks, so that it comes into the
    states that its own mistakes lead to; the expert says what it would have done there; and the
    pupil learns everything there is. At last the value head learns the pupil's returns.

    Args:
        recipe: The run.
        accelerator: Wraps the policy and talks to the other processes.
        policy: The policy to train.
        pool: This process's environments, which tell the expert's words (``ExpertEnv``).
    """

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, policy: VLMPolicy, pool: EnvPool
    ) -> None:
        self.recipe = recipe
        self.config = recipe.imitation
        self.accelerator = accelerator
        self.pool = pool
        self.folders = RunFolders(recipe)
        self.log = MetricsLog(self.folders.metrics, accelerator)
        optimizer = torch.optim.AdamW(policy.actor_parameters(), weight_decay=WEIGHT_DECAY)
        allow_unused_layers(accelerator, policy)
        self.model, self.optimizer = accelerator.prepare(policy, optimizer)
        self.policy: VLMPolicy = accelerator.unwrap_model(self.model)
        self.collector = RolloutCollector(
            pool, recipe.ppo.seed, accelerator.process_index, recipe.ppo.rollout_groups
        )
        self.words_learnt = 0  # moments gone through, over all epochs and ranks
        self.evaluator = Evaluator(recipe, accelerator, pool, self.log)

    def train(self) -> None:
        """Demonstrations, rounds of DAgger, value head; evaluate after each."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        known = read_demonstrations(self.recipe)[rank::ranks]
        self.fit(known, self.config.sft_epochs, self.config.sft_learning_rate, "demonstrations")
        self.evaluate()
        for number in range(1, self.config.dagger_rounds + 1):
            known = Labelled.concatenate([known, self.collect(f"DAgger round {number}")])
            name = f"DAgger round {number}"
            self.fit(known, self.config.dagger_epochs, self.config.dagger_learning_rate, name)
            self.evaluate()
        self.warm_value_head()
        self.save(self.folders.final)

    def fit(self, known: Labelled, epochs: int, peak: float, stage: str) -> None:
        """Go over all moments ``epochs`` times, with a learning rate that rises and falls.

        Args:
            known: What this rank knows.
            epochs: Number of passes.
            peak: The highest learning rate.
            stage: A name for progress bar and metrics.
        """
        size = min(self.config.sft_batch_size, len(known))
        batches = min(gather_object([len(known) // size]))  # as many in every rank
        total, done = epochs * batches, 0
        self.policy.train()
        with self._progress_bar(total, f"learning {stage}", "batch") as bar:
            for epoch in range(epochs):
                steps = []
                rng = derive_rng(self.recipe.ppo.seed, stage, self.accelerator.process_index, epoch)
                order = rng.permutation(len(known))[: batches * size].reshape(batches, size)
                for index in order:
                    rate = peak * warmup_and_decay(done / total)
                    steps.append(self._step(known[np.sort(index)], rate))
                    done += 1
                    bar.update()
                means = mean_over_ranks(self.accelerator, steps)
                bar.set_postfix({key: f"{means[key]:.3f}" for key in ("loss", "accuracy")})
                self.words_learnt += batches * size * self.accelerator.num_processes
                self._record({"stage": stage, "epoch": epoch + 1, **means})

    def _step(self, batch: Labelled, learning_rate: float) -> dict[str, torch.Tensor]:
        """One optimiser step on one minibatch."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        output = self.model(**self.policy.encode(batch.observations))
        labels = torch.from_numpy(batch.actions).to(output.logits.device)
        loss = nn.functional.cross_entropy(output.logits, labels)
        # The value head learns nothing yet, but DistributedDataParallel waits for its gradient.
        self.optimizer.zero_grad()
        self.accelerator.backward(loss + 0.0 * output.values.sum())
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        accuracy = (output.logits.argmax(-1) == labels).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy, "grad_norm": norm.detach()}

    def collect(self, stage: str) -> Labelled:
        """The pupil speaks, the expert labels."""
        rollout = self._rollout(stage)
        return Labelled(rollout.observations.flatten(), rollout.expert_actions.reshape(-1))

    def _rollout(self, stage: str, at_least: int = 1) -> RolloutBuffer:
        """``dagger_words`` words of the pupil, and ``at_least`` so many per environment."""
        words_per_step = self.pool.num_envs * self.accelerator.num_processes
        steps = max(at_least, round(self.config.dagger_words / words_per_step))
        self.policy.eval()
        with self._progress_bar(steps * words_per_step, stage, "word") as bar:
            rollout, episodes = self.collector.collect_rollout(
                self.policy, steps, lambda: bar.update(words_per_step)
            )
        agreement = (rollout.actions == rollout.expert_actions).mean()
        rates = episode_rates(gather_object(episodes))
        self._record({"stage": f"{stage}: the pupil speaks", "agreement": agreement, **rates})
        return rollout

    def warm_value_head(self) -> None:
        """Teach the value head the returns of what the pupil does; nothing else changes."""
        # Long enough for failures to end: with successes alone all moments would look good.
        rollout = self._rollout("value head", at_least=2 * self.recipe.env.horizon)
        ppo, policy = self.recipe.ppo, self.policy
        _, returns_TN = generalized_advantages(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            ppo.gamma,
            gae_lambda=1.0,
        )
        # What comes after the rollout is unknown, and the head that would guess it is still new.
        ended_TN = rollout.terminated | rollout.truncated
        returns_TN[~np.logical_or.accumulate(ended_TN[::-1])[::-1]] = np.nan
        explained = fit_value_head(
            policy,
            self.accelerator,
            Samples(policy, rollout, self.accelerator.autocast),
            returns_TN,
            ppo=ppo,
            epochs=VALUE_EPOCHS,
            learning_rate=ppo.value_learning_rate,
        )
        self._record({"stage": "value head", "explained_variance": explained})

    def evaluate(self) -> None:
        """Play the validation episodes, and keep the policy as it is now."""
        if self.recipe.ppo.num_eval_episodes > 0:
            self.collector.step_aside()
            rates = self.evaluator(self.policy, self.words_learnt)
            interval = f"{rates['ci95_low']:.2f}-{rates['ci95_high']:.2f}"
            message = f"success {rates['success_rate']:.3f} ({interval}) in validation"
            if self.accelerator.is_main_process:
                tqdm.write(message)
        self.save(self.folders.step(self.words_learnt))

    def save(self, folder: Path) -> None:
        """Write the policy with how good it was found to be."""
        if self.accelerator.is_main_process:
            save_checkpoint(folder, self.policy, {"evaluations": self.evaluator.history})
        self.accelerator.wait_for_everyone()

    def _record(self, metrics: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.log.write({"timesteps": self.words_learnt, **metrics})

    def _progress_bar(self, total: int, name: str, unit: str) -> tqdm:
        hidden = not self.accelerator.is_main_process
        return tqdm(total=total, desc=name, unit=unit, mininterval=0.5, disable=hidden)


def warmup_and_decay(progress: float) -> float:
    """The factor of the learning rate: from 0 up to 1, then straight down to 0.

    Args:
        progress: Share of the steps that are done, in [0, 1].
    """
    return min(progress / WARMUP, (1.0 - progress) / (1.0 - WARMUP))
