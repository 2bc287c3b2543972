"""The pass through the model, from encoded prompts and pictures to final hidden states.

The language model's lowest layers may be a *trunk*: layers below all that is trained. What leaves
them is a constant of a prompt and its picture, so it can be kept, and a pass can begin there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from vlm_agent.policy.backbone.families import Family
from vlm_agent.policy.backbone.packing import PACKED_ATTENTION, Packing
from vlm_agent.policy.kept import Kept

Extend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, int],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor],
]
"""Puts tokens behind prompts, see :meth:`WordScorer.extend`."""


@dataclass(frozen=True)
class _Prompts:
    """Encoded prompts, and what was put behind them, as one sequence of T tokens.

    Attributes:
        prefix_ids: What all begin with, (K,).
        ids: (B, S): what follows it in each row, padded on the left, with N tokens at the end.
        positions: (P, 1, T), or (1, T) where positions have one dimension.
        packing: How they are packed.
        end: Where the prompt ends in a row: its last token's index among S.
    """

    prefix_ids: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    packing: Packing
    end: int


class ModelPass:
    """Runs a vision-language model over prompts that begin alike.

    Args:
        model: The transformers model's inner part.
        family: The model's.

    Attributes:
        vision_is_frozen: Whether what the vision tower makes of a frame stays the same while
            training.
        trunk_depth: How many of the language model's layers are the trunk; 0 without one.
    """

    def __init__(self, model: Any, family: Family) -> None:
        self.model = model
        self.family = family
        self.language_model: Any = model.get_submodule(family.language_model)
        self.language_model.config._attn_implementation = PACKED_ATTENTION
        self._prefixes: dict[tuple[Any, ...], torch.Tensor] = {}
        self.find_frozen()

    def find_frozen(self) -> None:
        """Find out what stays the same while training, from what is to be trained now."""
        self._prefixes.clear()
        vision = self.family.vision_modules(self.model)
        self.vision_is_frozen = not any(map(_is_trained, vision))
        trained = [i for i, layer in enumerate(self.language_model.layers) if _is_trained(layer)]
        first = min(trained, default=0)
        below_is_frozen = self.vision_is_frozen and not _is_trained(self._embedding)
        is_deep = first >= self.family.layers_with_pictures(self.model)
        self.trunk_depth = first if below_is_frozen and is_deep else 0

    @property
    def _embedding(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], extend: Extend
    ) -> tuple[torch.Tensor, Kept | None]:
        """Final hidden states of encoded prompts' ends and of what is put behind them.

        Args:
            inputs: As :meth:`VLMPolicy.encode` makes them.
            extend: Puts N tokens behind the prompts.

        Returns:
            (B, 1 + N, D); what frozen parts made, unless there are none or the inputs held it.
        """
        prompts, kept = self._prompts(inputs, extend), None
        trunk_BSD = inputs.get("trunk_states")
        if self.trunk_depth:
            if trunk_BSD is None:
                kept = self._trunk(prompts, inputs)
                trunk_BSD = kept.values
            return self._above(prompts, trunk_BSD), kept
        features_BSPD = inputs.get("image_features")
        if features_BSPD is None:
            features_BSPD = self.family.image_features(self.model, inputs)
            kept = Kept(features_BSPD) if self.vision_is_frozen else None
        return self._rows(prompts, features_BSPD)[:, prompts.end :], kept

    @torch.no_grad()
    def keep(self, inputs: Mapping[str, torch.Tensor], extend: Extend) -> Kept:
        """What frozen parts make of encoded prompts with their pictures."""
        if self.trunk_depth:
            return self._trunk(self._prompts(inputs, extend), inputs)
        return Kept(self.family.image_features(self.model, inputs))

    def _prompts(self, inputs: Mapping[str, torch.Tensor], extend: Extend) -> _Prompts:
        """Lay out encoded prompts, padded on the left, and what is put behind them."""
        prefix_ids, positions_PBL = inputs["prefix_ids"], inputs["position_ids"]
        prefix = len(prefix_ids)
        rest = positions_PBL.shape[-1] - prefix
        # The prefix of a row that has padding stands behind it, and is taken for it from here on.
        ids, mask, positions_PBS = extend(
            inputs["input_ids"][:, prefix:],
            inputs["attention_mask"][:, :rest],
            positions_PBL[..., prefix:],
            prefix,
        )
        start_PK = torch.arange(prefix, device=ids.device).expand(len(positions_PBS), -1)
        positions = torch.cat([start_PK, positions_PBS.flatten(1)], 1)[:, None]
        if not self.family.mrope:
            positions = positions[0]
        return _Prompts(prefix_ids, ids, positions, Packing(prefix, mask), rest - 1)

    @torch.no_grad()
    def _trunk(self, prompts: _Prompts, inputs: Mapping[str, torch.Tensor]) -> Kept:
        """What leaves the trunk where the rows stand, (B, S, D)."""
        features_BSPD = self.family.image_features(self.model, inputs)
        with self._cut():
            trunk_BSD = self._rows(prompts, features_BSPD)
        padding_B = (inputs["attention_mask"] == 0).sum(1)
        return Kept(trunk_BSD, prompts.packing.prefix, trunk_BSD.shape[1] - padding_B)

    def _above(self, prompts: _Prompts, trunk_BSD: torch.Tensor) -> torch.Tensor:
        """Final hidden states, (B, 1 + N, D), from what leaves the trunk."""
        packing = prompts.packing
        states = packing.pack(self._prefix_trunk(prompts), trunk_BSD)
        rotary = self.language_model.rotary_emb(states, prompts.positions)
        for layer in self.language_model.layers[self.trunk_depth :]:
            states = layer(states, attention_mask=None, position_embeddings=rotary, packing=packing)
        _, states_BSD = packing.unpack(self.language_model.norm(states))
        return states_BSD[:, prompts.end :]

    def _rows(self, prompts: _Prompts, features_BSPD: torch.Tensor) -> torch.Tensor:
        """What the language model makes of each row, (B, S, D)."""
        packing = prompts.packing
        states_1TD = self.model(
            input_ids=packing.pack(prompts.prefix_ids, prompts.ids),
            # Of four dimensions, so that transformers makes none of its own.
            attention_mask=packing.mask[:1, :, :1, :1],
            position_ids=prompts.positions,
            mm_encoder_outputs=self.family.encoder_outputs(features_BSPD),
            use_cache=False,
            packing=packing,
        ).last_hidden_state
        return packing.unpack(states_1TD)[1]

    @torch.no_grad()
    def _prefix_trunk(self, prompts: _Prompts) -> torch.Tensor:
        """What leaves the trunk where the prefix stands, (K, D): computed once."""
        ids_K = prompts.prefix_ids
        # Whatever else has been loaded, or moved, since then.
        weights = [(p._version, p.data_ptr(), p.dtype) for p in self._below()]
        if any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in self._below()):
            self._prefixes.clear()  # where processes divide them, all have to do the same
        autocast = torch.is_autocast_enabled(ids_K.device.type)
        key = (*ids_K.tolist(), *weights, ids_K.device, autocast)
        if key not in self._prefixes:
            self._prefixes.clear()
            states_1KD = self._embedding(ids_K)[None]
            if len(ids_K):
                with self._cut():
                    states_1KD = self.language_model(
                        inputs_embeds=states_1KD,
                        position_ids=prompts.positions[..., : len(ids_K)],
                        use_cache=False,
                    ).last_hidden_state
            self._prefixes[key] = states_1KD[0]
        return self._prefixes[key]

    def _below(self) -> list[nn.Parameter]:
        """The weights that the trunk's states come from, but for the vision tower's."""
        modules = [self._embedding, *self.language_model.layers[: self.trunk_depth]]
        return [parameter for module in modules for parameter in module.parameters()]

    @contextmanager
    def _cut(self) -> Iterator[None]:
        """The language model without what is above the trunk."""
        model = self.language_model
        layers, norm = model.layers, model.norm
        model.layers, model.norm = layers[: self.trunk_depth], nn.Identity()
        try:
            yield
        finally:
            model.layers, model.norm = layers, norm


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
