"""One folder holds a policy: saved, loaded in a new process, merged, refused when broken."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.utils import is_torchvision_available

from tests.policy.test_scoring import PHRASES
from tests.policy.training import train_a_little
from vlm_agent.common.errors import UserError
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.common.whole import write_manifest
from vlm_agent.policy.building import build_policy, merge_adapter
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.decisions import act
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.policy import VLMPolicy

FORMS = {
    "full": {},
    "full in phrases": {"scoring": "phrase_mean", "temperature": 0.5},
    "deep value head": {"value_head_depth": 3, "value_head_width": 16},
    "linear value head": {"value_head_depth": 0},
    "action head": {"scoring": "action_head", "use_peft": True},
    "masked": {"mask_senseless_words": True},
    "lora": {"use_peft": True},
    "lora on vision": {"use_peft": True, "lora_vision_modules": ["qkv"]},
    "bfloat16 lora": {"use_peft": True, "dtype": "bfloat16"},
    "4-bit": {"use_peft": True, "load_in_4bit": True},
    "8-bit": {"use_peft": True, "load_in_8bit": True},
}

LOAD_AND_ACT = """
import sys
from pathlib import Path
import numpy as np
import torch
from vlm_agent.world.observations import Observations
from vlm_agent.policy.decisions import act
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.policy.inputs.prompts import PromptTemplate

torch.manual_seed(12345)
observations = Observations(**np.load(sys.argv[1] + "/observations.npz"))
for folder in sorted(Path(sys.argv[1]).glob("policy *")):
    policy = VLMPolicy.from_pretrained(folder).eval()
    said = act(policy, observations)
    np.savez(folder / "out.npz", probs=said.probs, values=said.values, words=policy.words)
"""


def test_saved_policies_load_in_a_new_process_with_the_same_scores(
    template, make_observations, tmp_path
):
    """All forms in one process: starting it takes most of the time."""
    observations = make_observations(4)
    np.savez(tmp_path / "observations.npz", frames=observations.frames, facts=observations.facts)
    expected = {}
    for name, settings in FORMS.items():
        words = PHRASES if settings.get("scoring", "").startswith("phrase") else template.words
        own = dataclasses.replace(template, task=f"Task of {name}.", words=words)
        policy = build_policy(ModelConfig(**settings), own, 5, {"gamma": 0.5})
        train_a_little(policy, observations)
        policy.eval().save_pretrained(tmp_path / f"policy {name}")
        expected[name] = policy, act(policy, observations)
    subprocess.run([sys.executable, "-c", LOAD_AND_ACT, str(tmp_path)], check=True)
    for name, (policy, said) in expected.items():
        loaded = np.load(tmp_path / f"policy {name}" / "out.npz")
        if "bit" in name and "bfloat16" not in name:
            assert np.allclose(loaded["probs"], said.probs, atol=1e-3), name
            assert np.allclose(loaded["values"], said.values, atol=1e-3), name
        else:
            assert np.array_equal(loaded["probs"], said.probs), name
            assert np.array_equal(loaded["values"], said.values), name
        assert np.abs(said.values).min() > 0.01  # the head was trained and came back
        assert said.probs.std() > 0.01
        assert tuple(loaded["words"]) == policy.words


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_the_folder_holds_all_of_the_policy_in_safetensors_and_json(template, tmp_path, use_peft):
    config = ModelConfig(use_peft=use_peft, scoring="action_head")
    policy = build_policy(config, template, 0, {"task": "Lift", "gamma": 0.9})
    policy.save_pretrained(tmp_path)
    weights = "adapter_model.safetensors" if use_peft else "model.safetensors"
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        weights,
        "value_head.safetensors",
        "action_head.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "prompt.jinja",
        "policy.json",
        "recipe.json",
        "README.md",
    }
    endings = {Path(name).suffix for name in names}
    assert endings == {".safetensors", ".json", ".jinja", ".md"}
    assert ("model.safetensors" in names) != use_peft  # the adapter alone, without its base
    loaded = VLMPolicy.from_pretrained(tmp_path)
    assert loaded.recipe == {"task": "Lift", "gamma": 0.9}
    assert loaded.config == config
    assert loaded.encoder.template == template
    assert "library_name: vlm-agent" in (tmp_path / "README.md").read_text()


def test_transformers_own_classes_open_it(policy, tmp_path):
    """Its AutoProcessor, too, where torchvision is: it asks for a video processor, by this file."""
    policy.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(model) is type(policy.inner_model)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("up").input_ids == policy.encoder.processor.tokenizer("up").input_ids
    pictures = AutoImageProcessor.from_pretrained(tmp_path)
    assert pictures.patch_size == policy.encoder.processor.image_processor.patch_size
    for folder in (tmp_path, *(SHIPPED / "policies").iterdir()):
        about = json.loads((folder / "video_preprocessor_config.json").read_text())
        assert about["video_processor_type"] == "Qwen2VLVideoProcessor"
    if is_torchvision_available():
        processor = AutoProcessor.from_pretrained(tmp_path)
        assert type(processor).__name__ == "Qwen2VLProcessor"


def test_automatic_scoring_is_saved_as_what_was_chosen(template, tmp_path):
    policy = build_policy(ModelConfig(), dataclasses.replace(template, words=PHRASES), 0)
    policy.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "policy.json").read_text())
    assert saved["model"]["scoring"] == "phrase_word"
    assert VLMPolicy.from_pretrained(tmp_path).config.scoring == "phrase_word"


def test_value_head_file_holds_the_head_and_nothing_else(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "value_head.safetensors")
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        "hidden.0.weight": (256, 128),
        "hidden.0.bias": (256,),
        "output.weight": (1, 256),
        "output.bias": (1,),
    }


@pytest.mark.parametrize("form", ["lora", "lora on vision", "bfloat16 lora", "action head"])
def test_a_merged_policy_scores_as_the_adapter_did(template, make_observations, tmp_path, form):
    observations = make_observations(4)
    policy = build_policy(ModelConfig(**FORMS[form]), template, 3, {"gamma": 0.5})
    start = act(policy, observations)
    train_a_little(policy, observations)
    said = act(policy.eval(), observations)
    policy.save_pretrained(tmp_path / "lora")
    merge_adapter(tmp_path / "lora").save_pretrained(tmp_path / "merged")
    merged = VLMPolicy.from_pretrained(tmp_path / "merged").eval()
    again = act(merged, observations)
    # Adding the adapter to bfloat16 weights rounds them.
    tolerance = 0.02 if "bfloat16" in form else 1e-5
    assert np.allclose(again.probs, said.probs, atol=tolerance)
    assert np.allclose(again.values, said.values, atol=10 * tolerance)
    assert np.abs(said.probs - start.probs).max() > 5 * tolerance
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert merged.recipe == {"gamma": 0.5}


def test_a_quantized_policy_is_merged_into_the_whole_backbone(
    template, make_observations, tmp_path
):
    observations = make_observations(4)
    policy = build_policy(ModelConfig(use_peft=True, load_in_4bit=True), template, 3)
    train_a_little(policy, observations)
    said = act(policy.eval(), observations)
    policy.save_pretrained(tmp_path)
    merged = merge_adapter(tmp_path).eval()
    assert not merged.config.is_quantized
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert 1e-6 < np.abs(act(merged, observations).probs - said.probs).max() < 0.05


def test_a_policy_without_an_adapter_cannot_be_merged(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no adapter to merge"):
        merge_adapter(tmp_path)
    with pytest.raises(UserError, match="no policy in the folder"):
        merge_adapter(tmp_path / "nowhere")


def test_a_name_that_is_nowhere_gets_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no policy 'someone/robot': .*the hub was not asked"):
        VLMPolicy.from_pretrained("someone/robot", cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"no policy in the folder"):
        VLMPolicy.from_pretrained(tmp_path)


def drop_one(weights: Path) -> str:
    """Leave one tensor out of a file; its name."""
    tensors = load_file(weights)
    name = sorted(tensors)[3]
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    return name


def test_an_adapter_or_model_without_one_of_its_weights_is_refused(make_policy, policy, tmp_path):
    make_policy(use_peft=True).save_pretrained(tmp_path / "lora")
    name = drop_one(tmp_path / "lora" / "adapter_model.safetensors")
    write_manifest(tmp_path / "lora")  # as a stranger's would be
    with pytest.raises(UserError, match=f"cannot load the policy in .* lacks {name}"):
        VLMPolicy.from_pretrained(tmp_path / "lora")
    policy.save_pretrained(tmp_path / "full")
    config = ModelConfig(model_name_or_path=str(tmp_path / "full"))
    name = drop_one(tmp_path / "full" / "model.safetensors")
    with pytest.raises(
        UserError, match=f"cannot load .* its weights lack .*{name.rpartition(chr(46))[0][-20:]}"
    ):
        build_policy(config, PromptTemplate("{{ image }}", "task"), 0)
    (tmp_path / "full" / "model.safetensors").write_bytes(b"half a download")
    with pytest.raises(UserError, match="model_name_or_path: cannot load"):
        build_policy(config, PromptTemplate("{{ image }}", "task"), 0)


@pytest.mark.parametrize(
    "damage",
    ["missing weights", "cut weights", "one weight less", "broken json", "no words", "other head"],
)
def test_a_broken_folder_gets_a_sentence(policy, tmp_path, damage: str):
    policy.save_pretrained(tmp_path)
    weights, about = tmp_path / "model.safetensors", tmp_path / "policy.json"
    if damage == "missing weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "one weight less":
        drop_one(weights)
    elif damage == "broken json":
        about.write_text("{")
    elif damage == "no words":
        about.write_text("{}")
    else:
        about.write_text(
            about.read_text().replace('"value_head_width": 256', '"value_head_width": 8')
        )
    with pytest.raises(UserError, match="is not whole|is no JSON|cannot load the policy in"):
        VLMPolicy.from_pretrained(tmp_path)
    write_manifest(tmp_path)  # a stranger's folder is in order, and broken all the same
    with pytest.raises(UserError, match="cannot load the policy in|is no JSON"):
        VLMPolicy.from_pretrained(tmp_path)


class Evil:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_nothing_is_unpickled(make_policy, tmp_path, use_peft):
    """Weights as a pickle, beside the safetensors or in their place, are never opened."""
    folder, trace = tmp_path / "policy", tmp_path / "trace"
    make_policy(use_peft=use_peft).save_pretrained(folder)
    stem = "adapter_model" if use_peft else "model"
    pickled = "adapter_model.bin" if use_peft else "pytorch_model.bin"
    (folder / pickled).write_bytes(pickle.dumps(Evil(trace)))
    VLMPolicy.from_pretrained(folder)
    (folder / f"{stem}.safetensors").unlink()
    write_manifest(folder)
    with pytest.raises(UserError, match="cannot load the policy in .*safetensors"):
        VLMPolicy.from_pretrained(folder)
    config = ModelConfig(model_name_or_path=str(folder))
    with pytest.raises(UserError, match="vlm-agent merge" if use_peft else "safetensors"):
        build_policy(config, PromptTemplate("{{ image }}", "task"), 0)
    assert not trace.exists()
    pickle.loads((folder / pickled).read_bytes())
    assert trace.exists()  # it would have shown
