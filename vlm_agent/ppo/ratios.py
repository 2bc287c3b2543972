"""How far the policy is from the one that said a rollout's words, before it learns from them."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator

from vlm_agent.distributed.reductions import max_over_ranks, mean_over_ranks
from vlm_agent.recipe.recipe import Recipe

MAX_RATIO_ERROR = 1e-2
"""Of the first minibatch's ratios; more is said."""

logger = logging.getLogger(__name__)


class FirstRatios:
    """What is logged of an update's first minibatch.

    Args:
        recipe: The run.
        accelerator: Talks to the other processes.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self._has_warned = False

    def __call__(self, step: dict[str, torch.Tensor], number: int) -> dict[str, float]:
        """``first_ratio_error``, how far ratios are from 1, where they should be 1; too far is
        said. Where rollouts are an update old, ``staleness_kl``: from the policy that said the
        words to the present one.

        Args:
            step: Scalars of the first optimiser step.
            number: Of the update.
        """
        if self.recipe.rollout.async_rollout and number > 0:
            return mean_over_ranks(self.accelerator, [{"staleness_kl": step["approx_kl"]}])
        error = max_over_ranks(self.accelerator, step["ratio_error"])
        if error > MAX_RATIO_ERROR and not self._has_warned:
            self._has_warned = True
            self._warn(error, number)
        return {"first_ratio_error": error}

    def _warn(self, error: float, number: int) -> None:
        is_coarse = self.recipe.model.dtype != "float32" or self.accelerator.native_amp
        why = "what computes it twice does not agree: this is a fault, please report it"
        if is_coarse and not self.recipe.ppo.recompute_log_probs:
            why = "bfloat16 rounds batches of another size otherwise: recompute_log_probs: true"
        if self.accelerator.is_main_process:
            logger.warning(
                "update %d: before anything is learnt, the probability of a word is off by %.2g of "
                "what it was when it was said; %s",
                number,
                error,
                why,
            )
