"""LoRA on 4-bit and 8-bit backbones, on the CPU, through bitsandbytes itself."""

import logging
import sys
from unittest.mock import patch

import bitsandbytes
import pytest
import torch
from torch import nn

from tests.policy.training import train_a_little
from vlm_agent.common.errors import UserError
from vlm_agent.policy.decisions import act

BITS = {
    "4-bit": ({"load_in_4bit": True}, bitsandbytes.nn.Linear4bit),
    "4-bit bfloat16": ({"load_in_4bit": True, "dtype": "bfloat16"}, bitsandbytes.nn.Linear4bit),
    "8-bit": ({"load_in_8bit": True}, bitsandbytes.nn.Linear8bitLt),
}


@pytest.fixture(params=BITS)
def form(request):
    return BITS[request.param]


@pytest.fixture
def quantized(make_policy, form):
    return make_policy(seed=1, use_peft=True, **form[0])


def test_the_language_model_is_quantized_and_nothing_else(quantized, form):
    inner = quantized.inner_model
    kinds = {
        path: type(getattr(module, "base_layer", module))
        for path, module in inner.named_modules()
        if isinstance(getattr(module, "base_layer", module), nn.Linear)
    }
    for path, kind in kinds.items():
        if "lora_" in path or path.endswith("base_layer"):
            continue
        assert (kind is form[1]) == (".language_model." in path), path
    assert inner.get_output_embeddings().weight.is_floating_point()


def test_a_quantized_policy_trains_and_its_base_stays_as_it_is(quantized, make_observations):
    before = {n: p.clone() for n, p in quantized.named_parameters()}
    losses = train_a_little(quantized, make_observations(8), steps=20)
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in quantized.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == parameter.requires_grad, name


def test_acting_and_training_can_alternate(quantized, make_observations):
    """Bitsandbytes would repack 4-bit weights on a CPU at the first call without gradients."""
    observations = make_observations(4)
    first = act(quantized.eval(), observations).log_probs
    losses = train_a_little(quantized.train(), observations, steps=2)
    again = act(quantized.eval(), observations).log_probs
    assert losses[1] < losses[0]
    assert abs(first - again).max() > 1e-3


def test_quantization_changes_the_scores_a_little(make_policy, make_observations, form):
    settings = {k: v for k, v in form[0].items() if k == "dtype"}
    observations = make_observations(4)
    whole = act(make_policy(seed=1, use_peft=True, **settings), observations).probs
    rounded = act(make_policy(seed=1, use_peft=True, **form[0]), observations).probs
    assert 1e-6 < abs(whole - rounded).max() < 0.05


def test_without_bitsandbytes_the_message_names_the_package(make_policy):
    missing = {"bitsandbytes": None}  # as far as Python's import system knows
    with (
        patch.dict(sys.modules, missing),
        pytest.raises(UserError, match=r"load_in_4bit: needs bitsandbytes: pip install"),
    ):
        make_policy(use_peft=True, load_in_4bit=True)


def test_bitsandbytes_does_not_talk(make_policy, make_observations, caplog):
    with caplog.at_level(logging.WARNING):
        act(make_policy(use_peft=True, load_in_8bit=True), make_observations(1))
    assert caplog.text == ""


def test_the_kind_of_4_bit_numbers_is_as_the_recipe_says(make_policy, make_observations):
    observations = make_observations(4)
    nf4, fp4 = (
        act(make_policy(use_peft=True, load_in_4bit=True, bnb_4bit_quant_type=kind), observations)
        for kind in ("nf4", "fp4")
    )
    assert abs(nf4.probs - fp4.probs).max() > 1e-6
