"""The model of a pretrained language model and an untrained vision tower, and the roads it goes."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.policy.tokenizers_of_three_kinds import byte_level_bpe
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.studies import smolvlm
from vlm_agent.studies.pretrained import FORMS, Pretrained, write_pretrained
from vlm_agent.studies.smolvlm import KINDS, make_model, make_processor
from vlm_agent.world.observations import Observations


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Both folders, of a language model of a few thousand weights; and that model."""
    monkeypatch.setattr(smolvlm, "VOCABULARY", 600)
    tokenizer = byte_level_bpe(
        "forward backward left right up down", ("<|im_start|>", "<|im_end|>")
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    language = LlamaForCausalLM(config).eval()
    processor = make_processor(tokenizer)
    for kind in KINDS:
        model = make_model(language if kind == "pretrained" else None, config, processor)
        model.save_pretrained(tmp_path / "models" / kind)
        processor.save_pretrained(tmp_path / "models" / kind)
    return tmp_path / "models", language


@torch.no_grad()
def test_it_reads_as_its_language_model_does_and_is_a_policy(models, template):
    folder, language = models
    observations = Observations(
        np.zeros((2, 112, 112, 3), np.uint8), np.array([[0, 8, 0, 5], [1, 2, 3, 2]], np.int32)
    )
    policies = [
        build_policy(ModelConfig(model_name_or_path=str(folder / kind)), template, 0).eval()
        for kind in KINDS
    ]
    ids = torch.arange(5, 15)[None]
    mine, other = (policy.inner_model(input_ids=ids).logits for policy in policies)
    theirs = language(ids).logits
    assert (mine[..., : theirs.shape[-1]] - theirs).abs().max() < 1e-5
    assert (other[..., : theirs.shape[-1]] - theirs).abs().max() > 1e-2
    towers = [policy.inner_model.model.vision_model.state_dict() for policy in policies]
    assert all(torch.equal(towers[0][name], towers[1][name]) for name in towers[0])
    inputs = policies[0].encode(observations)
    image = policies[0].encoder.processor.image_token_id
    assert (inputs["input_ids"] == image).sum(1).tolist() == [16, 16]
    assert policies[0](**inputs).logits.shape == (2, 8)


@pytest.fixture
def study(tmp_path):
    for kind in KINDS:
        (tmp_path / "models" / kind).mkdir(parents=True)
    return Pretrained(tmp_path)


def test_both_go_the_same_road(study, tmp_path):
    names = {form: [stage.name for stage in study.stages(form)] for form in FORMS}
    assert set(map(tuple, names.values())) == {
        (
            "demonstrations: pretrained_start",
            "warm start: pretrained_start",
            "PPO: pretrained",
            "evaluation: pretrained",
            "evaluation: pretrained_start",
        )
    }
    commands = [" ".join(study.stages(form)[1].command) for form in FORMS]
    assert [str(tmp_path / "models" / "random") in command for command in commands] == [0, 1, 0]
    assert ["load_in_4bit" in command for command in commands] == [0, 0, 1]
    learning = study.stages("random")[2].command
    begins = learning[learning.index("--init_from") + 1]
    assert begins == str(tmp_path / "random" / "checkpoints" / "pretrained_start_final")


def test_what_is_measured_is_written_form_by_form(study, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_agent.studies.pretrained.vocabulary_share", lambda road: 0.25)
    result = {"policy": "x", "task": "Lift", "split": "test", "ablate": "none", "greedy": True}
    result |= {"num_eval_episodes": 4, "success_rate": 0.5, "ci95_low": 0.2, "ci95_high": 0.8}
    result |= {"mean_length": 9.0, "episodes": []}
    for stage in study.stages("random")[3:]:
        stage.makes.parent.mkdir(parents=True, exist_ok=True)
        stage.makes.write_text(json.dumps(result))
    output = tmp_path / "pretrained.json"
    kept = {"model": "pretrained", "policy": "warm start", "success_rate": 0.75}
    output.write_text(json.dumps({"rows": [kept]}))
    write_pretrained(study, output)
    rows = json.loads(output.read_text())["rows"]
    assert [(row["model"], row["policy"]) for row in rows] == [
        ("pretrained", "warm start"),
        ("random", "warm start"),
        ("random", "PPO from it"),
    ]
    assert rows[1]["vocabulary_share_untrained"] == 0.25


def test_a_form_that_there_is_not_is_named(tmp_path):
    with pytest.raises(UserError, match="forms: unknown form 'pretraind'; did you mean 'pretra"):
        main(["pretrained", "--json", str(tmp_path / "x.json"), "--forms", "pretraind"])
