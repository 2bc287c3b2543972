"""From demonstrations to a measured policy, with a model of a folder and killed on the way."""

import contextlib
import json
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.own_world import own_world
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.policy.backbone.tiny import build_tiny_model, build_tiny_processor
from vlm_agent.studies import road
from vlm_agent.studies.road import Road, run_road

LORA = "use_peft: true\nlora_layers: 1\n"
START = f"""
run_name: begin
num_demo_episodes: 12
sft_epochs: 2
sft_batch_size: 8
dagger_rounds: 1
dagger_words: 32
dagger_epochs: 2
rollout_steps: 8
save_freq: 16
{LORA}"""
PPO = f"""
run_name: learn
init_from: OUT/checkpoints/begin_final
total_timesteps: 96
rollout_steps: 8
n_epochs: 1
save_freq: 16
eval_freq: 96
{LORA}"""
BOTH = """
model_name_or_path: MODEL
output_dir: OUT
frame_size: 28
num_envs: 2
num_workers: 1
batch_size: 8
num_eval_episodes: 2
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch):
    """Write both recipes for a folder of results; gives the recipe of PPO."""
    monkeypatch.setattr(road, "TEST_EPISODES", 4)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    processor, model = build_tiny_processor(), tmp_path / "model"
    build_tiny_model(processor.tokenizer, 7).save_pretrained(model)
    processor.save_pretrained(model)
    with own_world(tmp_path) as world:

        def write(name: str) -> Path:
            folder = tmp_path / name
            folder.mkdir()
            for recipe, text in {"begin": START, "learn": PPO}.items():
                text = world.read_text().replace("run_name: corridor", "") + text + BOTH
                for word, path in {"OUT": folder, "MODEL": model}.items():
                    text = text.replace(word, str(path))
                (folder / f"{recipe}.yaml").write_text(text)
            return folder / "learn.yaml"

        yield write


def kill_when_there_is(checkpoint: str, folder: Path) -> threading.Thread:
    """Kill all that runs below this process once a checkpoint is there."""

    def wait_and_kill():
        while not [p for p in (folder / "checkpoints").glob(checkpoint) if not p.suffix]:
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may be over
                if "vlm_agent" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


@pytest.mark.long
def test_a_road_that_is_killed_in_each_stage_ends_where_it_would_have(place, capfd):
    straight, killed = place("straight"), place("killed")
    result = json.loads(run_road(straight).read_text())
    assert (result["split"], result["num_eval_episodes"]) == ("test", 4)
    for checkpoint, stage in (("begin_step16", "warm start"), ("learn_step16", "PPO")):
        thread = kill_when_there_is(checkpoint, killed.parent)
        with pytest.raises(UserError, match=f"{stage}: .* failed"):
            run_road(killed)
        thread.join()
    assert main(["road", "--config", str(killed)]) == 0
    assert "on test episodes" in capfd.readouterr().out
    for name in ("begin_final", "learn_best", "learn_step96"):
        mine, theirs = (
            recipe.parent / "checkpoints" / name / "adapter_model.safetensors"
            for recipe in (killed, straight)
        )
        assert mine.read_bytes() == theirs.read_bytes(), name
    trained = load_file(theirs)
    assert len(trained) == 14 and all(".layers.2." in name for name in trained)
    left = sorted(p.name for p in (killed.parent / "checkpoints").glob("begin_step*"))
    assert len(left) == 2  # of whole stages alone
    capfd.readouterr()
    run_road(killed)
    assert capfd.readouterr().out.count("is there") == 4


def test_a_warm_start_that_was_made_otherwise_is_taken_as_it_is(place):
    config = place("given")
    assert [stage.name for stage in Road(config).stages()] == [
        "demonstrations: begin",
        "warm start: begin",
        "PPO: learn",
        "evaluation: learn",
    ]
    final = config.parent / "checkpoints" / "begin_final"
    final.mkdir(parents=True)
    given = Road(config)
    assert [stage.name for stage in given.stages()] == ["PPO: learn", "evaluation: learn"]
    assert given.begins == final and str(final) in next(given.stages()).command


def test_demonstrations_that_were_collected_otherwise_are_taken_as_they_are(place):
    config = place("shown")
    main(["demos", "--config", str(config.with_name("begin.yaml")), "--num_demo_episodes", "2"])
    assert next(Road(config).stages()).name == "warm start: begin"


def test_a_run_that_was_begun_otherwise_is_not_deleted(place):
    config = place("begun")
    (config.parent / "checkpoints" / "learn_step32").mkdir(parents=True)
    with pytest.raises(UserError, match="PPO: learn: there are checkpoints of it .*learn_step"):
        run_road(config)
    assert (config.parent / "checkpoints" / "learn_step32").is_dir()


def test_recipes_that_do_not_fit_and_a_recipe_by_its_name(place):
    config = place("other")
    config.write_text(config.read_text().replace("lora_layers: 1", "lora_layers: 2"))
    with pytest.raises(UserError, match="differs from .* in lora_layers: PPO could not begin"):
        run_road(config)
    assert Road(Path("full")).start.name == "full_warm_start.yaml"
    with pytest.raises(UserError, match="--resume_from: the road goes on by itself"):
        Road(Path("full"), ["--resume_from", "latest"])


def test_a_road_that_cannot_be_gone_says_so_first(place):
    config = place("none")
    with pytest.raises(UserError, match="--run_name: every recipe of the road has its own"):
        Road(config, ["--run_name", "other"])
    with pytest.raises(UserError, match="num_eval_episodes: 0 leaves no best policy"):
        Road(config, ["--num_eval_episodes", "0"])
    with pytest.raises(UserError, match="cannot get the model 'some/model'"):
        run_road(config, ["--model_name_or_path", "some/model"])
    assert sorted(p.name for p in config.parent.iterdir()) == ["begin.yaml", "learn.yaml"]
