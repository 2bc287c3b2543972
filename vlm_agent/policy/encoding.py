"""From observations to model inputs: prompt, chat template, tokens and patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlm_agent.actions import MOTIONS
from vlm_agent.errors import UserError
from vlm_agent.observations import Observations
from vlm_agent.policy.scoring import first_token_ids
from vlm_agent.prompts import PromptTemplate

START_FACTS = (0, len(MOTIONS), 0, 1)
"""Scene facts of an episode's beginning: any facts do where only the prompt's end matters."""


class ObservationEncoder:
    """Renders the prompt of each observation and lets the processor make tensors of the batch.

    Args:
        processor: A Qwen2-VL processor, with a chat template.
        template: The checked prompt template.

    Attributes:
        word_token_ids: The first token of each action word, where the answer begins.

    Raises:
        UserError: The processor has no chat template, the template or an action word contains one
            of the tokenizer's special tokens, or two words begin with the same token.
    """

    def __init__(self, processor: Any, template: PromptTemplate) -> None:
        if not processor.chat_template:
            raise UserError("the model's processor has no chat template")
        self.processor = processor
        self.template = template
        texts = [template.source, template.task, template.robot, *template.words]
        for token in processor.tokenizer.all_special_tokens:
            if any(token in text for text in texts):
                raise UserError(f"prompt or words contain the special token {token!r}")
        processor.tokenizer.padding_side = "left"  # the last position is then the last token
        self.word_token_ids = first_token_ids(
            processor.tokenizer, self.prompt(START_FACTS), template.words
        )

    def prompt(self, facts: Sequence[int]) -> str:
        """The whole text the model reads, up to where its answer begins."""
        before, after = self.template.render(facts)
        content = [
            {"type": "text", "text": before},
            {"type": "image"},
            {"type": "text", "text": after},
        ]
        content = [part for part in content if part.get("text") != ""]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def __call__(self, observations: Observations) -> dict[str, torch.Tensor]:
        """Model inputs for B observations, on the CPU, padded on the left to L tokens.

        Returns:
            ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` (B, L); ``pixel_values``
            (patches of all frames, 1176) and ``image_grid_thw`` (B, 3).
        """
        return dict(
            self.processor(
                text=[self.prompt(facts) for facts in observations.facts],
                images=list(observations.frames),
                padding=True,
                return_tensors="pt",
            )
        )
