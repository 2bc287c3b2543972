"""One folder holds a policy: how it is written and read, here and from the hub."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import known_settings
from vlm_agent.common.versions import KEY, VERSION, version_of
from vlm_agent.common.whole import check_whole, write_manifest
from vlm_agent.policy.backbone.families import FAMILIES
from vlm_agent.policy.backbone.loading import (
    Backbone,
    load_adapter,
    load_base_model,
    load_whole_model,
)
from vlm_agent.policy.backbone.processor import picture_processor_class, save_processor
from vlm_agent.policy.config import ModelConfig, Scoring
from vlm_agent.policy.inputs.encoder import ObservationEncoder
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.places import POLICY_FILE, policy_folder
from vlm_agent.world.actions import ActionVocabulary
from vlm_agent.world.facts import Fact, episode_facts

if TYPE_CHECKING:
    from vlm_agent.policy.policy import VLMPolicy

logger = logging.getLogger(__name__)

Policy = TypeVar("Policy", bound="VLMPolicy")

PROMPT_FILE = "prompt.jinja"
RECIPE_FILE = "recipe.json"
VALUE_HEAD_FILE = "value_head.safetensors"
ACTION_HEAD_FILE = "action_head.safetensors"

VOCABULARY_FILES = ("tokenizer.json", "vocab.json")
"""JSON files that hold pieces of text, some of which look like paths, and no places."""

MODEL_CARD = """---
{{ card_data }}
---

A vision-language model that moves a robot arm with words, trained with vlm-agent.

```python
from vlm_agent import VLMPolicy

policy = VLMPolicy.from_pretrained("path/or/name").eval()
print(policy.words)
```
"""


def write_policy(policy: VLMPolicy, folder: Path, is_public: bool = False) -> None:
    """Write all that :func:`read_policy` needs, in safetensors, JSON and text.

    That is adapter or weights, heads, processor, prompt, words, facts, scoring and recipe.

    Args:
        policy: The policy.
        folder: Where to.
        is_public: Leave out where things lie on this machine.
    """
    if isinstance(policy.backbone, peft.PeftModel):
        policy.backbone.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink()  # PEFT's card; the policy has its own
    else:
        policy.backbone.save_pretrained(folder)
    model_type = policy.inner_model.config.model_type
    save_processor(policy.encoder.processor, model_type, folder)
    for name, head in policy.heads().items():
        write_module(head, folder / name)
    template = policy.encoder.template
    (folder / PROMPT_FILE).write_text(template.source)
    about = {
        KEY: VERSION,
        "model_type": model_type,
        "model": asdict(policy.config),
        "seed": policy.seed,
        "task": template.task,
        "robot": template.robot,
        "words": list(template.words),
        "facts": [_fact_as_json(fact) for fact in template.facts],
        "senseless": [list(when) for when in template.senseless],
    }
    (folder / POLICY_FILE).write_text(json.dumps(about, indent=2) + "\n")
    (folder / RECIPE_FILE).write_text(json.dumps(policy.recipe, indent=2) + "\n")
    if is_public:
        if policy.config.use_peft and is_local(policy.config.model_name_or_path):
            logger.warning(
                "the adapter's base model is the folder %s, whose place is not published: whoever "
                "loads the policy needs a model of that name",
                policy.config.model_name_or_path,
            )
        for path in folder.glob("*.json"):
            if path.name not in VOCABULARY_FILES:
                path.write_text(json.dumps(_without_places(json.loads(path.read_text())), indent=2))
    write_manifest(folder)


def read_policy(cls: type[Policy], folder: Path, template: PromptTemplate | None = None) -> Policy:
    """The policy of a folder; the scores are those of the one that was written.

    Args:
        cls: ``VLMPolicy``, or a class like it.
        folder: The folder.
        template: A prompt in place of the policy's own.

    Raises:
        UserError: The policy is broken, or was written by a later version.
    """
    check_saved(folder)
    try:
        return _read(cls, folder, template)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the policy in {str(folder)!r}: {error}") from error


def check_saved(folder: Path) -> None:
    """Refuse a policy of which not every file is what was written.

    Before format 3 nothing said what that was.

    Raises:
        UserError: A file is missing, damaged or another one; or a later version wrote it.
    """
    try:
        about = json.loads((folder / POLICY_FILE).read_text())
        version = version_of(about, f"the policy in {str(folder)!r}")
    except (FileNotFoundError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{str(folder)!r} is not whole: {POLICY_FILE}: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {str(folder)!r}: {error}") from None
    if version >= 3:
        check_whole(folder)


def _read(cls: type[Policy], folder: Path, template: PromptTemplate | None) -> Policy:
    about = json.loads((folder / POLICY_FILE).read_text())
    config = ModelConfig(**known_settings(ModelConfig, about["model"]))
    model_type = about["model_type"]
    template = template or _saved_template(folder, about)
    processor: Any = picture_processor_class(model_type)
    encoder = ObservationEncoder(processor.from_pretrained(folder), template, FAMILIES[model_type])
    config = replace(config, scoring=_scoring(encoder, config.scoring))
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
    read_heads(policy, folder)
    return policy


def _scoring(encoder: ObservationEncoder, scoring: Scoring) -> Scoring:
    """How words are scored: as they were, unless the words are others and cannot be."""
    try:
        return encoder.words.choose_scoring(scoring)[0]
    except UserError:
        chosen, reason = encoder.words.choose_scoring("auto")
        logger.warning(reason)
        return chosen


def _saved_template(folder: Path, about: dict[str, Any]) -> PromptTemplate:
    words = tuple(about["words"])
    # Policies that do not say more are of the eight words and the facts of a robot's arm.
    facts = tuple(_fact_from_json(values, words) for values in about.get("facts", ()))
    senseless = about.get("senseless", ActionVocabulary().senseless)
    return PromptTemplate(
        (folder / PROMPT_FILE).read_text(),
        about["task"],
        about["robot"],
        words,
        facts,
        tuple((int(word), str(fact), int(value)) for word, fact, value in senseless),
    )


def saved_recipe(name: str | Path) -> dict[str, Any]:
    """The settings of the run that made a policy.

    Raises:
        UserError: There is no policy.
    """
    folder = policy_folder(name)
    try:
        return dict(json.loads((folder / RECIPE_FILE).read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the policy in {str(folder)!r}: {error}") from error


def saved_template(name: str | Path) -> PromptTemplate:
    """The prompt of a policy, without its weights.

    Raises:
        UserError: There is no policy, or it is broken.
    """
    folder = policy_folder(name)
    check_saved(folder)
    try:
        return _saved_template(folder, json.loads((folder / POLICY_FILE).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot load the policy in {str(folder)!r}: {error}") from error


def read_heads(policy: VLMPolicy, folder: Path) -> None:
    """Give a policy the heads of a saved one."""
    for name, head in policy.heads().items():
        if name != VALUE_HEAD_FILE or not holds_state_critic(folder):
            head.load_state_dict(load_file(folder / name))


def holds_state_critic(folder: Path) -> bool:
    """Whether a folder of format 1 has the state's critic where the value head belongs."""
    about = json.loads((folder / POLICY_FILE).read_text())
    return about["model"].get("value_input") == "state"


def write_module(module: nn.Module, path: Path) -> None:
    """Write a module's weights as safetensors."""
    state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    save_file(state, path)


def _fact_as_json(fact: Fact) -> dict[str, Any]:
    return {key: value for key, value in asdict(fact).items() if key != "read"}


def _fact_from_json(values: dict[str, Any], words: tuple[str, ...]) -> Fact:
    """A saved fact; how environments read it is for them to know."""
    fact = Fact(**{**values, "values": tuple(values["values"])})
    said = episode_facts(words)[0]
    # In 0.2 the last word's values had no names of their own.
    return said if fact.name == said.name and not fact.values else fact


def _without_places(value: Any) -> Any:
    """JSON values in which a path is its last part alone."""
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and is_local(value) else value


def is_local(name: str) -> bool:
    """Whether a text is the path of something on this machine."""
    is_path = len(name) < 1000 and "\n" not in name and len(name) > 1
    # Not Path.is_dir, which fails with names that are too long for one.
    return is_path and (name.startswith(("/", "~/", "./", "../")) or os.path.isdir(name))  # noqa: PTH112
