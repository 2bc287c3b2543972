"""Learning rates over a run."""

from __future__ import annotations

from typing import Any

from vlm_agent.runs.callbacks import Callback


class LearningRateSchedule(Callback):
    """Both learning rates fall to zero over the run, if the recipe says so."""

    def on_train_begin(self, trainer: Any) -> None:
        """Set them for the first update."""
        self._set(trainer)

    def on_update_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Set them for the next."""
        self._set(trainer)

    def _set(self, trainer: Any) -> None:
        is_linear = trainer.recipe.ppo.lr_schedule == "linear"
        done = min(1.0, trainer.timesteps / trainer.total_timesteps)
        left = 1.0 - done if is_linear else 1.0
        trainer.scale_learning_rates(left)
