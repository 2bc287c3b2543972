"""``tiny`` is the same model after it was saved, with every prompt."""

import numpy as np
import pytest

from tests.conftest import ROOT
from vlm_agent.policy.backbone.tiny import build_tiny_processor
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.decisions import act
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.world.observations import Observations

HORIZON = 120


def episode() -> Observations:
    """What is seen and told at each of an episode's words."""
    rng = np.random.default_rng(0)
    step = np.arange(HORIZON + 1)
    facts = [step // 40 % 2, rng.integers(0, 9, HORIZON + 1), step, HORIZON - step]
    frames = rng.integers(0, 256, (HORIZON + 1, 28, 28, 3), dtype=np.uint8)
    return Observations(frames, np.stack(facts, 1).astype(np.int32))


@pytest.mark.parametrize("name", ["minimal", "default", "guided"])
def test_it_reads_and_scores_the_same_after_saving_and_loading(name: str, tmp_path):
    template = PromptTemplate((ROOT / f"prompts/{name}.jinja").read_text(), "Pick up the can.")
    policy = build_policy(ModelConfig(), template, seed=0).eval()
    policy.save_pretrained(tmp_path)
    loaded = VLMPolicy.from_pretrained(tmp_path).eval()
    observations = episode()
    prompts = [one.encode(observations)["input_ids"] for one in (policy, loaded)]
    assert prompts[0].tolist() == prompts[1].tolist()
    assert len(prompts[0].unique(dim=0)) > 10
    said = [act(one, observations[::10]).probs for one in (policy, loaded)]
    assert np.array_equal(*said)


def test_its_saved_processor_cuts_text_as_the_fresh_one(tmp_path):
    processor = build_tiny_processor()
    processor.save_pretrained(tmp_path)
    saved = type(processor).from_pretrained(tmp_path)
    for text in (
        "You have 118 words left.",
        "12345 a1b2",
        "  two  spaces\n\nlines",
        "it's caf\u00e9",
    ):
        ids = [one.tokenizer(text)["input_ids"] for one in (processor, saved)]
        assert ids[0] == ids[1], text
