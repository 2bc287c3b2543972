"""Decisions of a policy: words for observations, and how probable given words are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from vlm_agent.common.errors import NotFiniteError
from vlm_agent.policy.kept import Kept
from vlm_agent.world.observations import Observations


class PolicyOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        logits: Scores of the words, fp32 (B, A).
        values: State values, fp32 (B,).
        kept: What frozen parts made in this pass, so that it can be used again; ``None`` if there
            are none, or the inputs held it.
        prompt_ends: The hidden states at the prompt's end, (B, D).
        states: What a state head makes of these, fp32 (B, S); ``None`` without one.
    """

    logits: torch.Tensor
    values: torch.Tensor
    kept: Kept | None
    prompt_ends: torch.Tensor
    states: torch.Tensor | None = None


PolicyModule = Callable[..., PolicyOutput]
"""A ``VLMPolicy``, or the module that accelerate wrapped it in."""


@dataclass(frozen=True)
class Decision:
    """What a policy says to one observation.

    Attributes:
        word: The word.
        action: Its index.
        probabilities: Of all words.
        value: The expected discounted return.
    """

    word: str
    action: int
    probabilities: dict[str, float]
    value: float


@dataclass(frozen=True)
class Decisions:
    """Words chosen for B observations.

    Attributes:
        actions: int64 (B,).
        log_probs: Log-probability of each chosen word, float32 (B,).
        values: State values, float32 (B,).
        probs: The whole distribution, float32 (B, A).
        kept: As in :class:`PolicyOutput`.
    """

    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    probs: np.ndarray
    kept: Kept | None


@torch.no_grad()
def act(policy: Any, observations: Observations, uniforms: np.ndarray | None = None) -> Decisions:
    """Choose a word for each observation.

    Args:
        policy: A ``VLMPolicy``, or what encodes and scores as one does.
        observations: B of them.
        uniforms: Uniform numbers (B,) in [0, 1), from which the words are drawn by inverting the
            distribution function, so that sampling needs no generator on the device. ``None``
            takes the most probable word.

    Raises:
        NotFiniteError: Scores or values are not.
    """
    output = policy(**policy.encode(observations))
    log_probs_BA = output.logits.log_softmax(-1).cpu().numpy()
    values_B = output.values.cpu().numpy()
    _check_finite(log_probs_BA, values_B)
    probs_BA = np.exp(log_probs_BA)
    if uniforms is None:
        actions = log_probs_BA.argmax(-1)
    else:
        below_BA = np.cumsum(probs_BA, -1, dtype=np.float64)
        below_BA /= below_BA[:, -1:]
        actions = (below_BA <= uniforms[:, None]).sum(-1)
    chosen = np.take_along_axis(log_probs_BA, actions[:, None], -1)[:, 0]
    return Decisions(actions, chosen, values_B, probs_BA, output.kept)


def _check_finite(log_probs_BA: np.ndarray, values_B: np.ndarray) -> None:
    for name, is_finite_B in (
        ("scores", np.isfinite(log_probs_BA).all(-1)),
        ("values", np.isfinite(values_B)),
    ):
        if not is_finite_B.all():
            rows = np.flatnonzero(~is_finite_B).tolist()
            raise NotFiniteError(
                f"the policy's {name} are not finite for {len(rows)} of {len(is_finite_B)} "
                "observations",
                rows,
            )


class Evaluated(NamedTuple):
    """What a policy makes of given words, with gradients.

    Attributes:
        log_probs: Of the words, (B,).
        entropy: Of the distributions, (B,).
        values: State values, (B,).
        states: What a state head says, (B, S); ``None`` without one.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor
    states: torch.Tensor | None


def evaluate_actions(
    policy: PolicyModule, inputs: dict[str, torch.Tensor], actions_B: torch.Tensor
) -> Evaluated:
    """Log-probabilities, entropies and values of given words.

    Args:
        policy: The policy or its distributed wrapper; gradients are synchronised only through
            the wrapper's own ``forward``.
        inputs: Encoded observations.
        actions_B: int64 (B,).
    """
    output: Any = policy(**inputs)
    log_probs_BA = output.logits.log_softmax(-1)
    log_prob_B = log_probs_BA.gather(-1, actions_B[:, None]).squeeze(-1)
    entropy_B = -(log_probs_BA.exp() * log_probs_BA).sum(-1)
    return Evaluated(log_prob_B, entropy_B, output.values, output.states)
