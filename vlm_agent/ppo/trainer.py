"""``PPOTrainer``: the whole algorithm on one screen, in ``train``."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file

from vlm_agent.common.errors import UserError
from vlm_agent.distributed.reductions import (
    gather_unless_stopped,
    mean_over_ranks,
    shares_over_ranks,
)
from vlm_agent.evaluation.evaluate import Evaluation, episode_rates
from vlm_agent.evaluation.validate import validate
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.critic import make_actor_critic, make_optimizer
from vlm_agent.ppo.reference import ReferencePolicy, make_reference
from vlm_agent.ppo.schedule import LearningRateSchedule
from vlm_agent.ppo.update import PPOUpdate
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.ahead import RolloutAhead
from vlm_agent.rollout.buffer import Collected, RolloutBuffer
from vlm_agent.rollout.collector import Actor, RolloutCollector
from vlm_agent.rollout.curriculum import make_source
from vlm_agent.rollout.episodes import EpisodeCollector
from vlm_agent.runs.begin import Run
from vlm_agent.runs.callbacks import (
    BestPolicy,
    Callback,
    Checkpoints,
    Evaluations,
    LeaveTogether,
    StopTogether,
)
from vlm_agent.runs.checkpoints import (
    BEHAVIOUR_FILE,
    load_heads,
    load_ppo_state,
    save_checkpoint,
)
from vlm_agent.runs.determinism import deterministic
from vlm_agent.runs.folders import OPTIMIZER_FILE
from vlm_agent.runs.progress import Progress
from vlm_agent.runs.standing import KEPT_BYTES, Standing
from vlm_agent.runs.trackers.tracking import Recorder
from vlm_agent.runs.trainer import Trainer
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.pool import EnvPool


class PPOTrainer(Trainer):
    """PPO for a :class:`VLMPolicy` in an :class:`EnvPool`, in any number of processes.

    With ``advantage: group`` it is GRPO or RLOO: a rollout is of whole episodes, there is no
    critic, and the run ends with the first rollout that passes ``total_timesteps``.

    Args:
        policy: The policy to train.
        pool: This process's environments, as ``recipe.make_pool()`` makes them.
        recipe: The run.
        callbacks: Told of what happens, behind those that every run has.
        accelerator: Wraps the policy and talks to the other processes; made by default.
        reference: Where ``kl_coef`` is set, the policy to stay close to; by default the policy
            that the run started from.
        run: Where it writes; made from the recipe by default.

    Raises:
        UserError: The launch, the pool or the run's name is not as the recipe needs it.
    """

    def __init__(
        self,
        policy: VLMPolicy,
        pool: EnvPool,
        recipe: Recipe,
        callbacks: Sequence[Callback] = (),
        *,
        accelerator: Accelerator | None = None,
        reference: ReferencePolicy | None = None,
        run: Run | None = None,
    ) -> None:
        super().__init__(policy, pool, recipe, run, accelerator)
        if recipe.curriculum.curriculum != "none" and not pool.replays:
            raise UserError(
                f"curriculum: {recipe.curriculum.curriculum!r} begins where words of an earlier "
                "episode lead, and this world does not replay"
            )
        self.ppo = recipe.ppo
        has_critic = self.ppo.advantage == "gae"
        self.actor_critic = make_actor_critic(policy, pool, recipe, has_critic)
        self.base_rates = (self.ppo.learning_rate, recipe.critic.value_learning_rate)
        optimizer = functools.partial(make_optimizer, rates=self.base_rates)
        self.prepare(self.actor_critic, optimizer, recipe.ppo.max_grad_norm)
        source = make_source(recipe)
        is_grouped = self.ppo.advantage == "group"
        self.collector = (EpisodeCollector if is_grouped else RolloutCollector)(
            pool,
            source,
            recipe.run.seed,
            self.accelerator.process_index,
            recipe.rollout.rollout_groups,
            recipe.rollout.feature_cache_gb * 2**30,
        )
        self.ahead: RolloutAhead[Collected] | None = None
        if recipe.rollout.async_rollout:
            ahead = self.actor_critic, self.collector, self.run.stopping
            self.ahead = RolloutAhead(*ahead, collect=self._rollout)
        self.is_tied_by_default = reference is None
        reference = reference or make_reference(policy, recipe, is_start=True)
        self.improve = PPOUpdate(recipe, self.learner, reference)
        self.updates, self._waited_s, self._collect_s = 0, 0.0, 0.0
        self._standing: Standing | None = None  # before the rollout that is learnt from
        self.scale_learning_rates(1.0)
        told = [LearningRateSchedule(), *source.callbacks(), *callbacks]
        self.listen(*told, StopTogether(), Recorder())
        self.listen(Progress(), Evaluations(), BestPolicy(), Checkpoints(), LeaveTogether())

    def train(self, total_timesteps: int | None = None) -> None:
        """Collect, estimate, update; whatever reacts to that is a callback.

        Args:
            total_timesteps: When to stop, counted from the run's beginning; by default as the
                recipe says. A run that has stopped goes on if it is called with more.

        Raises:
            TrainingError: A gradient is not finite.
            Stopped: The run was asked to end; its checkpoint is written.
        """
        self.total_timesteps = total_timesteps or self.total_timesteps
        self.should_stop = False
        device, ahead = self.accelerator.device, self.ahead or nullcontext()
        with self.run.owned(), deterministic(device), ahead, self.saving_when_stopped():
            self.callbacks("on_train_begin", self)
            while self.timesteps < self.total_timesteps and not self.should_stop:
                self.metrics = {}
                rollout, episodes = self.collect()
                self.callbacks("on_rollout_end", self, rollout, episodes)
                if self.ahead and self.timesteps < self.total_timesteps:
                    self.ahead.begin()
                self.update(rollout)
                del rollout, episodes  # before the next ones need as much memory
                self.callbacks("on_update_end", self, self.metrics)
            self.callbacks("on_train_end", self)

    def collect(self) -> tuple[RolloutBuffer, list[Episode]]:
        """One rollout, and the episodes that ended meanwhile in all processes.

        With ``async_rollout``, the rollout that was begun before the last update.
        """
        began = time.perf_counter()
        self.actor_critic.eval()
        self._standing = self._stands()
        ended, words, lost = zip(*gather_unless_stopped(self._collect), strict=True)
        collected = self._collected.pop()  # in memory as long as it is needed, and no longer
        rollout = collected.buffer
        self._collect_s = time.perf_counter() - began
        self._waited_s = time.perf_counter() - self._collected_at
        episodes = [episode for one in ended for episode in one]
        self.new_timesteps = sum(words)
        self.timesteps += self.new_timesteps
        shares = shares_over_ranks(rollout.actions[rollout.said], len(self.policy.words))
        self.metrics |= {
            "timesteps": self.timesteps,
            **episode_rates(episodes, self.pool.world.stages),
            "words": dict(zip(self.policy.words, shares, strict=True)),
            "rollout_s": collected.seconds,
            **collected.shares,
        }
        self.metrics |= {"lost_episodes": sum(lost)} if any(lost) else {}
        return rollout, episodes

    def _collect(self) -> list[tuple[list[Episode], int, int]]:
        ahead = self.ahead.take() if self.ahead else None
        mine = ahead or self._rollout(self.actor_critic)
        self._collected = [mine]
        self._collected_at = time.perf_counter()
        return [(mine.episodes, int(mine.buffer.said.sum()), mine.lost)]

    def _rollout(self, actor: Actor) -> Collected:
        """A rollout of this process."""
        collector = self.collector
        began, spent, given_up = time.perf_counter(), collector.seconds(), collector.given_up
        if isinstance(collector, EpisodeCollector):
            rollout, episodes = collector.collect_episodes(
                actor, self.ppo.group_rounds, self._tell_of_step
            )
        else:
            # The last one is only as long as total_timesteps asks for.
            missing = math.ceil((self.total_timesteps - self.timesteps) / self.words_per_step)
            steps = self.recipe.rollout.rollout_steps
            if missing > 0:
                steps = min(steps, missing)
            rollout, episodes = collector.collect_rollout(actor, steps, self._tell_of_step)
        took = time.perf_counter() - began
        lost = rollout.lost_episodes + collector.given_up - given_up
        return Collected(rollout, episodes, lost, took, collector.shares(took, since=spent))

    def _stands(self) -> Standing:
        """Where the run stands between two rollouts."""
        stands = self.ahead.collector_state() if self.ahead else self.collector.state_dict()
        behaviour = self.ahead.weights() if self.ahead else {}
        return Standing(self.timesteps, self.new_timesteps, stands, behaviour)

    def _tell_of_step(self) -> None:
        (self.ahead or self.run.stopping).check()
        if isinstance(self.collector, EpisodeCollector):
            self.words_per_step = self.collector.speaking * self.accelerator.num_processes
        self.callbacks("on_step", self)

    def update(self, rollout: RolloutBuffer) -> dict[str, float]:
        """Improve the policy on a rollout; what is logged of it, which goes to ``metrics`` too."""
        began = time.perf_counter()
        limit = 0 if self.ahead or not self._standing else KEPT_BYTES
        with self.learner.restored_when_left(limit) as is_kept:
            leave = self.run.stopping.check if is_kept else lambda: None
            self._standing = self._standing if is_kept else None
            measured = self.improve(rollout, self.updates, self.learning_rates[1], leave)
        self._standing = None
        self.updates += 1
        took = time.perf_counter() - began
        if self.ahead:
            self.ahead.wait()
        whole = time.perf_counter() - began + self._collect_s
        rates = {"update_s": took, "words_per_s": self.new_timesteps / whole}
        self.metrics |= {**measured, "learning_rate": self.learning_rates[0], **rates}
        if self.accelerator.num_processes > 1:
            waited = torch.tensor(self._waited_s / whole, device=self.accelerator.device)
            self.metrics |= mean_over_ranks(self.accelerator, [{"rank_waiting_share": waited}])
        return measured

    def scale_learning_rates(self, factor: float) -> None:
        """Set both learning rates, of the backbone and of the heads, to so much of the recipe's."""
        self.learning_rates = tuple(rate * factor for rate in self.base_rates)
        self.learner.set_learning_rates(*self.learning_rates)

    def evaluate(self) -> Evaluation:
        """Play the recipe's validation episodes; a rollout that follows is what it would be."""
        return validate(self)

    def save(self) -> Path:
        """Write ``checkpoints/{run_name}_step{N}``: the policy and all that resuming needs."""
        self.run.begin()
        stands = self._standing or self._stands()  # before a rollout that was not learnt from
        collectors = gather_object([stands.collector])
        optimizer = self.learner.optimizer_state()
        folder = self.folders.step(stands.timesteps)
        if self.accelerator.is_main_process:
            state = {
                "timesteps": stands.timesteps,
                "new_timesteps": stands.new_timesteps,
                "updates": self.updates,
                "seconds": self.run.seconds,
                "collectors": collectors,
                "evaluations": self.evaluations,
            }
            heads = self.actor_critic.extra_heads()
            tensors = {OPTIMIZER_FILE: optimizer}
            if stands.behaviour:
                tensors[BEHAVIOUR_FILE] = stands.behaviour
            save_checkpoint(folder, self.policy, state, tensors, heads)
        self.accelerator.wait_for_everyone()
        self.callbacks("on_save", self, folder)
        return folder

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint, whose policy has been loaded already.

        Args:
            folder: One of this run's.

        Raises:
            UserError: It was written by another number of processes or environments, or is not
                whole.
        """
        state = load_ppo_state(folder, self.accelerator.num_processes)
        if self.is_tied_by_default:
            self.improve.reference = make_reference(self.policy, self.recipe, is_start=False)
        load_heads(folder, self.actor_critic.extra_heads())
        self.learner.take_over()
        self.learner.load_optimizer_state(load_file(folder / OPTIMIZER_FILE))
        self.timesteps, self.updates = state["timesteps"], state["updates"]
        self.new_timesteps = state.get("new_timesteps", 0)
        self.evaluations, self.run.earlier_seconds = state["evaluations"], state["seconds"]
        self.collector.load_state_dict(state["collectors"][self.accelerator.process_index])
        if self.ahead and (folder / BEHAVIOUR_FILE).is_file():
            self.ahead.load_weights(load_file(folder / BEHAVIOUR_FILE))
        self.run.is_resumed = True
        if self.accelerator.is_main_process:
            self.folders.forget_after(self.timesteps)
            self.run.metrics.keep_until(self.timesteps)
