"""The pass through the language model, from encoded prompts to final hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vlm_agent.policy.backbone.families import Family

Extend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
]
"""Puts tokens behind prompts, see :meth:`WordScorer.extend`."""


def hidden_states(
    model: Any, family: Family, inputs: Mapping[str, torch.Tensor], extend: Extend
) -> torch.Tensor:
    """Final hidden states of the prompts' ends and of what was put behind them, (B, 1 + N, D).

    Args:
        model: The transformers model's inner part.
        family: The model's.
        inputs: ``input_ids``, ``attention_mask`` (B, L), ``position_ids`` (P, B, L) and
            ``image_features`` (B, S, P, D); padding is on the left.
        extend: Puts N tokens behind the prompts.
    """
    ids, mask, positions = extend(
        inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"]
    )
    states_BLD = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions if family.mrope else positions[0],
        mm_encoder_outputs=family.encoder_outputs(inputs["image_features"]),
        use_cache=False,
    ).last_hidden_state
    return states_BLD[:, inputs["input_ids"].shape[1] - 1 :]
