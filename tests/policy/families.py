"""A tiny random model of each family, as a folder with the files that the hub's have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.policy.tokenizers_of_three_kinds import byte_level_bpe
from vlm_agent.policy.backbone.processor import picture_processor_class

TEXT = """
user assistant User Assistant system image
forward backward left right up down close gripper open gripper none closed, open,
open, none closed, forward open, backward closed, left open, right
move forward move backward move left move right move down a little
/// ///
"""

_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
_PARTS = (
    "{% for part in m.content %}{% if part.type == 'image' %}IMAGE"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}"
)
CHATML = (
    _TURNS
    + _PARTS
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLON = (
    "{% for m in messages %}{{ m.role.capitalize() }}: "
    + _PARTS
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)

TEXT_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
VISION_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    return byte_level_bpe(4 * TEXT, ("<|im_start|>", "<|im_end|>", *special), **named)


def _rope(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return TEXT_SIZES | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        },
    }


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return TEXT_SIZES | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}


def _qwen(model_type: str, config: type, vision: dict[str, Any], patch: int) -> tuple[Any, Any]:
    start, pad, end, video = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
    tokenizer = _tokenizer([start, pad, end, video])
    processor = picture_processor_class(model_type)(
        Qwen2VLImageProcessorPil(patch_size=patch),
        tokenizer,
        chat_template=CHATML.replace("IMAGE", start + pad + end),
    )
    ids = tokenizer.convert_tokens_to_ids
    sizes = {"image_token_id": pad, "video_token_id": video, "vision_start_token_id": start}
    return processor, config(
        text_config=_rope(tokenizer),
        vision_config=vision | {"patch_size": patch},
        vision_end_token_id=ids(end),
        tie_word_embeddings=False,
        **{name: ids(token) for name, token in sizes.items()},
    )


def qwen2_vl() -> tuple[Any, Any]:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    return _qwen("qwen2_vl", transformers.Qwen2VLConfig, vision, 14)


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "window_size": 28,
        "fullatt_block_indexes": [1],
    }
    return _qwen("qwen2_5_vl", transformers.Qwen2_5_VLConfig, vision, 14)


def qwen3_vl() -> tuple[Any, Any]:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    return _qwen("qwen3_vl", transformers.Qwen3VLConfig, vision, 16)


def _idefics(model_type: str, config: type, image_processor: Any) -> tuple[Any, Any]:
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer = _tokenizer(special)
    processor = picture_processor_class(model_type)(
        image_processor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}),
        tokenizer,
        image_seq_len=4,
        chat_template=COLON.replace("IMAGE", "<image>"),
    )
    return processor, config(
        text_config=_text(tokenizer) | {"model_type": "llama"},
        vision_config=VISION_SIZES | {"image_size": 56, "patch_size": 14},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )


def idefics3() -> tuple[Any, Any]:
    return _idefics("idefics3", transformers.Idefics3Config, Idefics3ImageProcessorPil)


def smolvlm() -> tuple[Any, Any]:
    return _idefics("smolvlm", transformers.SmolVLMConfig, SmolVLMImageProcessorPil)


def internvl() -> tuple[Any, Any]:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(list(named.values()), **named)
    processor = picture_processor_class("internvl")(
        GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer,
        image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    return processor, transformers.InternVLConfig(
        text_config=_text(tokenizer) | {"model_type": "qwen2"},
        vision_config=VISION_SIZES | {"image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )


def _llava(model_type: str, config: type, **further: Any) -> tuple[Any, Any]:
    tokenizer = _tokenizer(["<image>"])
    processor = picture_processor_class(model_type)(
        LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=COLON.replace("IMAGE", "<image>").replace("<end_of_utterance>", ""),
    )
    return processor, config(
        text_config=_text(tokenizer) | {"model_type": "qwen2"},
        vision_config=VISION_SIZES
        | {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        tie_word_embeddings=False,
        **further,
    )


def llava() -> tuple[Any, Any]:
    return _llava("llava", transformers.LlavaConfig)


def vipllava() -> tuple[Any, Any]:
    return _llava("vipllava", transformers.VipLlavaConfig, vision_feature_layer=[-2, -3])


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
    "llava": llava,
}

UNKNOWN: dict[str, Callable[[], tuple[Any, Any]]] = {"vipllava": vipllava}
"""A family that is not in the package's table."""


def save_family(model_type: str, folder: Path) -> None:
    """Write a tiny random model of a family, and its processor, to a folder."""
    processor, config = (BUILDERS | UNKNOWN)[model_type]()
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():  # so that pictures and positions matter
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
