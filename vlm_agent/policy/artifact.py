"""One folder holds a policy: how it is written and read, here and on the hub."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import peft
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from vlm_agent.common.errors import UserError
from vlm_agent.policy.backbone.families import FAMILIES
from vlm_agent.policy.backbone.loading import (
    Backbone,
    hub_is_reachable,
    load_adapter,
    load_base_model,
    load_whole_model,
)
from vlm_agent.policy.backbone.processor import picture_processor_class
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs.encoder import ObservationEncoder
from vlm_agent.policy.inputs.prompts import PromptTemplate

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


class SavedPolicy(
    ModelHubMixin,
    library_name="vlm-agent",
    pipeline_tag="robotics",
    tags=["vision-language-action", "ppo"],
    model_card_template=_MODEL_CARD,
):
    """What makes a policy an artefact: ``save_pretrained``, ``from_pretrained``, ``push_to_hub``.

    Everything is safetensors, JSON and text. Reading it never unpickles and runs no code from it.
    """

    if TYPE_CHECKING:
        backbone: Backbone
        encoder: ObservationEncoder
        config: ModelConfig
        seed: int
        recipe: dict[str, Any]

        @property
        def inner_model(self) -> PreTrainedModel: ...

        def heads(self) -> dict[str, nn.Module]: ...

        def __init__(self, *arguments: Any) -> None: ...

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
        for name, head in self.heads().items():
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
        template: PromptTemplate | None = None,
    ) -> Self:
        """Read what ``save_pretrained`` or ``push_to_hub`` wrote; the scores are the same.

        Args:
            pretrained_model_name_or_path: A folder, or a name on the hub.
            revision: Branch, tag or commit on the hub.
            force_download: Download again what is in the cache.
            token: For private repositories.
            cache_dir: Where downloads are kept.
            local_files_only: Do not ask the hub.
            template: A prompt in place of the policy's own, to train it further with.

        Raises:
            UserError: There is no such policy, or a broken one.
        """
        folder = policy_folder(
            pretrained_model_name_or_path,
            revision=revision,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        try:
            return cls._read(folder, template)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"cannot load the policy in {str(folder)!r}: {error}") from error

    @classmethod
    def _read(cls, folder: Path, template: PromptTemplate | None) -> Self:
        about = json.loads((folder / POLICY_FILE).read_text())
        config, model_type = ModelConfig(**about["model"]), about["model_type"]
        template = template or PromptTemplate(
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
            backbone = load_whole_model(
                str(folder), dtype=getattr(torch, config.dtype), trust_remote_code=False
            )
        recipe = dict(json.loads((folder / RECIPE_FILE).read_text()))
        policy = cls(backbone, encoder, config, about["seed"], recipe)
        policy.read_heads(folder)
        return policy

    def read_heads(self, folder: Path) -> None:
        """Take the heads of a saved policy."""
        for name, head in self.heads().items():
            head.load_state_dict(load_file(folder / name))


STARTER = Path(__file__).with_name("starter")
"""The policy that comes with the package."""


def named_policy(name: str | Path) -> str | Path:
    """The folder of the policy ``starter``; any other name as it is."""
    return STARTER if name == STARTER.name else name


def policy_folder(name: str | Path, **options: Any) -> Path:
    """The folder of a policy, downloaded if the name is one of the hub's.

    Args:
        name: A folder, or a name on the hub.
        options: Of the download.

    Raises:
        UserError: There is no policy.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and _may_be_on_the_hub(str(name)):
        folder = _download(str(name), **options)
    if not (folder / POLICY_FILE).is_file():
        raise UserError(f"no policy in the folder {str(folder)!r} (no {POLICY_FILE})")
    return folder


def _may_be_on_the_hub(name: str) -> bool:
    """Whether a name is like ``user/policy``, and no path."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def _download(name: str, **options: Any) -> Path:
    try:
        offline = options.pop("local_files_only", False) or not hub_is_reachable()
        return Path(snapshot_download(name, local_files_only=offline, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"no policy {name!r}: it is no folder here, and not to be had from the Hugging Face "
            f"hub ({type(error).__name__})"
        ) from error
