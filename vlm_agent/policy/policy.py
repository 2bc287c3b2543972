"""``VLMPolicy``: a vision-language model that scores words, and a value head beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from vlm_agent.errors import UserError
from vlm_agent.observations import Observations
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.encoding import ObservationEncoder, PromptRows, sensible_words
from vlm_agent.policy.families import FAMILIES
from vlm_agent.policy.frames import image_inputs_of
from vlm_agent.policy.loading import (
    Backbone,
    hub_is_reachable,
    load_adapter,
    load_base_model,
)
from vlm_agent.policy.processor import picture_processor_class
from vlm_agent.policy.scorer import WordScorer
from vlm_agent.policy.value_head import ValueHead
from vlm_agent.prompts import PromptTemplate

POLICY_FILE = "policy.json"
PROMPT_FILE = "prompt.jinja"
RECIPE_FILE = "recipe.json"
VALUE_HEAD_FILE = "value_head.safetensors"
ACTION_HEAD_FILE = "action_head.safetensors"

_MODEL_CARD = """---
{{ card_data }}
---

A vision-language model that moves a robot arm with words, trained with vlm-agent.

```python
from vlm_agent.policy.policy import VLMPolicy

policy = VLMPolicy.from_pretrained("path/or/name").eval()
print(policy.words)
```
"""


class PolicyOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        logits: Scores of the words, fp32 (B, A).
        values: State values, fp32 (B,).
        image_features: (B, S, P, D) where a frozen vision tower made them in this pass, so that
            they can be used again; else ``None``.
    """

    logits: torch.Tensor
    values: torch.Tensor
    image_features: torch.Tensor | None


class VLMPolicy(
    nn.Module,
    ModelHubMixin,
    library_name="vlm-agent",
    pipeline_tag="robotics",
    tags=["vision-language-action", "ppo"],
    model_card_template=_MODEL_CARD,
):
    """Backbone and heads as one module, so that one ``forward`` gives scores and values.

    The scores are next-token scores of the language head, restricted to the words; the value head
    reads the hidden state at the prompt's end. This is the module that accelerate wraps, and
    :meth:`forward` is the only way to scores: rollouts, updates and evaluation all take it.

    Args:
        backbone: A model of a supported family, with or without LoRA adapters.
        encoder: Turns observations into the backbone's inputs; also knows the words.
        config: The settings the backbone was made with; ``scoring`` is not ``auto`` any more.
        seed: The seed of the random parts (``tiny``, adapters, heads), kept for reloading.
        recipe: The run's settings as JSON values, to be kept with the policy.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: ObservationEncoder,
        config: ModelConfig,
        seed: int,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._hub_mixin_config = None  # config.json is the backbone's
        self.backbone = backbone
        self.encoder = encoder
        self.config = config
        self.seed = seed
        self.recipe = recipe or {}
        self.words = encoder.template.words
        self.family = encoder.family
        self.rows = PromptRows(encoder, self.inner_model.model)
        by_head = config.scoring == "action_head"
        self.scorer = WordScorer(encoder.words, "first_token" if by_head else config.scoring)
        self.phrases = WordScorer(encoder.words, "phrase_sum")
        hidden_size = self.inner_model.config.get_text_config().hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.value_head = ValueHead(
                hidden_size, config.value_head_width, config.value_head_depth
            )
            self.action_head = nn.Linear(hidden_size, len(self.words)) if by_head else None
        if self.action_head is not None:
            nn.init.zeros_(self.action_head.weight)  # every word is as probable at the start
            nn.init.zeros_(self.action_head.bias)
            if not self.inner_model.config.tie_word_embeddings:
                self._head().requires_grad_(False)  # without a gradient DDP would wait for it
        vision = self.family.vision_modules(self.inner_model.model)
        if config.freeze_vision:
            for module in vision:
                module.requires_grad_(False)
        # Whether what the vision tower makes of a frame stays the same while training.
        self.vision_is_frozen = not any(p.requires_grad for m in vision for p in m.parameters())
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

    def backbone_parameters(self) -> list[nn.Parameter]:
        """What is trained of the backbone."""
        return [p for p in self.backbone.parameters() if p.requires_grad]

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the value head, and of the action head if there is one."""
        return [p for module in self._heads().values() for p in module.parameters()]

    def actor_parameters(self) -> list[nn.Parameter]:
        """All that is trained but the value head."""
        critic = {id(p) for p in self.value_head.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in critic]

    def _heads(self) -> dict[str, nn.Module]:
        """File name -> head."""
        heads: dict[str, nn.Module] = {VALUE_HEAD_FILE: self.value_head}
        if self.action_head is not None:
            heads[ACTION_HEAD_FILE] = self.action_head
        return heads

    def forward(self, **inputs: torch.Tensor) -> PolicyOutput:
        """Scores and values of encoded observations (see :meth:`encode`)."""
        made = None
        if "image_features" not in inputs:
            made = self._image_features(inputs)
            inputs = {**inputs, "image_features": made}
        states_BSD = self._hidden_states(inputs, self.scorer)
        prompt_end_BD = states_BSD[:, 0]
        if self.action_head is not None:
            with torch.autocast(states_BSD.device.type, enabled=False):
                logits_BA = self.action_head(prompt_end_BD.float())
        else:
            logits_BA = self.scorer(states_BSD, self._head())
        logits_BA = logits_BA / self.config.temperature
        if "word_mask" in inputs:
            # As good as minus infinity, but 0 times it is 0 in the entropy.
            lowest = torch.finfo(logits_BA.dtype).min
            logits_BA = logits_BA.masked_fill(~inputs["word_mask"], lowest)
        for_value = prompt_end_BD.detach() if self.config.detach_value else prompt_end_BD
        values_B = self.value_head(for_value)
        return PolicyOutput(logits_BA, values_B, made if self.vision_is_frozen else None)

    @torch.no_grad()
    def image_features(self, frames_BHWC: np.ndarray) -> torch.Tensor:
        """What the vision tower makes of frames, (B, S, P, D), without gradients."""
        return self._image_features(self.encoder.frames(frames_BHWC, self.device))

    @torch.no_grad()
    def vocabulary_share(self, **inputs: torch.Tensor) -> torch.Tensor:
        """How much of the whole vocabulary's probability falls on the words, (B,).

        A prompt after which the model would never say a word has a share near 0. Costs the full
        vocabulary's scores at a few positions, so it is not part of :meth:`forward`.
        """
        if "image_features" not in inputs:
            inputs = {**inputs, "image_features": self._image_features(inputs)}
        states_BSD = self._hidden_states(inputs, self.phrases)
        return self.phrases.log_probs(states_BSD, self._head()).exp().sum(-1)

    def _image_features(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.family.image_features(
            self.inner_model.model, image_inputs_of(inputs, self.family)
        )

    def _hidden_states(self, inputs: dict[str, torch.Tensor], scorer: WordScorer) -> torch.Tensor:
        """Final hidden states of the prompt's end and of what the scorer put behind it."""
        ids, mask, positions = scorer.extend(
            inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"]
        )
        states_BLD = self.inner_model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions if self.family.mrope else positions[0],
            mm_encoder_outputs=self.family.encoder_outputs(inputs["image_features"]),
            use_cache=False,
        ).last_hidden_state
        return states_BLD[:, inputs["input_ids"].shape[1] - 1 :]  # padding is on the left

    def _head(self) -> torch.Tensor:
        return self.inner_model.get_output_embeddings().weight

    def encode(
        self, observations: Observations, image_features: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Model inputs for B observations, on the policy's device.

        Args:
            observations: Frames and facts.
            image_features: What the vision tower made of the frames, if that is known: then the
                frames are not processed.

        Returns:
            ``input_ids``, ``attention_mask`` (B, L), ``position_ids`` (P, B, L); the family's
            image inputs or ``image_features``; ``word_mask`` (B, A) if words are masked.
        """
        frames = observations.frames
        inputs = self.rows(observations.facts, frames.shape[1:])
        if self.config.mask_senseless_words:
            inputs["word_mask"] = sensible_words(observations.facts)
        if image_features is not None:
            inputs["image_features"] = image_features
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if image_features is None:
            inputs |= self.encoder.frames(frames, self.device)
        return inputs

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write all that :meth:`from_pretrained` needs, in safetensors and JSON.

        That is adapter or weights, heads, processor, prompt, words, scoring and recipe.
        """
        if isinstance(self.backbone, peft.PeftModel):
            self.backbone.save_pretrained(save_directory, save_embedding_layers=False)
            (save_directory / "README.md").unlink()  # PEFT's card; the policy has its own
        else:
            self.backbone.save_pretrained(save_directory)
        self.encoder.processor.save_pretrained(save_directory)
        for name, head in self._heads().items():
            state = {k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}
            save_file(state, save_directory / name)
        template = self.encoder.template
        (save_directory / PROMPT_FILE).write_text(template.source)
        about = {
            "model_type": self.inner_model.config.model_type,
            "model": asdict(self.config),
            "seed": self.seed,
            "task": template.task,
            "robot": template.robot,
            "words": list(template.words),
        }
        (save_directory / POLICY_FILE).write_text(json.dumps(about, indent=2) + "\n")
        (save_directory / RECIPE_FILE).write_text(json.dumps(self.recipe, indent=2) + "\n")

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> VLMPolicy:
        """Read what ``save_pretrained`` or ``push_to_hub`` wrote; the scores are the same.

        Args:
            pretrained_model_name_or_path: A folder, or a name on the hub.
            revision: Branch, tag or commit on the hub.
            force_download: Download again what is in the cache.
            token: For private repositories.
            cache_dir: Where downloads are kept.
            local_files_only: Do not ask the hub.

        Raises:
            UserError: There is no such policy, or a broken one.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir() and _may_be_on_the_hub(str(folder)):
            folder = _download(
                str(pretrained_model_name_or_path),
                revision=revision,
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        if not (folder / POLICY_FILE).is_file():
            raise UserError(f"no policy in the folder {str(folder)!r} (no {POLICY_FILE})")
        try:
            return cls._read(folder)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"cannot load the policy in {str(folder)!r}: {error}") from error

    @classmethod
    def _read(cls, folder: Path) -> VLMPolicy:
        about = json.loads((folder / POLICY_FILE).read_text())
        config, model_type = ModelConfig(**about["model"]), about["model_type"]
        template = PromptTemplate(
            (folder / PROMPT_FILE).read_text(), about["task"], about["robot"], tuple(about["words"])
        )
        processor: Any = picture_processor_class(model_type)
        encoder = ObservationEncoder(
            processor.from_pretrained(folder), template, FAMILIES[model_type]
        )
        backbone: Backbone
        if config.use_peft:
            base = load_base_model(config, encoder.processor, about["seed"])
            backbone = load_adapter(base, folder, is_trainable=True)
        else:
            backbone = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=getattr(torch, config.dtype),
                use_safetensors=True,
                trust_remote_code=False,
            )
        recipe = json.loads((folder / RECIPE_FILE).read_text())
        policy = cls(backbone, encoder, config, about["seed"], recipe)
        policy.read_heads(folder)
        return policy

    def read_heads(self, folder: Path) -> None:
        """Take the heads of a saved policy."""
        for name, head in self._heads().items():
            head.load_state_dict(load_file(folder / name))


def _may_be_on_the_hub(name: str) -> bool:
    """Whether a name is like ``user/policy``, and no path."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def _download(name: str, **options: Any) -> Path:
    try:
        options["local_files_only"] |= not hub_is_reachable()
        return Path(snapshot_download(name, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"no policy {name!r}: it is no folder here, and not to be had from the Hugging Face "
            f"hub ({type(error).__name__})"
        ) from error
