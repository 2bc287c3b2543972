"""``VLMPolicy``: a vision-language model that scores words, and a value head beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import peft
import torch
from huggingface_hub import ModelHubMixin
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_agent.policy.artifact import (
    ACTION_HEAD_FILE,
    MODEL_CARD,
    VALUE_HEAD_FILE,
    read_policy,
    write_policy,
)
from vlm_agent.policy.backbone.hidden import ModelPass
from vlm_agent.policy.backbone.loading import Backbone
from vlm_agent.policy.backbone.lora import choose_trained
from vlm_agent.policy.backbone.patches import project_patches
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.decisions import Decision, PolicyOutput, act
from vlm_agent.policy.heads import ValueHead, action_head
from vlm_agent.policy.inputs.encoder import ObservationEncoder, PromptRows, sensible_words
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.kept import Kept, KeptRow, complete, stack_rows
from vlm_agent.policy.places import policy_folder
from vlm_agent.policy.scoring.scorer import WordScorer
from vlm_agent.world.observations import Observations


class VLMPolicy(
    nn.Module,
    ModelHubMixin,
    library_name="vlm-agent",
    pipeline_tag="robotics",
    tags=["vision-language-action", "ppo"],
    model_card_template=MODEL_CARD,
):
    """Backbone and heads as one module, so that one ``forward`` gives scores and values.

    The scores are next-token scores of the language head, restricted to the words; the value head
    reads the hidden state at the prompt's end. :meth:`forward` is the only way to scores: rollouts,
    updates and evaluation all take it. ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``
    make it an artefact of safetensors, JSON and text, which never unpickles and runs no code.

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
        self.model_pass = ModelPass(self.inner_model.model, self.family)
        by_head = config.scoring == "action_head"
        self.scorer = WordScorer(encoder.words, "first_token" if by_head else config.scoring)
        self.phrases = WordScorer(encoder.words, "phrase_sum")
        hidden_size = self.inner_model.config.get_text_config().hidden_size
        self.value_head = ValueHead(
            hidden_size, config.value_head_width, config.value_head_depth, seed
        )
        self.action_head = action_head(hidden_size, len(self.words)) if by_head else None
        if by_head and not self.inner_model.config.tie_word_embeddings:
            self._head().requires_grad_(False)  # without a gradient DDP would wait for it
        self._is_public = False
        self.train_as(config)

    def train_as(self, config: ModelConfig) -> None:
        """Take from settings what a policy may be trained with, whatever it was made with.

        That is ``freeze_vision``, ``detach_value``, ``temperature``, ``mask_senseless_words``,
        ``gradient_checkpointing`` and, where there are adapters in more layers, ``lora_layers``.
        """
        if isinstance(self.backbone, peft.PeftModel):
            choose_trained(self.backbone, config, self.family)
        else:
            for module in self.family.vision_modules(self.inner_model.model):
                module.requires_grad_(not config.freeze_vision)
        self.model_pass.find_frozen()
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
    def vision_is_frozen(self) -> bool:
        """Whether what the vision tower makes of a frame stays the same while training."""
        return self.model_pass.vision_is_frozen

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
        states_BSD, kept = self.model_pass(inputs, self.scorer.extend)
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
        values_B = self.value_head(
            prompt_end_BD.detach() if self.config.detach_value else prompt_end_BD
        )
        return PolicyOutput(logits_BA, values_B, kept, prompt_end_BD)

    @torch.no_grad()
    def prompt_ends(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Final hidden states at the prompt's end, which the value head reads, (B, D)."""
        return self.model_pass(inputs, self.scorer.extend)[0][:, 0]

    @torch.no_grad()
    def vocabulary_share(self, **inputs: torch.Tensor) -> torch.Tensor:
        """How much of the whole vocabulary's probability falls on the words, (B,).

        A prompt after which the model would never say a word has a share near 0. Costs the full
        vocabulary's scores at a few positions, so it is not part of :meth:`forward`.

        Args:
            inputs: Of :meth:`encode`, with frames.
        """
        states_BSD, _ = self.model_pass(inputs, self.phrases.extend)
        return self.phrases.log_probs(states_BSD, self._head()).exp().sum(-1)

    def _head(self) -> torch.Tensor:
        return self.inner_model.get_output_embeddings().weight

    def encode(
        self, observations: Observations, kept: Sequence[KeptRow | None] = ()
    ) -> dict[str, torch.Tensor]:
        """Model inputs for B observations, on the policy's device.

        Args:
            observations: Frames and facts.
            kept: What frozen parts made of each of them before (see :class:`PolicyOutput`); it is
                made now where there is ``None``. Without any, the frames are among the inputs.

        Returns:
            ``input_ids``, ``attention_mask`` (B, L), ``position_ids`` (P, B, L), ``prefix_ids``
            (K,); the family's image inputs, ``image_features`` or ``trunk_states``; ``word_mask``
            (B, A) if words are masked.
        """
        frames = observations.frames
        inputs = self.rows(observations.facts, frames.shape[1:])
        if self.config.mask_senseless_words:
            inputs["word_mask"] = sensible_words(observations.facts, self.encoder.template)
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if kept and self.vision_is_frozen:
            has_trunk = self.model_pass.trunk_depth > 0
            prefix = len(inputs["prefix_ids"]) if has_trunk else 0
            if rows := complete(kept, prefix, lambda missing: self._keep(observations[missing])):
                name = "trunk_states" if has_trunk else "image_features"
                return inputs | {name: stack_rows(rows).to(self.device)}
        return inputs | self.encoder.frames(frames, self.device)

    def _keep(self, observations: Observations) -> Kept:
        """What frozen parts make of observations."""
        return self.model_pass.keep(self.encode(observations), self.scorer.extend)

    def act(self, observation: Mapping[str, Any], uniform: float | None = None) -> Decision:
        """The next word for one observation of an environment.

        Args:
            observation: The environment's dictionary.
            uniform: A number in [0, 1) that decides which word is drawn; the most probable one is
                said without it.
        """
        batch = Observations.stack([Observations.from_env(observation, self.facts)])
        said = act(self, batch, None if uniform is None else np.array([uniform]))
        probabilities = dict(zip(self.words, said.probs[0].tolist(), strict=True))
        action = int(said.actions[0])
        return Decision(self.words[action], action, probabilities, float(said.values[0]))

    @property
    def facts(self) -> tuple[str, ...]:
        """The names of the facts that it reads, in the order of ``Observations.facts``."""
        return self.encoder.template.fact_names

    def _save_pretrained(self, save_directory: Path) -> None:
        write_policy(self, save_directory, is_public=self._is_public)

    def push_to_hub(self, *arguments: Any, **options: Any) -> str:
        """Publish the policy, as ``ModelHubMixin`` does; no path of this machine goes with it."""
        self._is_public = True
        try:
            return super().push_to_hub(*arguments, **options)
        finally:
            self._is_public = False

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        template: PromptTemplate | None = None,
        **options: Any,
    ) -> Self:
        """Read what ``save_pretrained`` or ``push_to_hub`` wrote; the scores are the same.

        Args:
            pretrained_model_name_or_path: A folder, a policy that ships (``starter``), or a name on
                the hub.
            template: A prompt in place of the policy's own, to train it further with.
            options: Of the download: ``revision``, ``token``, ``cache_dir``, ``force_download``,
                ``local_files_only``.

        Raises:
            UserError: There is no such policy, or a broken one.
        """
        folder = policy_folder(pretrained_model_name_or_path, **options)
        return read_policy(cls, folder, template)
