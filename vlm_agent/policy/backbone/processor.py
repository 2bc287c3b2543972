"""Processors for pictures and text, without their video branch, which would need torchvision."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin

from vlm_agent.policy.backbone.families import FAMILIES

VIDEO_FILE = "video_preprocessor_config.json"


@functools.cache
def picture_processor_class(model_type: str) -> type:
    """The processor class of a model type, made without a video processor.

    It keeps its parent's name, which ``save_pretrained`` writes down, so that a saved folder opens
    with transformers' own classes too.
    """
    parent: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
    if "video_processor" not in inspect.signature(parent.__init__).parameters:
        return parent

    class PictureProcessor(parent):  # type: ignore[misc]
        # transformers reads from these names which parts and options a processor has.
        def __init__(
            self,
            image_processor: Any = None,
            tokenizer: Any = None,
            chat_template: str | None = None,
            image_seq_len: int | None = None,
            image_seq_length: int | None = None,
            **others: Any,
        ) -> None:
            lengths = {"image_seq_len": image_seq_len, "image_seq_length": image_seq_length}
            given = {name: value for name, value in lengths.items() if value is not None}
            super().__init__(
                image_processor,
                tokenizer,
                video_processor=None,
                chat_template=chat_template,
                **given,
                **others,
            )

        def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
            # SmolVLM's own asks its video processor for defaults.
            return ProcessorMixin.apply_chat_template(self, *arguments, **options)

    PictureProcessor.__name__ = PictureProcessor.__qualname__ = parent.__name__
    return PictureProcessor


def save_processor(processor: Any, model_type: str, folder: Path) -> None:
    """Write a processor so that transformers' ``AutoProcessor`` opens it, where torchvision is.

    That asks for a video processor, too: it gets the usual one of the family.
    """
    processor.save_pretrained(folder)
    name = FAMILIES[model_type].video_processor
    if name is not None and not (folder / VIDEO_FILE).is_file():
        about = {"processor_class": type(processor).__name__, "video_processor_type": name}
        (folder / VIDEO_FILE).write_text(json.dumps(about, indent=2) + "\n")
