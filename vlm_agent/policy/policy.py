"""``VLMPolicy``: a vision-language model that scores words, and a value head beside it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Self

import numpy as np
import peft
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_agent.policy.artifact import ACTION_HEAD_FILE, VALUE_HEAD_FILE, SavedPolicy
from vlm_agent.policy.backbone.loading import Backbone
from vlm_agent.policy.backbone.patches import project_patches
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.heads import ValueHead
from vlm_agent.policy.inputs.encoder import ObservationEncoder, PromptRows, sensible_words
from vlm_agent.policy.scoring.scorer import WordScorer
from vlm_agent.world.observations import STATE, Observations


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


class VLMPolicy(nn.Module, SavedPolicy):
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
        self._hub_mixin_config = None  # the mixin would write the settings as config.json
        self.backbone = backbone
        self.encoder = encoder
        self.config = config
        self.seed = seed
        self.recipe = recipe or {}
        self.words = encoder.template.words
        self.family = encoder.family
        project_patches(self.family.vision_modules(self.inner_model.model))
        self.rows = PromptRows(encoder, self.inner_model.model)
        by_head = config.scoring == "action_head"
        self.scorer = WordScorer(encoder.words, "first_token" if by_head else config.scoring)
        self.phrases = WordScorer(encoder.words, "phrase_sum")
        hidden_size = self.inner_model.config.get_text_config().hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.value_head = self._new_value_head(config)
            self.action_head = nn.Linear(hidden_size, len(self.words)) if by_head else None
        if self.action_head is not None:
            nn.init.zeros_(self.action_head.weight)  # every word is as probable at the start
            nn.init.zeros_(self.action_head.bias)
            if not self.inner_model.config.tie_word_embeddings:
                self._head().requires_grad_(False)  # without a gradient DDP would wait for it
        self.train_as(config)

    def train_as(self, config: ModelConfig) -> None:
        """Take from settings what a policy may be trained with, whatever it was made with.

        That is ``freeze_vision``, ``detach_value``, ``temperature``, ``mask_senseless_words``,
        ``gradient_checkpointing``, and ``value_input``: with another one, the value head is new.
        """
        if config.value_input != self.config.value_input:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.value_head = self._new_value_head(config).to(self.device)
            self.config = dataclasses.replace(
                self.config,
                value_input=config.value_input,
                value_head_width=config.value_head_width,
                value_head_depth=config.value_head_depth,
            )
        vision = self.family.vision_modules(self.inner_model.model)
        if not isinstance(self.backbone, peft.PeftModel):  # whose adapters alone are trained
            for module in vision:
                module.requires_grad_(not config.freeze_vision)
        # Whether what the vision tower makes of a frame stays the same while training.
        self.vision_is_frozen = not any(p.requires_grad for m in vision for p in m.parameters())
        self.config = dataclasses.replace(
            self.config,
            freeze_vision=config.freeze_vision,
            detach_value=config.detach_value,
            temperature=config.temperature,
            mask_senseless_words=config.mask_senseless_words,
        )
        self.set_gradient_checkpointing(config.gradient_checkpointing)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Whether activations are recomputed for the gradient; changes no number."""
        self.config = dataclasses.replace(self.config, gradient_checkpointing=enabled)
        if enabled:
            self.inner_model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.inner_model.activation_checkpointing_disable()

    def train(self, mode: bool = True) -> Self:
        """Switch to training, in which the backbone computes what it computes in rollouts.

        Its own mode would put dropout between them, and 8-bit layers on a CPU take another way
        then. Only the layers that recompute their activations are told, not what is in them.
        """
        super().train(mode)
        self.backbone.eval()
        for module in self.backbone.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = mode
        return self

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
        return [p for module in self.heads().values() for p in module.parameters()]

    def actor_parameters(self) -> list[nn.Parameter]:
        """All that is trained but the value head."""
        critic = {id(p) for p in self.value_head.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in critic]

    def heads(self) -> dict[str, nn.Module]:
        """The heads by the names of their files."""
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
        values_B = self._values(prompt_end_BD, inputs)
        return PolicyOutput(logits_BA, values_B, made if self.vision_is_frozen else None)

    def _values(self, prompt_end_BD: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.config.value_input == "hidden":
            return self.value_head(
                prompt_end_BD.detach() if self.config.detach_value else prompt_end_BD
            )
        if "critic_states" not in inputs:  # nobody knows it where the policy is only used
            return torch.full_like(prompt_end_BD[:, 0], torch.nan, dtype=torch.float32)
        return self.value_head(inputs["critic_states"])

    @torch.no_grad()
    def value_inputs(self, **inputs: torch.Tensor) -> torch.Tensor:
        """What the value head reads: final hidden states at the prompt's end, or scenes, (B, D)."""
        if self.config.value_input == "state":
            return inputs["critic_states"]
        if "image_features" not in inputs:
            inputs = {**inputs, "image_features": self._image_features(inputs)}
        return self._hidden_states(inputs, self.scorer)[:, 0]

    def _new_value_head(self, config: ModelConfig) -> ValueHead:
        size = self.inner_model.config.get_text_config().hidden_size
        if config.value_input == "state":
            size = len(STATE)
        return ValueHead(size, config.value_head_width, config.value_head_depth)

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
        return self.family.image_features(self.inner_model.model, inputs)

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
            image inputs or ``image_features``; ``word_mask`` (B, A) if words are masked;
            ``critic_states`` (B, S) if the value head reads those and they are known.
        """
        frames = observations.frames
        inputs = self.rows(observations.facts, frames.shape[1:])
        if self.config.mask_senseless_words:
            inputs["word_mask"] = sensible_words(observations.facts)
        if image_features is not None:
            inputs["image_features"] = image_features
        if self.config.value_input == "state" and observations.states is not None:
            inputs["critic_states"] = torch.from_numpy(observations.states)
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if image_features is None:
            inputs |= self.encoder.frames(frames, self.device)
        return inputs
