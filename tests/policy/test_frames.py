"""Batched frames are the library's, bit by bit, and prompts are the processor's."""

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.policy.families import BUILDERS
from tests.policy.slow import processed
from vlm_agent.policy.backbone.families import FAMILIES
from vlm_agent.policy.inputs.frames import FramePatches, FrameProcessor

CPU = torch.device("cpu")


def random_frames(count: int, height: int, width: int) -> np.ndarray:
    shape = (count, height, width, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def processor_for(**options) -> FrameProcessor:
    return FrameProcessor(Qwen2VLImageProcessorPil(**options), FAMILIES["qwen2_vl"])


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
    made = process(frames, CPU)
    expected = process.image_processor(images=list(frames), return_tensors="pt")
    assert isinstance(process._batched[(*size, 3)], FramePatches)
    assert set(made) == set(expected)
    for name, value in expected.items():
        assert torch.equal(made[name], value), name
        assert made[name].dtype == value.dtype


def test_a_processor_that_does_something_else_is_left_alone(monkeypatch):
    process = processor_for()
    monkeypatch.setattr(
        process.image_processor, "rescale", lambda image, scale: np.square(image * scale)
    )
    monkeypatch.setattr("vlm_agent.policy.inputs.frames._byte_table", lambda _: np.zeros((3, 256)))
    frames = random_frames(2, 112, 112)
    made = process(frames, CPU)
    assert process._batched[(112, 112, 3)] is None
    expected = process.image_processor(images=list(frames), return_tensors="pt")
    assert torch.equal(made["pixel_values"], expected["pixel_values"])


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


def test_prompts_are_made_once_and_padded_on_the_left(make_policy, make_observations, monkeypatch):
    policy = make_policy()
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

    def render(*_):
        raise AssertionError("rendered again")

    monkeypatch.setattr(policy.encoder, "row", render)
    again = policy.encode(observations)
    assert all(torch.equal(again[name], inputs[name]) for name in inputs)
