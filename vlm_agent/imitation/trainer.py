"""``ImitationTrainer``: the warm start, from the expert's words to a policy PPO can improve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from vlm_agent.common.errors import Stopped, UserError
from vlm_agent.demonstrations.reading import Labelled, Moments, read_demonstrations
from vlm_agent.distributed.reductions import gather_unless_stopped, mean_over_ranks
from vlm_agent.evaluation.evaluate import Evaluation, episode_rates
from vlm_agent.evaluation.validate import validate
from vlm_agent.imitation.checks import check_warm_start
from vlm_agent.imitation.lesson import Lesson
from vlm_agent.imitation.resume import NOWHERE, forget_passes, learnt_stages, restore, within_stage
from vlm_agent.imitation.returns import learn_returns
from vlm_agent.imitation.update import MAX_GRAD_NORM, CrossEntropyUpdate, make_optimizer
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.critic import make_actor_critic
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.rollout.collector import RolloutCollector
from vlm_agent.rollout.sources import FreshEpisodes
from vlm_agent.runs.begin import Run
from vlm_agent.runs.callbacks import Callback
from vlm_agent.runs.checkpoints import load_trainer_state, save_checkpoint
from vlm_agent.runs.determinism import deterministic
from vlm_agent.runs.folders import OPTIMIZER_FILE
from vlm_agent.runs.trackers.tracking import Recorder
from vlm_agent.runs.trainer import Trainer
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.pool import EnvPool


class ImitationTrainer(Trainer):
    """Cross-entropy on the expert's words, through the scores that PPO uses, then DAgger.

    In a round of DAgger (Ross, Gordon & Bagnell 2011) the student speaks, so that it comes into the
    states that its own mistakes lead to; the expert says what it would have done there; and the
    student learns everything there is. At last the critic learns the student's returns.

    Args:
        policy: The policy to train.
        pool: This process's environments, which tell the expert's words:
            ``recipe.make_pool(ExpertEnv)``.
        recipe: The run.
        callbacks: Told of what happens. ``timesteps`` counts the moments gone through, over all
            epochs and processes; an update is an epoch.
        accelerator: Wraps the policy and talks to the other processes; made by default.
        run: Where it writes; made from the recipe by default.

    Raises:
        UserError: The launch, the policy, the pool or the run's name is not as the recipe needs
            it, or the recipe is not one of a warm start.
    """

    def __init__(
        self,
        policy: VLMPolicy,
        pool: EnvPool,
        recipe: Recipe,
        callbacks: Sequence[Callback] = (),
        *,
        accelerator: Accelerator | None = None,
        run: Run | None = None,
    ) -> None:
        check_warm_start(recipe)
        super().__init__(policy, pool, recipe, run, accelerator)
        self.config = recipe.imitation
        self.actor_critic = make_actor_critic(policy, pool, recipe)
        self.prepare(policy, make_optimizer, MAX_GRAD_NORM)
        self.imitate = CrossEntropyUpdate(self.learner, policy)
        self.collector = RolloutCollector(
            pool,
            FreshEpisodes(recipe.run.seed),
            recipe.run.seed,
            self.accelerator.process_index,
            recipe.rollout.rollout_groups,
        )
        self.stage = 0  # the demonstrations; else the round of DAgger
        self._is_whole = self._is_repeating = False
        self._lesson: Lesson | None = None  # that is gone over now
        self._learnt: dict[int, Path] = {}
        self._within = NOWHERE
        self.listen(*callbacks, Recorder())

    def train(self, demonstrations: Labelled | None = None) -> None:
        """Demonstrations, rounds of DAgger, value head; evaluate after each.

        Args:
            demonstrations: What to begin with; by default those that the recipe names.

        Raises:
            UserError: The demonstrations are missing.
            TrainingError: A gradient is not finite.
        """
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        if demonstrations is None:
            demonstrations = read_demonstrations(self.recipe)
        known = Moments(demonstrations[rank::ranks])
        with self.run.owned(), deterministic(self.accelerator.device):
            self.callbacks("on_train_begin", self)
            for stage in range(self.config.dagger_rounds + 1):
                if self.should_stop:
                    break
                known = self.learn(stage, known)
            self.warm_value_head()
            self._save(self.folders.final)
            self.callbacks("on_train_end", self)

    def learn(self, stage: int, known: Moments) -> Moments:
        """One :attr:`stage`: the student speaks, learns all that is known then, and is saved."""
        self.stage, config = stage, self.config
        if stage == 0:
            name, epochs, peak = "demonstrations", config.sft_epochs, config.sft_learning_rate
            fresh = len(known)
        else:
            name = f"DAgger round {stage}"
            epochs, peak = config.dagger_epochs, config.dagger_learning_rate
            # What the student says again is on record already.
            self._is_repeating = stage in (*self._learnt, self._within.stage)
            heard, self._is_repeating = self.collect(name), False
            fresh, known = len(heard), Moments(*known.parts, heard)
        if stage in self._learnt:
            restore(self.learner, self._learnt[stage])
            self._is_whole = True
            is_last = stage == max(self._learnt) and self._within is NOWHERE
            if is_last and self.evaluations_lack(self.timesteps):  # the run was stopped in that
                self.conclude()
        else:
            self.fit(known, epochs, peak, name, fresh)
            self.conclude()
        return known

    def fit(
        self, known: Moments, epochs: int, peak: float, stage: str, fresh: int | None = None
    ) -> None:
        """Go over what is known so many times; the learning rate rises to ``peak``, and falls.

        Of all but the ``fresh`` last moments a pass takes the share that ``dagger_replay`` says.
        On its way it saves every ``save_freq`` moments, in place of what it saved there before.
        """
        self.run.begin()
        lesson = self._prepare(known, epochs, peak, stage, fresh)
        moments = lesson.size * self.accelerator.num_processes
        self.learner.model.train()
        with self.progress_bar(lesson.total, f"learning {stage}", "batch", lesson.done) as bar:
            while lesson.done < lesson.total and not self.should_stop:
                for index in lesson.order()[lesson.done % lesson.batches :]:
                    rate, where = lesson.learning_rate, f"{stage}, epoch {lesson.epoch}"
                    lesson.seen.append(self.imitate.step(known, np.sort(index), rate, where))
                    lesson.done += 1
                    self.timesteps += moments
                    bar.update()
                    is_due = self.timesteps % self.recipe.run.save_freq < moments
                    if lesson.ends_pass:
                        continue
                    if (reason := self.asked_to_stop()) or is_due:
                        self.learner.refresh()
                        folder = self.save()
                        if reason:
                            raise Stopped(reason, folder)
                means = mean_over_ranks(self.accelerator, lesson.seen)
                lesson.seen.clear()
                self.learner.refresh()
                bar.set_postfix({key: f"{means[key]:.3f}" for key in ("loss", "accuracy")})
                self._record({"stage": stage, "epoch": lesson.epoch, **means})
        if lesson.done == lesson.total:
            self._is_whole, self._lesson = True, None

    def _prepare(
        self, known: Moments, epochs: int, peak: float, stage: str, fresh: int | None
    ) -> Lesson:
        """The passes of a stage, as far as they were gone when the run was stopped in them."""
        rank = self.accelerator.process_index
        last = len(known) if fresh is None else fresh
        lesson = Lesson.over(known, epochs, peak, stage, last, self.recipe, rank)
        if self._within.stage == self.stage:
            restore(self.learner, self._within.folder)
            lesson.load_state_dict(self._within.lessons[rank], self.policy.device)
            self._within = NOWHERE
        self._is_whole, self._lesson = False, lesson
        return lesson

    def collect(self, stage: str) -> Labelled:
        """The student speaks, the expert labels.

        Raises:
            UserError: There is no expert.
        """
        rollout = self._rollout(stage)
        heard = rollout.valid.reshape(-1)
        labels = rollout.expert_actions.reshape(-1)[heard]
        if (labels < 0).any():
            raise UserError(
                "the environments do not tell the expert's words: make them with "
                "recipe.make_pool(ExpertEnv)"
            )
        return Labelled(rollout.observations.flatten()[heard], labels)

    def _rollout(self, stage: str, at_least: int = 1) -> RolloutBuffer:
        """``dagger_words`` words of the student, and ``at_least`` so many per environment."""
        self.run.begin()
        steps = max(at_least, round(self.config.dagger_words / self.words_per_step))
        self.actor_critic.eval()
        with self.progress_bar(steps * self.words_per_step, stage, "word") as bar:
            on_step = self.run.stopping.then(lambda: bar.update(self.words_per_step))
            episodes = gather_unless_stopped(lambda: self._speak(steps, on_step))
        rollout = self._spoken.pop()
        agreement = (rollout.actions == rollout.expert_actions).mean()
        rates = episode_rates(episodes, self.pool.world.stages)
        if not self._is_repeating:  # else it is on record
            self._record({"stage": f"{stage}: the student speaks", "agreement": agreement, **rates})
        return rollout

    def warm_value_head(self) -> None:
        """Teach the critics the returns of what the student does; nothing else changes."""
        # Long enough for failures to end: with successes alone all moments would look good.
        rollout = self._rollout("value head", at_least=2 * self.recipe.env.horizon)
        explained = learn_returns(self.actor_critic, self.accelerator, self.recipe, rollout)
        self._record({"stage": "value head", **explained})

    def _speak(self, steps: int, on_step: Callable[[], None]) -> list[Episode]:
        said, episodes = self.collector.collect_rollout(self.actor_critic, steps, on_step)
        self._spoken = [said]
        return episodes

    def conclude(self) -> None:
        """Play the validation episodes, and keep the policy as it is now."""
        if self.recipe.evaluation.num_eval_episodes > 0:
            with self.saving_when_stopped():
                evaluation = self.evaluate()
            if self.accelerator.is_main_process:
                rate, (low, high) = evaluation.success_rate, evaluation.interval
                tqdm.write(f"success {rate:.3f} ({low:.2f}-{high:.2f}) in validation")
        self.save()

    def evaluate(self) -> Evaluation:
        """Play the recipe's validation episodes."""
        return validate(self)

    def save(self) -> Path:
        """Write ``checkpoints/{run_name}_step{N}``: the policy and all that resuming needs."""
        return self._save(self.folders.step(self.timesteps), self.learner.optimizer_state())

    def _save(self, folder: Path, optimizer: dict[str, torch.Tensor] | None = None) -> Path:
        self.run.begin()
        lessons = gather_object([self._lesson.state_dict()] if self._lesson else [])
        if self.accelerator.is_main_process:
            state = {
                "timesteps": self.timesteps,
                "seconds": self.run.seconds,
                "stage": self.stage if self._is_whole else None,
                "within": {"stage": self.stage, "lessons": lessons} if lessons else None,
                "processes": self.accelerator.num_processes,
                "evaluations": self.evaluations,
            }
            tensors = {} if optimizer is None else {OPTIMIZER_FILE: optimizer}
            save_checkpoint(folder, self.policy, state, tensors, self.actor_critic.extra_heads())
            forget_passes(self.folders, latest=folder)
        self.accelerator.wait_for_everyone()
        self.callbacks("on_save", self, folder)
        return folder

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint, whose policy has been loaded already.

        What the student said before is not kept: :meth:`train` has it say it again, as the
        checkpoints of the stages before would, and learn only what comes after.

        Raises:
            UserError: It cannot be gone on from, or one of these checkpoints is gone.
        """
        state = load_trainer_state(folder)
        self._within = within_stage(folder, state)
        self._learnt = learnt_stages(
            self.folders, folder, self.recipe, self.accelerator.num_processes
        )
        self.timesteps, self.evaluations = state["timesteps"], state["evaluations"]
        self.run.earlier_seconds = state["seconds"]
        self.run.is_resumed = True
        if self.accelerator.is_main_process:
            self.folders.forget_after(self.timesteps)
            # What the student said next has as many timesteps, and will be said again.
            last = (self.timesteps, False)
            self.run.metrics.keep(lambda row: (row["timesteps"], "epoch" not in row) <= last)

    def _record(self, metrics: dict[str, Any]) -> None:
        self.run.begin()
        self.metrics = {"timesteps": self.timesteps, **metrics}
        self.callbacks("on_update_end", self, self.metrics)
