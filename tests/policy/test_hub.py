"""Policies on the Hugging Face hub, and what they tell of the machine they were made on."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelHubMixin, constants

from tests.policy.families import save_family
from vlm_agent.common.errors import UserError
from vlm_agent.policy.building import build_policy, merge_adapter
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.decisions import act
from vlm_agent.policy.policy import VLMPolicy

NAME = "someone/robot"
COMMIT = 40 * "a"


@pytest.fixture
def hub(tmp_path) -> Iterator[Path]:
    """The folder that a hub's client puts what is published into."""
    kept = tmp_path / "hub"

    def create_repo(self, repo_id, **_):
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, repo_id, folder_path, **_):
        shutil.copytree(folder_path, kept / repo_id)
        return f"https://hub/{repo_id}"

    with patch.multiple(HfApi, create_repo=create_repo, upload_folder=upload_folder):
        yield kept


def put_in_cache(policy: VLMPolicy, cache: Path, branch: str) -> None:
    """As if it had been downloaded."""
    folder = cache / f"models--{NAME.replace('/', '--')}"
    policy.save_pretrained(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(COMMIT)


def strings(value: object) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for part in value:
            yield from strings(part)
    elif isinstance(value, str):
        yield value


def test_a_policy_is_published_by_the_hubs_conventions(policy, hub):
    assert isinstance(policy, ModelHubMixin)
    assert policy.push_to_hub(NAME) == f"https://hub/{NAME}"
    names = {path.name for path in (hub / NAME).iterdir()}
    assert names >= {"policy.json", "model.safetensors", "value_head.safetensors", "README.md"}


def test_a_policy_is_loaded_by_its_name_on_the_hub(policy, make_policy, tmp_path):
    put_in_cache(policy, tmp_path, branch="v1")
    loaded = VLMPolicy.from_pretrained(NAME, revision="v1", cache_dir=tmp_path)
    assert loaded.config == policy.config
    with pytest.raises(UserError, match=f"no policy '{NAME}'"):
        VLMPolicy.from_pretrained(NAME, revision="v2", cache_dir=tmp_path)
    put_in_cache(make_policy(use_peft=True), tmp_path, branch="main")
    with patch.object(constants, "HF_HUB_CACHE", str(tmp_path)):
        assert not merge_adapter(NAME).config.use_peft


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_nothing_of_this_machine_is_published(
    template, make_observations, hub, tmp_path, caplog, use_peft
):
    """Where a policy's parts lay is left out, and it is the same policy."""
    save_family("qwen2_vl", tmp_path / "model")
    local = ModelConfig(model_name_or_path=str(tmp_path / "model"), use_peft=use_peft)
    recipe = {
        "output_dir": str(tmp_path / "runs"),
        "init_from": str(tmp_path / "starts" / "warm"),
        "model_name_or_path": local.model_name_or_path,
        "demonstrations": "~/demonstrations",
        "prompt_template": "prompts/minimal.jinja",
        "report_to": [str(tmp_path / "tracker")],
        "task_description": 300 * "a",
        "gamma": 0.9,
    }
    policy = build_policy(local, template, 0, recipe).eval()
    with caplog.at_level(logging.WARNING):
        policy.push_to_hub(NAME)
    published = sorted((hub / NAME).glob("*.json"))
    assert {"policy.json", "recipe.json"} <= {path.name for path in published}
    for path in published:
        found = [text for text in strings(json.loads(path.read_text())) if str(tmp_path) in text]
        assert not found, path.name
    told = json.loads((hub / NAME / "recipe.json").read_text())
    assert (told["init_from"], told["demonstrations"]) == ("warm", "demonstrations")
    assert (told["prompt_template"], told["gamma"]) == ("prompts/minimal.jinja", 0.9)
    # Who has an adapter needs its base, under the name that was left.
    assert ("whose place is not published" in caplog.text) == use_peft
    with chdir(tmp_path):
        loaded = VLMPolicy.from_pretrained(hub / NAME).eval()
    observations = make_observations(3)
    assert np.array_equal(act(loaded, observations).probs, act(policy, observations).probs)


def test_a_tokenizers_slashes_are_no_places(template, hub, tmp_path):
    save_family("qwen2_vl", tmp_path / "model")
    policy = build_policy(ModelConfig(model_name_or_path=str(tmp_path / "model")), template, 0)
    policy.push_to_hub(NAME)
    policy.save_pretrained(tmp_path / "here")
    published, kept = (
        json.loads((folder / "tokenizer.json").read_text())
        for folder in (hub / NAME, tmp_path / "here")
    )
    assert any(text.startswith("//") for text in strings(kept["model"]["merges"]))
    assert published == kept


def test_what_is_kept_here_says_where_things_lie(template, tmp_path):
    policy = build_policy(ModelConfig(), template, 0, {"output_dir": str(tmp_path / "runs")})
    policy.save_pretrained(tmp_path / "policy")
    loaded = VLMPolicy.from_pretrained(tmp_path / "policy")
    assert loaded.recipe["output_dir"] == str(tmp_path / "runs")
