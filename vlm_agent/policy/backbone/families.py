"""What differs between families of vision-language models: this table, and nothing else.

Everything outside of it takes transformers' common interface: ``model.model`` with
``get_image_features`` and a ``forward`` that takes image features made before
(``mm_encoder_outputs``), position ids and a 4-D mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        language_model: Name of the language model below ``model.model``.
        vision: Names of the vision tower and what connects it, below ``model.model``.
        connector: Names of what connects it, which may lie in the vision tower.
        image_inputs: What ``get_image_features`` takes, as the image processor names it.
        image_options: Options of the image processor: a small square frame is one tile.
        nested_images: Whether the image processor wants a list of images for each prompt.
        mrope: Whether positions are in three dimensions (time, height, width).
        tensor_features: Whether features of several images travel as one tensor, not as a tuple.
        skips_layers: Whether the vision tower has layers that are never used.
        video_processor: The class of transformers that its ``AutoProcessor`` asks for besides.
    """

    language_model: str = "language_model"
    vision: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    connector: tuple[str, ...] = ("multi_modal_projector",)
    image_inputs: tuple[str, ...] = ("pixel_values",)
    image_options: Mapping[str, Any] = field(default_factory=dict)
    nested_images: bool = False
    mrope: bool = False
    tensor_features: bool = False
    skips_layers: bool = False
    video_processor: str | None = None

    def vision_modules(self, model: nn.Module) -> list[nn.Module]:
        """The vision tower's modules of ``model.model``."""
        return [model.get_submodule(name) for name in self.vision]

    def parts(self, model: nn.Module, name: str) -> list[str]:
        """Paths below ``model.model`` of what any family calls ``vision_tower`` or ``connector``.

        What is trained of a vision tower is all that its pictures go through; a list of modules
        counts as its members.
        """
        found = []
        for path in self.vision if name == "vision_tower" else self.connector:
            members = [name for name, _ in model.named_modules() if name == path]
            if members and isinstance(module := model.get_submodule(path), nn.ModuleList):
                members = [f"{path}.{number}" for number in range(len(module))]
            found += members
        return found

    def layers_with_pictures(self, model: Any) -> int:
        """How many of the language model's lowest layers the vision tower feeds (DeepStack)."""
        if "visual" not in self.vision:
            return 0
        return len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))

    def image_part(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The part of a model's inputs that the vision tower reads."""
        return {name: inputs[name] for name in self.image_inputs if name in inputs}

    def image_features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the vision tower makes of B frames of equal size.

        Returns:
            (B, S, P, D): P picture tokens of width D; S is 1, or more where the vision tower also
            feeds later layers of the language model (DeepStack).
        """
        made = model.get_image_features(**self.image_part(inputs), return_dict=True)
        stacks = [made.pooler_output, *(getattr(made, "deepstack_features", None) or ())]
        features = torch.stack(
            [s if isinstance(s, torch.Tensor) else torch.stack(list(s)) for s in stacks], 1
        )
        # What is trained of the vision tower computes in float32, whatever the others do.
        dtype = model.get_input_embeddings().weight.dtype
        return features.to(dtype) if dtype.itemsize < features.dtype.itemsize else features

    def encoder_outputs(self, features_BSPD: torch.Tensor) -> dict[str, Any]:
        """Features as ``model.forward`` takes them in place of pictures."""
        pooled, *deepstack = features_BSPD.unbind(1)
        return {
            "image": SimpleNamespace(
                pooler_output=pooled if self.tensor_features else pooled.unbind(),
                deepstack_features=[layer.unbind() for layer in deepstack],
            )
        }

    def positions(self, model: Any, row: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Position ids of one prompt without padding, int64 (3, L) with M-RoPE, else (1, L)."""
        ids_1L = row["input_ids"]
        if not self.mrope:
            return torch.arange(ids_1L.shape[1])[None]
        positions_31L, _ = model.get_rope_index(
            ids_1L,
            mm_token_type_ids=row["mm_token_type_ids"],
            image_grid_thw=row["image_grid_thw"],
        )
        return positions_31L[:, 0].long()


_QWEN = Family(
    vision=("visual",),
    connector=("visual.merger", "visual.deepstack_merger_list"),
    image_inputs=("pixel_values", "image_grid_thw"),
    mrope=True,
    video_processor="Qwen2VLVideoProcessor",
)
_IDEFICS = Family(
    language_model="text_model",
    vision=("vision_model", "connector"),
    connector=("connector",),
    image_inputs=("pixel_values", "pixel_attention_mask"),
    image_options={"do_image_splitting": False},
    nested_images=True,
)

FAMILIES: dict[str, Family] = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": replace(_QWEN, video_processor="Qwen3VLVideoProcessor"),
    "idefics3": _IDEFICS,
    "smolvlm": replace(_IDEFICS, video_processor="SmolVLMVideoProcessor"),
    "internvl": Family(
        image_options={"crop_to_patches": False},
        tensor_features=True,
        video_processor="InternVLVideoProcessor",
    ),
    "llava": Family(skips_layers=True),  # it reads the last layer but one
}
"""``model_type`` of transformers' configuration -> family."""
