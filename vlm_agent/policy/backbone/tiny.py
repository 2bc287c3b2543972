"""``tiny``: a randomly initialised Qwen2-VL, built in seconds with no network.

It has the classes, files and special tokens of the real model, so everything that runs with one
runs with the other; it is small enough to learn on two CPU cores.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2TokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlm_agent.policy.backbone.processor import picture_processor_class

MODEL_TYPE = "qwen2_vl"
END = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (
    END,
    "<|im_start|>",
    END_OF_TURN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# What the byte-level BPE learns its merges from; anything else is spelled out in shorter pieces.
_CORPUS = """
user assistant system You are a helpful robot. The robot arm moves with words.
forward backward left right up down close gripper open gripper closed none
forward, backward, left, right, up, down, close gripper, open gripper
open, none closed, none open, forward closed, backward open, left closed, right open, up
closed, down closed, close gripper open, open gripper
You control a Panda robot arm. This is the view of the camera in its hand, looking down at the
table past the two fingers of the gripper. Task: Pick up the can and put it into its bin.
Lift the red cube off the table. milk carton bread cereal box object place picture
The gripper is open. The gripper is closed. Your last word was: none. You have words left.
Say the next motion, one of: Answer with one word of the list. just said words are left
0 1 2 3 4 5 6 7 8 9 10 20 30 40 50 60 70 80 90 100 110 120
"""

# Where an answer begins, after a newline, each is one token, as in the real tokenizer.
_ANSWERS = ("forward", "backward", "left", "right", "up", "down", "close", "open")

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_tokenizer() -> Qwen2TokenizerFast:
    """A byte-level BPE of about five hundred tokens with Qwen2-VL's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([*_CORPUS.splitlines(), *(4 * _ANSWERS)], trainer)
    # How the class cuts text, and does again when it reads a saved tokenizer: digits one by one.
    its_own = Qwen2TokenizerFast().backend_tokenizer
    bpe.normalizer, bpe.pre_tokenizer = its_own.normalizer, its_own.pre_tokenizer
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return Qwen2TokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TURN,
        pad_token=END,
        padding_side="left",
        model_max_length=4096,
    )


def build_tiny_processor() -> Any:
    """Processor for :func:`build_tiny_model`: the tokenizer above and Qwen2-VL's pictures."""
    return picture_processor_class(MODEL_TYPE)(
        Qwen2VLImageProcessorPil(), build_tiny_tokenizer(), chat_template=_CHAT_TEMPLATE
    )


TEXT_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [4, 6, 6],
    },
}
VISION_SIZES: dict[str, Any] = {
    "depth": 3,
    "embed_dim": 128,
    "hidden_size": 128,
    "num_heads": 4,
    "mlp_ratio": 3,
    "patch_size": 14,
}


def qwen2_vl_config(
    tokenizer: Qwen2TokenizerFast,
    text_sizes: dict[str, Any] = TEXT_SIZES,
    vision_sizes: dict[str, Any] = VISION_SIZES,
    vocabulary: int | None = None,
) -> Qwen2VLConfig:
    """The configuration of a Qwen2-VL; by default of ``tiny``, with about 1.6 M parameters.

    Args:
        tokenizer: Gives the ids of the special tokens.
        text_sizes: Sizes of the language model.
        vision_sizes: Sizes of the vision tower.
        vocabulary: Size of the vocabulary; the tokenizer's without it.
    """
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS), strict=True))
    return Qwen2VLConfig(
        text_config={
            **copy.deepcopy(text_sizes),  # transformers writes into what it is given
            "vocab_size": vocabulary or len(tokenizer),
            "bos_token_id": ids[END],
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config=dict(vision_sizes),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_tiny_model(
    tokenizer: Qwen2TokenizerFast, seed: int, dtype: torch.dtype = torch.float32
) -> Qwen2VLForConditionalGeneration:
    """``tiny`` with random weights.

    Args:
        tokenizer: Gives the size of the vocabulary and the ids of the special tokens.
        seed: Decides the weights, whatever was drawn before; the global generator is left alone.
        dtype: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2VLForConditionalGeneration(qwen2_vl_config(tokenizer)).to(dtype)
