"""The benchmarks of the policy, as small as they go: what they compare computes the same."""

import json
import os

import pytest
import torch

from vlm_agent.bench import update
from vlm_agent.bench.iterations import measure_apart
from vlm_agent.bench.loop import against_plain
from vlm_agent.bench.models import (
    benchmark_encoder,
    benchmark_model,
    benchmark_policy,
    random_observations,
)
from vlm_agent.bench.scoring import eight_sequences, library_inputs
from vlm_agent.cli import main as cli
from vlm_agent.common.errors import UserError

SMALL = {"arch": "tiny", "device": "cpu", "vocabulary": 1000, "batch_size": 2, "frame_size": 56}


def test_scoring_writes_its_ratios(tmp_path):
    flags = ["--vocabulary", "1000", "--batch_size", "2", "--frame_size", "56", "--rounds", "1"]
    assert cli.main(["bench", "scoring", *flags, "--json", str(tmp_path / "b.json")]) == 0
    figures = json.loads((tmp_path / "b.json").read_text())
    keys = (
        "overhead_vs_backbone speedup_vs_phrases speedup_vs_generate phrase_overhead "
        "phrase_word_overhead decisions_per_s"
    )
    for key in keys.split():
        assert figures[key] > 0
        assert figures[f"{key}_own_vocabulary"] > 0
    assert figures["vocabulary"] == 1000


@torch.no_grad()
def test_what_scoring_compares_are_the_same_scores():
    encoder = benchmark_encoder()
    model = benchmark_model("tiny", 1000, "cpu", encoder)
    observations = random_observations(3, 56)
    policy = benchmark_policy(model, encoder, scoring="phrase_sum")
    ours = policy(**policy.encode(observations)).logits.log_softmax(-1)
    slow = eight_sequences(model, encoder, library_inputs(encoder, observations, "cpu"))
    assert (ours - slow.log_softmax(-1)).abs().max() < 1e-4
    assert model.get_output_embeddings().weight.shape[0] == 1000


@pytest.mark.parametrize("name", update.CONTENDERS)
def test_what_update_compares_are_the_same_updates(name):
    run = update.run_alone(name, **SMALL, samples=4)
    assert run.ratio_error < 1e-4
    assert run.seconds > 0
    assert run.peak_bytes > 2**20


def test_update_writes_its_ratios():
    runs = {
        "ours": update.Run(1.0, 2**30, 1e-6, {}),
        "without_cache": update.Run(2.0, 2**30, 2e-6, {}),
        "naive": update.Run(8.0, 4 * 2**30, 3e-6, {}),
        "whole_prompts": update.Run(3.0, 2**31, 1e-6, {}),
        "top": update.Run(0.5, 2**30, 1e-6, {}),
        "top_recomputed": update.Run(1.25, 2**30, 1e-6, {}),
    }

    figures = update.measure(**SMALL, rounds=2, samples=4, run=lambda name, *_: runs[name])
    assert figures["speedup_vs_naive"] == 8
    assert figures["speedup_vs_recomputed_vision"] == 2
    assert figures["peak_memory_ratio"] == 0.25
    assert figures["samples_per_s"] == 16
    assert figures["largest_ratio_error"] == 3e-6
    assert (figures["speedup_prefix"], figures["speedup_trunk"]) == (3, 2.5)
    assert (figures["speedup_both"], figures["peak_memory_ratio_both"]) == (6, 0.5)
    assert max(figures["max_score_diff"], figures["max_gradient_diff"]) < 1e-5


@pytest.mark.long
def test_a_plain_iteration_learns_what_ours_does(tmp_path):
    """Its ratios begin at 1: what it says in a rollout is what its update scores."""
    sizes = {"num_envs": 1, "rollout_steps": 8, "batch_size": 8}
    figures = against_plain(tmp_path, sizes, rounds=1)
    assert figures["plain_first_ratio_error"] < 1e-4
    assert figures["speedup"] > 0


@pytest.mark.long
def test_iterations_are_measured_in_a_process_of_their_own(tmp_path):
    cores = [[min(os.sched_getaffinity(0))]]
    recipe = {"num_envs": 1, "rollout_steps": 4, "batch_size": 4, "total_timesteps": 24}
    figures = measure_apart(tmp_path / "one", recipe, 1, cores)
    assert figures["words_per_s"] > 0
    assert 0 <= figures["waiting_share"] < 1
    with pytest.raises(RuntimeError, match="batch_size"):
        measure_apart(tmp_path / "none", recipe | {"batch_size": 0}, 1, cores)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(UserError, match="--device cuda: there is no GPU"):
        cli.main(["bench", "scoring", "--device", "cuda"])


def test_the_2b_architecture_has_its_size():
    encoder = benchmark_encoder()
    with torch.device("meta"):  # no memory, no time
        model = benchmark_model("qwen2-vl-2b", 151_936, "meta", encoder)
    count = sum(p.numel() for p in model.parameters())
    assert count == 2_208_985_600  # as model.safetensors.index.json of the hub's says
