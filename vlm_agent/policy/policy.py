"""``VLMPolicy``: a vision-language model that scores words, and a value head beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from vlm_agent.errors import UserError
from vlm_agent.observations import Observations
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.encoding import ObservationEncoder
from vlm_agent.policy.loading import Backbone, add_lora, load_base_model, load_processor
from vlm_agent.policy.processor import Qwen2VLProcessor
from vlm_agent.policy.scoring import restricted_scores
from vlm_agent.policy.value_head import ValueHead
from vlm_agent.prompts import PromptTemplate

POLICY_FILE = "policy.json"
PROMPT_FILE = "prompt.jinja"
VALUE_HEAD_FILE = "value_head.safetensors"


class PolicyOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        logits: Scores of the words, fp32 (B, A).
        values: State values, fp32 (B,).
    """

    logits: torch.Tensor
    values: torch.Tensor


class VLMPolicy(nn.Module):
    """Backbone and value head as one module, so that one ``forward`` gives scores and values.

    The scores are next-token scores of the language head at the last prompt position, restricted
    to the words' first tokens; the value head reads the same hidden state. This is the module that
    accelerate wraps, and :meth:`forward` is the only way to scores: rollouts, updates and
    evaluation all take it.

    Args:
        backbone: A Qwen2-VL, with or without LoRA adapters.
        encoder: Turns observations into the backbone's inputs; also knows the words.
        config: The settings the backbone was made with.
        seed: The seed of the random parts (``tiny``, adapters, value head), kept for reloading.
    """

    def __init__(
        self, backbone: Backbone, encoder: ObservationEncoder, config: ModelConfig, seed: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.config = config
        self.seed = seed
        self.words = encoder.template.words
        ids = encoder.word_token_ids
        self.word_token_ids: torch.Tensor
        self.register_buffer("word_token_ids", torch.tensor(ids), persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden_size = self.inner_model.config.get_text_config().hidden_size
            self.value_head = ValueHead(hidden_size, config.value_head_width)
        if config.gradient_checkpointing:
            self.inner_model.activation_checkpointing_enable({"use_reentrant": False})

    @property
    def inner_model(self) -> PreTrainedModel:
        """The transformers model, below PEFT if there is any."""
        if isinstance(self.backbone, peft.PeftModel):
            return self.backbone.get_base_model()
        return self.backbone

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.value_head.output.weight.device

    def forward(self, **inputs: torch.Tensor) -> PolicyOutput:
        """Scores and values of encoded observations (see :class:`ObservationEncoder`)."""
        model = self.inner_model
        states_BLD = model.model(**inputs, use_cache=False).last_hidden_state
        hidden_BD = states_BLD[:, -1]  # padding is on the left
        logits_BA = restricted_scores(
            hidden_BD, model.get_output_embeddings().weight, self.word_token_ids
        )
        for_value = hidden_BD.detach() if self.config.detach_value else hidden_BD
        return PolicyOutput(logits_BA, self.value_head(for_value))

    def encode(self, observations: Observations) -> dict[str, torch.Tensor]:
        """Model inputs for a batch of observations, on the policy's device."""
        return {k: v.to(self.device) for k, v in self.encoder(observations).items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all that :meth:`from_pretrained` needs, in safetensors and JSON.

        That is adapter or weights, value head, processor, prompt and words.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_pretrained(folder)
        self.encoder.processor.save_pretrained(folder)
        head = {k: v.detach().cpu().contiguous() for k, v in self.value_head.state_dict().items()}
        save_file(head, folder / VALUE_HEAD_FILE)
        template = self.encoder.template
        (folder / PROMPT_FILE).write_text(template.source)
        about = {
            "model": asdict(self.config),
            "seed": self.seed,
            "task": template.task,
            "robot": template.robot,
            "words": list(template.words),
        }
        (folder / POLICY_FILE).write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VLMPolicy:
        """Read what :meth:`save_pretrained` wrote. The scores are the same, bit for bit.

        Raises:
            UserError: The folder holds no policy, or a broken one.
        """
        folder = Path(folder)
        if not (folder / POLICY_FILE).is_file():
            raise UserError(f"no policy in the folder {str(folder)!r} (no {POLICY_FILE})")
        try:
            return cls._read(folder)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"cannot load the policy in {str(folder)!r}: {error}") from error

    @classmethod
    def _read(cls, folder: Path) -> VLMPolicy:
        about = json.loads((folder / POLICY_FILE).read_text())
        config = ModelConfig(**about["model"])
        template = PromptTemplate(
            (folder / PROMPT_FILE).read_text(), about["task"], about["robot"], tuple(about["words"])
        )
        processor = Qwen2VLProcessor.from_pretrained(folder)
        backbone: Backbone
        if config.use_peft:
            base = load_base_model(config, processor, about["seed"])
            backbone = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=True)
        else:
            backbone = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=getattr(torch, config.dtype)
            )
        policy = cls(backbone, ObservationEncoder(processor, template), config, about["seed"])
        policy.value_head.load_state_dict(load_file(folder / VALUE_HEAD_FILE))
        return policy


def build_policy(config: ModelConfig, template: PromptTemplate, seed: int) -> VLMPolicy:
    """A fresh policy from the settings of a recipe.

    Raises:
        UserError: The model cannot be loaded, or its tokenizer cannot tell the words apart.
    """
    processor = load_processor(config.model_name_or_path, config.model_revision)
    encoder = ObservationEncoder(processor, template)
    backbone: Backbone = load_base_model(config, processor, seed)
    if config.use_peft:
        backbone = add_lora(backbone, config, seed)
    return VLMPolicy(backbone, encoder, config, seed)


PolicyModule = Callable[..., PolicyOutput]
"""A ``VLMPolicy``, or the module that accelerate wrapped it in."""


@dataclass(frozen=True)
class Decisions:
    """Words chosen for B observations.

    Attributes:
        actions: int64 (B,).
        log_probs: Log-probability of each chosen word, float32 (B,).
        values: State values, float32 (B,).
        probs: The whole distribution, float32 (B, A).
    """

    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    probs: np.ndarray


@torch.no_grad()
def act(
    policy: VLMPolicy, observations: Observations, uniforms: np.ndarray | None = None
) -> Decisions:
    """Choose a word for each observation.

    Args:
        policy: The policy.
        observations: B of them.
        uniforms: Uniform numbers (B,) in [0, 1), from which the words are drawn by inverting the
            distribution function, so that sampling needs no generator on the device. ``None``
            takes the most probable word.
    """
    output = policy(**policy.encode(observations))
    log_probs_BA = output.logits.log_softmax(-1).cpu().numpy()
    probs_BA = np.exp(log_probs_BA)
    if uniforms is None:
        actions = log_probs_BA.argmax(-1)
    else:
        below_BA = np.cumsum(probs_BA, -1, dtype=np.float64)
        below_BA /= below_BA[:, -1:]
        actions = (below_BA <= uniforms[:, None]).sum(-1)
    chosen = np.take_along_axis(log_probs_BA, actions[:, None], -1)[:, 0]
    return Decisions(actions, chosen, output.values.cpu().numpy(), probs_BA)


@torch.no_grad()
def predict_values(policy: VLMPolicy, observations: Observations) -> np.ndarray:
    """State values, float32 (B,)."""
    return policy(**policy.encode(observations)).values.cpu().numpy()


def evaluate_actions(
    policy: PolicyModule, inputs: dict[str, torch.Tensor], actions_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, entropies and values of given words, each (B,), with gradients.

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
    return log_prob_B, entropy_B, output.values
