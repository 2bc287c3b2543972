"""A run stops before a step that would write NaN into every weight."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from vlm_agent.common.errors import TrainingError


def check_finite(
    norm: torch.Tensor, accelerator: Accelerator, where: str, what: str = "gradient"
) -> None:
    """Refuse a gradient, or a loss, that is not finite.

    Args:
        norm: The gradient's norm, the same in every process.
        accelerator: In fp16 its scaler passes over such steps by itself, while it can lower its
            scale: what overflows then is no more than the scale's doing.
        where: Which step, for the message.
        what: What is not to be infinite, for the message.

    Raises:
        TrainingError: It is not finite.
    """
    scaler = accelerator.scaler
    if (scaler is None or scaler.get_scale() <= 1) and not bool(torch.isfinite(norm)):
        raise TrainingError(
            f"the {what} is not finite ({float(norm)}) in {where}; the weights and the "
            "checkpoints are those from before it. A lower learning rate may help"
        )
