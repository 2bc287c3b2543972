"""Patch embeddings as matrix products are the convolutions that they stand for."""

import copy

import pytest
import torch
from torch import nn

from vlm_agent.policy.backbone.patches import PatchProjection, project_patches
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig


def two_of_them(dtype: torch.dtype, **options) -> tuple[nn.Conv3d, nn.Conv3d]:
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4), **options).to(dtype)
    projection = copy.deepcopy(convolution)
    project_patches([nn.Sequential(projection)])
    assert type(convolution) is nn.Conv3d
    assert type(projection) is PatchProjection
    return convolution, projection


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_outputs_and_gradients_are_those_of_the_convolution(dtype, close, bias):
    layers = two_of_them(dtype, bias=bias)
    patches = torch.randn(5, 3, 2, 4, 4, dtype=dtype)
    outputs = [layer(patches) for layer in layers]
    assert outputs[0].shape == outputs[1].shape == (5, 8, 1, 1, 1)
    torch.testing.assert_close(*outputs, rtol=close, atol=close)
    for output in outputs:
        (output * torch.arange(8).reshape(8, 1, 1, 1)).sum().backward()
    for one, other in zip(*(layer.parameters() for layer in layers), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=close, atol=10 * close)


@pytest.mark.parametrize("options", [{}, {"padding": (0, 2, 2)}])
def test_a_larger_input_is_convolved(options):
    layers = two_of_them(torch.float32, **options)
    volume = torch.randn(2, 3, 4, 8, 8)
    torch.testing.assert_close(*(layer(volume) for layer in layers))
    patch = torch.randn(2, 3, 2, 4, 4)
    torch.testing.assert_close(*(layer(patch) for layer in layers))


def test_the_policy_embeds_its_patches_so_and_names_no_weight_otherwise(template):
    policy = build_policy(ModelConfig(), template, seed=0)
    projections = [n for n, m in policy.named_modules() if isinstance(m, PatchProjection)]
    assert [name.split(".")[-2:] for name in projections] == [["patch_embed", "proj"]]
    assert any(name.endswith("patch_embed.proj.weight") for name, _ in policy.named_parameters())
