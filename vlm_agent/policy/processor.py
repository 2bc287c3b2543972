"""Qwen2-VL's processor without its video branch, which would need torchvision."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.processing_utils import ProcessorMixin


class Qwen2VLProcessor(transformers.Qwen2VLProcessor):
    """Pictures and text only.

    It keeps the parent's name, which ``save_pretrained`` writes down, so that a saved folder opens
    with transformers' own classes too.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
