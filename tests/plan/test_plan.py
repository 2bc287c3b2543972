"""What a recipe will take: sizes against real models, time and memory against hand arithmetic."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from vlm_agent.cli.entry import run_command
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.plan.check import deep_recipe
from vlm_agent.plan.costs import Costs
from vlm_agent.plan.machine import GPU_LAYER_SECONDS, GPU_SHARES, GPUS, Machine
from vlm_agent.plan.measure import MODELS, measure_passes
from vlm_agent.plan.memory import memory_of
from vlm_agent.plan.plan import describe, imitates, plan_of, ways_to_fit
from vlm_agent.plan.sizes import Sizes, sizes_of
from vlm_agent.plan.watch import watch
from vlm_agent.policy.building import build_policy
from vlm_agent.recipe.recipe import Recipe

GIB = 2**30

FORMS = {
    "whole": {},
    "frozen vision": {"freeze_vision": True},
    "LoRA": {"use_peft": True},
    "top layers": {"use_peft": True, "lora_layers": 1},
    "connector": {"use_peft": True, "trained_modules": ["connector"]},
    "vision tower": {"use_peft": True, "trained_modules": ["vision_tower"]},
}


@pytest.fixture(scope="module")
def machine() -> Machine:
    return dataclasses.replace(Machine.here(), cores=2, memory=24 * GIB)


@pytest.mark.parametrize("form", FORMS)
def test_sizes_are_those_of_the_model(form: str):
    recipe = Recipe.load(**FORMS[form])
    sizes = sizes_of(recipe)
    policy = build_policy(recipe.model, recipe.template, 0)
    named = dict(policy.backbone.named_parameters())
    copies = [p.numel() for name, p in named.items() if ".modules_to_save." in name]
    adapters = [p.numel() for name, p in named.items() if ".lora_" in name]
    assert sizes.base == sum(p.numel() for p in named.values()) - sum(copies) - sum(adapters)
    assert sizes.adapters == sum(adapters)
    assert sizes.trained == sum(p.numel() for p in named.values() if p.requires_grad)
    assert sizes.trunk == policy.model_pass.trunk_depth
    assert sizes.vision_is_trained is not policy.model_pass.vision_is_frozen
    assert sizes.picture == 16, "112 / (14 x 2), squared"
    assert sizes.patches == 64
    start = policy.encoder.template.render(policy.encoder.template.start_facts)
    tokens = policy.encoder.row(start, recipe.env.frame_shape)["input_ids"].shape[1]
    assert sizes.prefix + sizes.rest == tokens, "first_token puts nothing behind prompts"


SIZES = Sizes(
    vision=100, layer=1000, layers=4, embedding=50, adapters=40, trained=40,
    vision_is_trained=False, trunk=3, hidden=8, intermediate=16, vision_hidden=4, vision_layers=2,
    patches=9, picture=3, prefix=10, rest=5,
)  # fmt: skip


def test_time_on_a_gpu_by_hand(machine: Machine):
    gpu = dataclasses.replace(GPUS["h100"], flops=1e6, bandwidth=1e30)
    recipe = Recipe.load(use_peft=True, dtype="bfloat16", micro_batch_size=3)
    costs = Costs(recipe, SIZES, dataclasses.replace(machine, gpu=gpu, gpus=1))
    per_token = 2 * 1000 + 4 * 8 * 15
    one = (10 + 3 * 5) * per_token / (GPU_SHARES["lora"] * 1e6) * 3 + 3 * GPU_LAYER_SECONDS
    rest = (10 + 1 * 5) * per_token / (GPU_SHARES["lora"] * 1e6) * 3 + 3 * GPU_LAYER_SECONDS
    prompts = 4 * machine.constants["prompt_s"]
    assert costs.learn(4, is_kept=True) == pytest.approx(one + rest + prompts)
    seen = 2 * 100 * 4 * 9 / (GPU_SHARES["decide"] * 1e6) + 2 * 2 * GPU_LAYER_SECONDS
    below = 4 * 5 * 3 * per_token / (GPU_SHARES["decide"] * 1e6) + 2 * 3 * GPU_LAYER_SECONDS
    encoding = 4 * 9 * machine.constants["encode_s_per_patch"]
    fresh = one + rest + prompts + seen + below + encoding
    assert costs.learn(4, is_kept=False) == pytest.approx(fresh)


def test_memory_by_hand(machine: Machine):
    recipe = Recipe.load(
        use_peft=True, lora_layers=1, batch_size=8, micro_batch_size=2, num_envs=4,
        rollout_steps=16, feature_cache_gb=1e-6, num_workers=1,
    )  # fmt: skip
    memory = memory_of(recipe, SIZES, machine, 0)
    assert memory.model["weights"] == 4 * (100 + 4 * 1000 + 50)
    assert memory.model["optimiser"] == 8 * 40
    activations = 4 * (10 + 2 * 5) * 1 * (10 * 8 + 4 * 16)
    share = machine.constants["activations_share"]
    assert memory.model["activations"] == pytest.approx(share * activations)
    assert memory.host["caches"] == pytest.approx(1e-6 * GIB), "64 x 5 x 8 x 4 bytes do not fit"
    assert memory.host["frames"] == 64 * 112 * 112 * 3
    four = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, load_in_4bit=True))
    weights = memory_of(four, SIZES, machine, 0).model["weights"]
    assert weights == 4 * 1000 * (0.5 + 1 / 16) + 2 * 150


def test_what_is_not_kept_is_computed_again(machine: Machine):
    kept, half, none = (
        plan_of([Recipe.load("full_tiny", feature_cache_gb=size)], machine).stages[0]
        for size in (2.0, 2048 * 16 * 128 * 4 / 2 / GIB, 0.0)
    )
    assert kept.parts["update"] < half.parts["update"] < none.parts["update"]
    middle = (kept.parts["update"] + none.parts["update"]) / 2
    assert half.parts["update"] == pytest.approx(middle)


def test_words_double_what_they_take(machine: Machine):
    stages = [
        plan_of([Recipe.load("full_tiny", total_timesteps=words)], machine).stages[0]
        for words in (40_000, 80_000)
    ]
    for part in ("simulator", "decisions", "update"):
        assert stages[1].parts[part] == pytest.approx(2 * stages[0].parts[part])


def test_what_it_advises_fits(machine: Machine):
    recipe = Recipe.load("full_tiny", batch_size=2048)
    need = plan_of([Recipe.load("full_tiny", batch_size=1024)], machine)
    small = dataclasses.replace(machine, memory=1.01 * sum(need.need(need.neediest)))
    plan = plan_of([recipe], small)
    assert not plan.fits
    ways = list(ways_to_fit(plan))
    assert "micro_batch_size: 1024" in ways
    key, _, value = ways[0].partition(": ")
    changed = Recipe.load("full_tiny", batch_size=2048, **{key: int(value)})
    assert plan_of([changed], small).fits
    for way in ways:  # each of them is a recipe
        keys = yaml.safe_load("{" + way + "}")
        assert plan_of([Recipe.load("full_tiny", **{"batch_size": 2048, **keys})], small).fits
    assert any("It would with micro_batch_size" in line for line in describe(plan))


def test_the_road_of_a_recipe(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "plan.json"
    assert main(["plan", "--config", "scaled", "--gpu", "4090", "--json", str(file)]) == 0
    text, plan = capsys.readouterr().out, json.loads(file.read_text())
    assert all(name in text for name in ("demonstrations: scaled_start", "PPO: scaled", "4090"))
    assert plan["demonstrations_s"] > 0 < plan["warm_start_s"]
    assert plan["ppo_bottleneck"] == "update" or plan["ppo_bottleneck"] == "simulator"
    assert plan["gpu_bytes"] < 24e9 and plan["fits"] is True
    assert all(value is None or not isinstance(value, (dict, list)) for value in plan.values())
    assert main(["plan", "--config", "scaled_start"]) == 0
    assert "PPO" not in capsys.readouterr().out, "a warm start alone"
    assert main(["plan", "--config", "scaled", "--dagger_words", "64", "--run_name", "mine"]) == 0
    text = capsys.readouterr().out
    assert "PPO: mine" in text and "warm start: scaled_start" in text


def test_several_nodes_by_hand(machine: Machine):
    cluster = dataclasses.replace(
        machine, cores=8, gpu=GPUS["h100"], gpus=4, nodes=2, network=1e9, memory=64 * GIB
    )
    assert (cluster.processes, cluster.on_node) == (8, 4)
    # In a ring each sends 7/8 of it twice; between nodes slower than within one.
    assert cluster.reducing(4e9) == pytest.approx(1e-3 + 2 * 4e9 * 7 / 8 / 1e9)
    one_node = dataclasses.replace(cluster, nodes=1)
    assert one_node.reducing(4e9) == pytest.approx(1e-3 + 2 * 4e9 * 3 / 4 / 50e9)
    alone = cluster.alone()
    assert (alone.processes, alone.cores, alone.memory) == (1, 2, 16 * GIB)
    assert alone.reducing(4e9) == 0
    # With nothing to send, eight processes are eight times as fast as one.
    recipe = Recipe.load(use_peft=True, num_eval_episodes=0, batch_size=256)
    fast = dataclasses.replace(cluster, network=1e30)
    assert plan_of([recipe], fast).scaling == pytest.approx(8, rel=0.01)
    slow = plan_of([recipe], dataclasses.replace(cluster, network=1e4))
    assert slow.scaling < 1
    assert slow.stages[-1].bottleneck == "network"
    assert any("faster network" in line for line in describe(slow))
    assert any("2 nodes of 4 x h100" in line for line in describe(slow))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "quick", "--network", "25"], "--nodes 2"),
        ([], "--config"),
        (["--config", "quick", "--gpu", "h10"], "'h100'"),
        (["--config", "quick", "--gpu", "h100", "--cpu"], "one or the other"),
        (["--config", "quik"], "'quick'"),
        (["--config", "quick", "--gpus", "2"], "--gpu h100"),
    ],
)
def test_mistakes(words: list[str], said: str, capsys):
    assert run_command(lambda: main(["plan", *words])) == 2
    assert said in capsys.readouterr().err


def test_the_constants_are_measured_with_one_command(machine: Machine):
    width = min(MODELS)
    found = measure_passes(width, MODELS[width])
    assert set(found) <= set(machine.constants), "the committed file has them"
    assert all(value > 0 for value in found.values())
    assert found[f"full_flops_{width}"] < found[f"decide_flops_{width}"]


def test_a_command_is_watched_with_what_it_starts(tmp_path: Path):
    child = "import time; held = bytearray(300 << 20); time.sleep(1.5)"
    parent = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    watched = watch([sys.executable, "-c", parent], tmp_path, {})
    assert 300 << 20 < watched.peak_bytes < 500 << 20
    assert watched.seconds > 1.5
    with pytest.raises(UserError, match="no good"):
        watch([sys.executable, "-c", "raise SystemExit('no good')"], tmp_path, {})


def test_the_plan_that_was_checked_is_committed():
    checked = json.loads((ROOT / "recipes" / "results" / "plan.json").read_text())
    for key in ("ppo", "warm_start", "lora"):
        assert checked[f"{key}_time_ratio"] == pytest.approx(1, abs=0.25)
        assert checked[f"{key}_memory_ratio"] == pytest.approx(1, abs=0.15)


def test_the_check_of_lora_plans_ppo(tmp_path: Path):
    """A recipe that says how to imitate is planned as a warm start."""
    assert not imitates(deep_recipe(tmp_path))
