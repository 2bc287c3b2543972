"""A local folder in the format of the hub's Qwen2-VL loads as the hub name does."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from vlm_agent.common.errors import UserError
from vlm_agent.policy.backbone.loading import can_reach, load_processor
from vlm_agent.policy.backbone.tiny import build_tiny_model, build_tiny_processor
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.decisions import act


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    """The tiny model with the files that Qwen/Qwen2-VL-2B-Instruct has: a flat ``config.json``
    with ``rope_scaling``, ``preprocessor_config.json`` and ``chat_template.json``.
    """
    folder = tmp_path_factory.mktemp("Qwen2-VL-local")
    processor = build_tiny_processor()
    build_tiny_model(processor.tokenizer, seed=11).save_pretrained(folder)
    processor.save_pretrained(folder)

    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for key in ("model_type", "layer_types"):
        text.pop(key)
    vision = config["vision_config"]
    vision.pop("rope_parameters")
    vision.pop("model_type")
    vision["in_chans"] = vision.pop("in_channels")
    vision["spatial_patch_size"] = vision["patch_size"]
    config |= text | {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "torch_dtype": "bfloat16",
    }
    config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))

    saved = json.loads((folder / "processor_config.json").read_text())
    image = saved["image_processor"]
    image["min_pixels"], image["max_pixels"] = 3136, 12845056
    image.pop("size")
    image["processor_class"] = "Qwen2VLProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "processor_config.json").unlink()
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "chat_template.jinja").unlink()
    return folder


def test_folder_gives_the_scores_of_the_model_it_was_made_from(
    hub_folder, template, make_policy, make_observations
):
    policy = build_policy(ModelConfig(model_name_or_path=str(hub_folder)), template, seed=0)
    observations = make_observations(4)
    original = make_policy(seed=11)
    assert np.array_equal(act(policy, observations).probs, act(original, observations).probs)


def test_folder_with_lora_in_bfloat16_saves_and_loads(
    hub_folder, template, make_observations, tmp_path
):
    config = ModelConfig(model_name_or_path=str(hub_folder), use_peft=True, dtype="bfloat16")
    policy = build_policy(config, template, seed=3)
    assert policy.inner_model.get_output_embeddings().weight.dtype == torch.bfloat16
    policy.save_pretrained(tmp_path / "policy")
    assert not (tmp_path / "policy" / "model.safetensors").exists()  # the adapter alone
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    observations = make_observations(3)
    assert np.array_equal(act(policy, observations).probs, act(loaded, observations).probs)


def test_saved_policy_opens_with_transformers_own_classes(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(model, transformers.Qwen2VLForConditionalGeneration)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "Qwen2VLProcessor"
    processor = load_processor(str(tmp_path))
    assert processor.chat_template == policy.encoder.processor.chat_template


def test_hub_out_of_reach_is_one_sentence_with_two_ways_out(template):
    with pytest.raises(UserError) as caught:
        build_policy(ModelConfig(model_name_or_path="Qwen/Qwen2-VL-2B-Instruct"), template, 0)
    message = str(caught.value)
    assert "Qwen/Qwen2-VL-2B-Instruct" in message
    assert "MODEL=tiny" in message
    assert "local folder" in message
    assert "\n" not in message


def test_folder_without_a_model_is_refused(template, tmp_path):
    with pytest.raises(UserError, match=r"no model in the folder .*config.json"):
        build_policy(ModelConfig(model_name_or_path=str(tmp_path)), template, 0)


def test_another_architecture_is_refused(hub_folder, template, tmp_path):
    for name in hub_folder.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    transformers.LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'llama', expected one of: qwen2_vl, .*llava"):
        build_policy(ModelConfig(model_name_or_path=str(tmp_path)), template, 0)


def test_hub_is_asked_with_one_connection():
    def ask(is_offline: bool = False, **proxies: str) -> bool:
        return can_reach(endpoint, is_offline, proxies, timeout=1.0)

    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert ask()
        assert not ask(is_offline=True)
    assert not ask()  # nobody listens any more
    assert ask(https="http://127.0.0.1:9")
