"""Processors for pictures and text, without their video branch, which would need torchvision."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES


@functools.cache
def picture_processor_class(model_type: str) -> type:
    """The processor class of a model type, made without a video processor.

    It keeps its parent's name, which ``save_pretrained`` writes down, so that a saved folder opens
    with transformers' own classes too.
    """
    parent = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
    has_video = "video_processor" in inspect.signature(parent.__init__).parameters
    without_video = {"video_processor": None} if has_video else {}

    class PictureProcessor(parent):
        def __init__(
            self,
            image_processor: Any = None,
            tokenizer: Any = None,
            chat_template: str | None = None,
            **options: Any,
        ) -> None:
            # transformers reads from this signature which parts a processor has.
            super().__init__(
                image_processor, tokenizer, chat_template=chat_template, **without_video, **options
            )

    PictureProcessor.__name__ = PictureProcessor.__qualname__ = parent.__name__
    return PictureProcessor
