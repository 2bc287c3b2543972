"""Callbacks: whatever reacts to how training goes. Write a subclass and hand it to a trainer.

Those here are what every run of PPO has.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from vlm_agent.common.errors import Stopped, UserError
from vlm_agent.policy.artifact import check_saved
from vlm_agent.runs.checkpoints import load_trainer_state, save_checkpoint

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from vlm_agent.runs.trainer import Trainer


class Callback:
    """What happens in a run, in every process of it. Does nothing; override what you need.

    A callback may read everything of the trainer, add to ``trainer.metrics``, which is recorded
    behind the callbacks that were handed over, and end the run with ``trainer.should_stop``: after
    this update, with a last evaluation and checkpoint. One process that asks for it is enough.
    """

    def on_train_begin(self, trainer: Trainer) -> None:
        """The run begins, or goes on: its folder is there."""

    def on_step(self, trainer: Trainer) -> None:
        """Each environment of this process that does not wait has said a word more."""

    def on_rollout_end(self, trainer: Trainer, rollout: Any, episodes: Sequence[Any]) -> None:
        """A rollout is there: this process's buffer, and the episodes that ended in all of them."""

    def on_update_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """The policy has learnt from it; ``metrics`` is ``trainer.metrics``, not yet recorded."""

    def on_evaluate_begin(self, trainer: Trainer) -> None:
        """The policy is to be evaluated."""

    def on_evaluate(self, trainer: Trainer, evaluation: Any) -> None:
        """The policy has been evaluated."""

    def on_save(self, trainer: Trainer, folder: Path) -> None:
        """A checkpoint has been written."""

    def on_train_end(self, trainer: Trainer) -> None:
        """The run has all its words."""

    def close(self) -> None:
        """Training is left: at its end, or because something was raised."""


class StopTogether(Callback):
    """Ends the run in all processes if one of them wants to; else the others would wait for it."""

    def on_update_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Ask everyone."""
        trainer.should_stop = any(gather_object([trainer.should_stop]))


class LeaveTogether(Callback):
    """Leaves the run in all processes if one of them was asked to end, and it is not done."""

    def on_update_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Ask everyone."""
        reason = trainer.asked_to_stop()
        if reason and trainer.timesteps < trainer.total_timesteps and not trainer.should_stop:
            raise Stopped(reason)


class Evaluations(Callback):
    """Evaluates where the run begins, and every ``eval_freq`` timesteps."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """Evaluate the start; of a run that goes on, what it was stopped before."""
        self._evaluate(trainer, is_due=not trainer.timesteps)

    def on_update_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Evaluate if it is time."""
        self._evaluate(trainer)

    @staticmethod
    def _evaluate(trainer: Trainer, is_due: bool = False) -> None:
        is_due = is_due or trainer.is_due(trainer.recipe.evaluation.eval_freq)
        if is_due and trainer.evaluations_lack(trainer.timesteps):
            trainer.evaluate()


class BestPolicy(Callback):
    """Keeps the policy that was best by evaluated success, then by return."""

    def __init__(self) -> None:
        self.best: tuple[float, float] | None = None  # how good the policy in its folder is

    def on_evaluate(self, trainer: Trainer, evaluation: Any) -> None:
        """Keep the policy if it is the best so far."""
        quality = evaluation.success_rate, evaluation.mean_return
        if self.best is None:
            self.best = self._best_before(trainer)
        if self.best is None or quality > self.best:
            self.best = quality
            if trainer.accelerator.is_main_process:
                save_checkpoint(trainer.folders.best, trainer.policy, trainer.evaluations[-1])

    def _best_before(self, trainer: Trainer) -> tuple[float, float] | None:
        """In a run that goes on, the best policy is that of the history it goes on from."""
        *earlier, _ = trainer.evaluations
        if not earlier:
            return None
        try:
            check_saved(trainer.folders.best)
        except UserError as error:  # what is worse than it was is not called the best
            logger.warning(
                "the best policy so far is lost, and no worse one takes its place: %s", error
            )
            return max((one["success_rate"], one["mean_return"]) for one in earlier)
        kept = load_trainer_state(trainer.folders.best)
        # Later than the history: of what came of going on from here another time.
        if kept["timesteps"] not in [one["timesteps"] for one in earlier]:
            return None
        return kept["success_rate"], kept["mean_return"]


class Checkpoints(Callback):
    """Saves every ``save_freq`` timesteps, and at the end."""

    def on_update_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Save if it is time."""
        if trainer.is_due(trainer.recipe.run.save_freq):
            trainer.save()
            limit = trainer.recipe.run.save_total_limit
            if limit is not None and trainer.accelerator.is_main_process:
                trainer.folders.keep_latest(limit)  # when the newest one is whole


class CallbackList:
    """Several callbacks, told of everything in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def __call__(self, event: str, *what: Any) -> None:
        """Tell all of them, e.g. ``("on_update_end", trainer, metrics)``."""
        for callback in self.callbacks:
            getattr(callback, event)(*what)

    def __enter__(self) -> CallbackList:
        return self

    def __exit__(self, *_: object) -> None:
        for callback in self.callbacks:
            callback.close()
