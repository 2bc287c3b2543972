"""Batched frames are the library's, bit by bit, and prompts are the processor's."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.conftest import ROOT
from tests.policy.families import BUILDERS
from tests.policy.slow import processed
from vlm_agent.policy.backbone.families import FAMILIES
from vlm_agent.policy.backbone.tiny import build_tiny_model, build_tiny_processor
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs.encoder import ObservationEncoder
from vlm_agent.policy.inputs.frames import FrameProcessor
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.world.observations import Observations

CPU = torch.device("cpu")
MINIMAL = (ROOT / "prompts" / "minimal.jinja").read_text()


def random_frames(count: int, height: int, width: int) -> np.ndarray:
    shape = (count, height, width, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


class CountedImageProcessor(Qwen2VLImageProcessorPil):
    """Counts how often it is asked."""

    calls = 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        return super().__call__(*arguments, **options)


class LevellingImageProcessor(CountedImageProcessor):
    """What becomes of a byte depends on the others of its picture."""

    def rescale(self, image, scale, **options):
        return super().rescale(image - image.mean(), scale, **options)


def processor_for(kind=CountedImageProcessor, **options) -> FrameProcessor:
    return FrameProcessor(kind(**options), FAMILIES["qwen2_vl"])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((56, 56), {}),
        ((112, 112), {}),
        ((224, 224), {}),
        ((56, 84), {}),
        ((64, 96), {"patch_size": 16}),
        ((128, 128), {}),
        ((100, 112), {}),
        ((28, 28), {}),
        ((112, 112), {"size": {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}}),
        ((112, 112), {"resample": 2}),
        ((112, 112), {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}),
    ],
    ids=str,
)
def test_frames_are_processed_as_a_batch_with_the_librarys_bits(size, options):
    process = processor_for(**options)
    frames = random_frames(3, *size)
    process(frames[::-1], CPU)  # finds out that it can be done so
    calls = process.image_processor.calls
    made = process(frames, CPU)
    assert process.image_processor.calls == calls  # without the library
    expected = process.image_processor(images=list(frames), return_tensors="pt")
    assert set(made) == set(expected)
    for name, value in expected.items():
        assert torch.equal(made[name], value), name
        assert made[name].dtype == value.dtype


def test_a_processor_that_does_something_else_is_left_alone():
    process = processor_for(LevellingImageProcessor)
    frames = random_frames(2, 112, 112)
    process(frames[::-1], CPU)
    calls = process.image_processor.calls
    made = process(frames, CPU)
    assert process.image_processor.calls == calls + 1
    expected = process.image_processor(images=list(frames), return_tensors="pt")
    assert torch.equal(made["pixel_values"], expected["pixel_values"])
    usual = processor_for()(frames, CPU)
    assert not torch.equal(made["pixel_values"], usual["pixel_values"])


@pytest.mark.parametrize("model_type", BUILDERS)
def test_image_inputs_are_those_of_the_processor(model_type, make_observations):
    processor, _ = BUILDERS[model_type]()
    family = FAMILIES[model_type]
    frames = make_observations(3).frames
    made = FrameProcessor(processor.image_processor, family)(frames, CPU)
    assert set(made) <= set(family.image_inputs)
    assert "pixel_values" in made
    for i in range(3):
        alone = FrameProcessor(processor.image_processor, family)(frames[i : i + 1], CPU)
        size = len(made["pixel_values"]) // 3
        part = made["pixel_values"][i * size : (i + 1) * size]
        assert torch.equal(part, alone["pixel_values"])


def test_prompts_are_padded_on_the_left(policy, make_observations):
    observations = make_observations(9)
    inputs = policy.encode(observations)
    lengths = inputs["attention_mask"].sum(1)
    assert lengths.max() == inputs["input_ids"].shape[1]  # not longer than the longest
    assert len(lengths.unique()) > 1
    for i in range(9):
        alone = processed(policy, observations[i : i + 1])
        length = int(lengths[i])
        assert torch.equal(inputs["input_ids"][i, -length:], alone["input_ids"][0])
        assert inputs["attention_mask"][i, :-length].sum() == 0
        positions, _ = policy.inner_model.model.get_rope_index(
            alone["input_ids"],
            mm_token_type_ids=alone["mm_token_type_ids"],
            image_grid_thw=alone["image_grid_thw"],
        )
        assert torch.equal(inputs["position_ids"][:, i, -length:], positions[:, 0])


class CountedProcessor:
    """A model's processor that counts how often it is asked."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return self.processor(*arguments, **options)


def counted_policy(source: str) -> VLMPolicy:
    processor: Any = CountedProcessor(build_tiny_processor())
    encoder = ObservationEncoder(processor, PromptTemplate(source, "Lift."), FAMILIES["qwen2_vl"])
    model = build_tiny_model(processor.tokenizer, seed=0)
    return VLMPolicy(model, encoder, ModelConfig(scoring="first_token"), seed=0)


@pytest.mark.parametrize(("source", "prompts"), [(MINIMAL, 2), (MINIMAL + "{{ step }}", 6)])
def test_a_prompt_is_made_once_whatever_facts_it_does_not_tell(source, prompts):
    """A curriculum's time limits differ from episode to episode."""
    policy = counted_policy(source)
    names = policy.facts
    facts = np.tile(np.array(policy.encoder.template.start_facts, np.int32), (12, 1))
    facts[:, names.index("gripper")] = np.arange(12) % 2
    facts[:, names.index("step")] = np.arange(12) % 6
    facts[:, names.index("words_left")] = np.arange(12)
    observations = Observations(random_frames(12, 56, 56), facts)
    inputs = policy.encode(observations)
    assert len(inputs["input_ids"].unique(dim=0)) == prompts
    made = policy.encoder.processor.calls
    again = policy.encode(observations)
    assert policy.encoder.processor.calls == made
    assert all(torch.equal(again[name], inputs[name]) for name in inputs)
    larger = Observations(random_frames(12, 112, 112), facts)
    assert policy.encode(larger)["input_ids"].shape[1] > inputs["input_ids"].shape[1]


def test_prompts_are_put_together_as_the_processor_makes_them():
    """It is asked once for each length before and behind the picture."""
    source = "{{ gripper }} {{ step }}: {{ image }} {{ task }} {{ hand_left }}"
    policy = counted_policy(source)
    rng = np.random.default_rng(0)
    facts = np.tile(np.array(policy.encoder.template.start_facts, np.int32), (60, 1))
    facts[:, policy.facts.index("hand_left")] = rng.integers(-40, 40, 60)
    facts[:, policy.facts.index("step")] = rng.integers(0, 120, 60)
    inputs = policy.encode(Observations(random_frames(60, 56, 56), facts))
    assert policy.encoder.processor.calls < 20
    for n, row in enumerate(facts.tolist()):
        expected = policy.encoder.row(policy.encoder.template.render(row), (56, 56, 3))
        length = expected["input_ids"].shape[1]
        assert torch.equal(inputs["input_ids"][n, -length:], expected["input_ids"][0])
        positions = policy.family.positions(policy.inner_model.model, expected)
        assert torch.equal(inputs["position_ids"][:, n, -length:], positions)
