"""PPO's losses as pure functions of tensors (Schulman et al. 2017)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

LARGEST_LOG_RATIO = 60.0
"""Beyond it exp() is not finite in fp32, and 0 times its gradient, where clipped, is not 0."""


class PolicyLoss(NamedTuple):
    """The clipped policy loss and what is logged of it.

    Attributes:
        loss: Scalar, with gradient.
        approx_kl: Scalar estimate of KL(old || new), mean of (r − 1) − log r, never negative.
        clip_fraction: Share of samples whose ratio left the clipping range.
        max_ratio_error: Largest |r − 1|.
    """

    loss: torch.Tensor
    approx_kl: torch.Tensor
    clip_fraction: torch.Tensor
    max_ratio_error: torch.Tensor


def clipped_policy_loss(
    log_prob_B: torch.Tensor,
    old_log_prob_B: torch.Tensor,
    advantage_B: torch.Tensor,
    clip_range: float,
) -> PolicyLoss:
    """−E[min(r A, clip(r, 1 ± ε) A)] with r = exp(log π − log π_old) (eq. 7)."""
    log_ratio = (log_prob_B - old_log_prob_B).clamp(max=LARGEST_LOG_RATIO)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = -torch.minimum(ratio * advantage_B, clipped * advantage_B).mean()
    with torch.no_grad():
        error = (ratio - 1).abs()
        # Schulman's k3, for samples of the old policy; `ratio - 1` would round below log_ratio.
        approx_kl = (log_ratio.expm1() - log_ratio).mean()
        clip_fraction = (error > clip_range).float().mean()
    return PolicyLoss(loss, approx_kl, clip_fraction, error.max().detach())


def kl_estimates(
    log_prob_B: torch.Tensor, reference_log_prob_B: torch.Tensor, estimator: Literal["k1", "k3"]
) -> torch.Tensor:
    """KL(π || π_ref) estimated from each of B words that π said (Schulman 2020).

    With r = π_ref / π, ``k1`` is −log r, unbiased, and may be negative; ``k3`` is (r − 1) − log r,
    unbiased too, never negative, and of less variance where the policies are close.
    """
    log_ratio_B = reference_log_prob_B - log_prob_B
    if estimator == "k1":
        return -log_ratio_B
    return log_ratio_B.expm1() - log_ratio_B


def state_loss(told_BS: torch.Tensor, state_BS: torch.Tensor) -> torch.Tensor:
    """Half the mean squared error of what the hidden states tell of the privileged ones."""
    return 0.5 * (told_BS - state_BS).square().mean()


def value_loss(
    value_B: torch.Tensor,
    old_value_B: torch.Tensor,
    return_B: torch.Tensor,
    clip_range: float | None,
) -> torch.Tensor:
    """Half the mean squared error of the values.

    With ``clip_range``, the value may move that far from the rollout's before its gradient ends:
    the larger of the plain and the clipped error counts (as in OpenAI's baselines).
    """
    error = (value_B - return_B).square()
    if clip_range is not None:
        moved = old_value_B + (value_B - old_value_B).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (moved - return_B).square())
    return 0.5 * error.mean()
