"""``Trainer``: what PPO and imitation share: a run, its callbacks, its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from vlm_agent.common.errors import Stopped, UserError
from vlm_agent.distributed.launch import allow_unused_layers, check_quantized
from vlm_agent.distributed.learner import Learner, MakeOptimizer
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.begin import Run
from vlm_agent.runs.callbacks import Callback, CallbackList
from vlm_agent.runs.compatibility import check_same_policy, check_same_world
from vlm_agent.world.pool.pool import EnvPool


class Trainer:
    """A policy, environments and a recipe, and what is known of the run so far.

    Args:
        policy: The policy to train.
        pool: This process's environments.
        recipe: The run.
        run: Where it writes and among which processes it runs; made from the recipe by default.
        accelerator: For a run that is made here; made too by default.

    Raises:
        UserError: The launch, the policy or the run's name is not as the recipe needs it.

    Attributes:
        learner: What gradients go through: the module that learns, as accelerate wrapped it.
        policy: The policy, whole.
        metrics: Of the present update; callbacks may add to it.
        evaluations: The rates of each evaluation, oldest first.
        timesteps: Words said in training so far, in all processes.
        new_timesteps: Of these, the last rollout's.
        should_stop: Whether to end the run before it has all its words.
    """

    def __init__(
        self,
        policy: VLMPolicy,
        pool: EnvPool,
        recipe: Recipe,
        run: Run | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        check_same_policy("the policy", policy, recipe)
        check_same_world(pool, recipe)
        self.policy = policy
        self.pool = pool
        self.recipe = recipe
        self.run = run or Run(recipe, accelerator)
        self.accelerator = self.run.accelerator
        self.folders = self.run.folders
        self.callbacks = CallbackList([])
        self.metrics: dict[str, Any] = {}
        self.evaluations: list[dict[str, Any]] = []
        self.timesteps = 0
        self.new_timesteps = 0
        self.total_timesteps = recipe.run.total_timesteps
        self.words_per_step = pool.num_envs * self.accelerator.num_processes
        self.should_stop = False
        policy.encoder.template.check_facts(pool.facts)
        policy.recipe = recipe.to_dict()
        policy.train_as(recipe.model)
        policy.to(self.accelerator.device)
        self.learner: Learner

    def prepare(
        self, module: nn.Module, make_optimizer: MakeOptimizer, max_grad_norm: float
    ) -> None:
        """Have accelerate wrap the module that learns, and its optimiser."""
        check_quantized(self.accelerator, self.policy.config.is_quantized)
        allow_unused_layers(self.accelerator, self.policy)
        size = self.recipe.ppo.micro_batch_size
        self.learner = Learner(self.accelerator, module, make_optimizer, max_grad_norm, size)

    def listen(self, *callbacks: Callback) -> None:
        """Have callbacks told of what happens, behind those that are told already.

        Raises:
            UserError: One is no callback.
        """
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise UserError(f"callbacks: {callback!r} is no instance of a subclass of Callback")
        self.callbacks.callbacks += callbacks

    def is_due(self, every: int) -> bool:
        """Whether the last rollout completed another ``every`` timesteps, or the run."""
        before = self.timesteps - self.new_timesteps
        is_last = self.should_stop or self.timesteps >= self.total_timesteps
        return is_last or self.timesteps // every > before // every

    @contextmanager
    def saving_when_stopped(self) -> Iterator[None]:
        """Write a checkpoint where the run has come to when it was asked to end.

        However it is left, callbacks are closed.

        Raises:
            Stopped: It was.
        """
        try:
            with self.callbacks:
                yield
        except Stopped as stopped:
            raise Stopped(stopped.reason, self.save()) from None

    def evaluations_lack(self, timesteps: int) -> bool:
        """Whether there is none yet after so many timesteps, and there is to be one."""
        known = [evaluation["timesteps"] for evaluation in self.evaluations]
        return self.recipe.evaluation.num_eval_episodes > 0 and timesteps not in known

    def asked_to_stop(self) -> str | None:
        """Why the run is to end, if any process was asked to."""
        return next(filter(None, gather_object([self.run.stopping.reason])), None)

    def progress_bar(self, total: int, name: str, unit: str, done: int = 0) -> tqdm:
        """A bar that the main process shows."""
        hidden = not self.accelerator.is_main_process
        return tqdm(
            total=total, initial=done, desc=name, unit=unit, mininterval=0.5, disable=hidden
        )

    def evaluate(self) -> Any:
        """Play the recipe's validation episodes."""
        raise NotImplementedError

    def save(self) -> Path:
        """Write a checkpoint."""
        raise NotImplementedError
