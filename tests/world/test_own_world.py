"""A world of a user's own: a module, and a recipe of four lines; the package is not touched."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.own_world import own_world
from tests.short_runs import metrics_of, without_times
from vlm_agent import Recipe, make_env
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.demonstrations.dataset import collect_demonstrations
from vlm_agent.demonstrations.reading import read_demonstrations
from vlm_agent.evaluation.agents import load_agent, measure
from vlm_agent.ppo.run import run_training
from vlm_agent.runs.begin import start_policy
from vlm_agent.runs.folders import RunFolders
from vlm_agent.world.episode import Episode

SMALL = {
    "frame_size": 56,
    "num_envs": 4,
    "num_workers": 2,
    "rollout_steps": 8,
    "batch_size": 16,
    "n_epochs": 1,
    "freeze_vision": True,
    "eval_freq": 64,
    "save_freq": 32,
    "num_eval_episodes": 4,
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Path]:
    with own_world(tmp_path) as path:
        yield path


def load(path: Path, **settings) -> Recipe:
    return Recipe.load(path, output_dir=str(path.parent), **{**SMALL, **settings})


def test_it_is_what_its_class_declares(world):
    env = make_env(load(world).env)
    observation, info = env.reset(seed=3)
    assert env.vocabulary.words == ("left", "right", "far left", "far right", "stay")
    assert observation in env.observation_space
    assert observation["image"].shape == (56, 56, 3)
    told = {name: int(value) for name, value in observation.items() if name != "image"}
    asked = told.pop("instruction")
    assert told == {"side": 0, "moves": 0, "last_action": 5, "step": 0, "words_left": 12}
    sentence = env.world.spec.instructions.sentences[asked]
    assert info["goal"] in ("red", "blue") and info["goal"] in sentence
    way = env.world.expert()
    observation, reward, terminated, _, info = env.step(way.act())
    assert (info["stage"], terminated, observation["moves"]) == ("near", False, 1)
    assert env.privileged_state().tolist() == [
        env.world.env.unwrapped.position,
        0 or env.world.env.unwrapped.target,
    ]
    _, reward, terminated, _, info = env.step(way.act())
    assert (reward, terminated, info["stage"], info["is_success"]) == (1.0, True, "solved", True)
    env.close()


def test_it_trains_evaluates_films_and_goes_on_where_it_stopped(world, capsys):
    straight = load(world, total_timesteps=96, run_name="straight")
    run_training(straight)
    stopped = {"run_name": "stopped", "total_timesteps": 96}
    run_training(load(world, **{**stopped, "total_timesteps": 32}))
    run_training(load(world, **stopped, resume_from="latest"))
    metrics = [without_times(metrics_of(load(world, run_name=n))) for n in ("straight", "stopped")]
    assert metrics[0] == metrics[1]
    assert {"near_rate", "success_by_goal"} <= metrics[0][-1].keys()
    assert "reached_rate" not in metrics[0][-1]
    folders = RunFolders(straight)
    assert all(path.is_file() for path in (folders.curves, folders.before.with_suffix(".mp4")))
    shown = capsys.readouterr().out
    assert "near" in shown and "--trust_modules true" in shown
    evaluation = json.loads(folders.evaluation(96).read_text())
    assert {episode["goal"] for episode in evaluation["episodes"]} == {"red", "blue"}
    policy = str(folders.best)
    with pytest.raises(UserError, match="names code of its own \\(corridor\\).*--trust_modules"):
        load_agent(policy)
    with pytest.raises(UserError, match="init_from: .*names code of its own \\(corridor\\)"):
        start_policy(Recipe.load(task="Lift", init_from=policy))
    assert start_policy(load(world, init_from=policy)).words == straight.template.words
    with pytest.raises(UserError, match="the episode .*names code of its own"):
        main(["show", "--episode", str(folders.after), "--output", str(world.parent / "x.mp4")])
    agent = load_agent(policy, trust_modules=True)
    told = measure(agent, 8, seed=0, greedy=True, split="test").to_dict()
    assert told["task"] == "corridor:Corridor-v0" and len(told["episodes"]) == 8


def test_a_critic_reads_its_state(world):
    run_training(load(world, total_timesteps=32, value_input="state", run_name="state"))
    metrics = metrics_of(load(world, run_name="state"))
    assert [row["timesteps"] for row in metrics] == [32]


def test_a_reward_of_ones_own(world):
    with load(world, reward="corridor:closeness").make_pool() as pool:
        pool.reset({0: Episode(0)})
        assert pool.step({0: 4}).rewards.tolist() == [-0.1]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"reward": "corridor:broken"}, "reward: corridor:broken gave nan at word 1 of the epi"),
        ({"reward": "corridor:lost"}, "reward: corridor:lost failed at word 1 .*'there'"),
        ({"success": "corridor:lost"}, "success: corridor:lost failed at word 1"),
    ],
)
def test_a_function_that_fails_is_named(world, settings, problem):
    with load(world, **settings).make_pool() as pool, pytest.raises(UserError, match=problem):
        pool.reset({0: Episode(0)})


def test_its_expert_teaches(world):
    recipe = load(world, num_demo_episodes=6, demo_noise=0.0)
    collect_demonstrations(recipe)
    known = read_demonstrations(recipe)
    places = recipe.template.fact_names.index("instruction")
    assert len(known) == 12 and set(known.actions) == {2, 3}
    assert len(set(known.observations.facts[:, places])) == 3


@pytest.mark.long
def test_it_trains_in_two_processes(world):
    (world.parent / "small.yaml").write_text(
        world.read_text() + "\n".join(f"{k}: {v}" for k, v in SMALL.items())
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"),
            *("--num_processes", "2", "-m", "vlm_agent.train", "--config", "small.yaml"),
            *("--total_timesteps", "64", "--num_envs", "2", "--batch_size", "8"),
        ],
        cwd=world.parent,
        env={**_environ(), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((world.parent / "runs" / "corridor" / "summary.json").read_text())
    assert (summary["num_processes"], summary["timesteps"]) == (2, 64)


def _environ() -> dict[str, str]:
    root = str(Path(__file__).parent.parent.parent)
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def test_a_worker_that_fails_is_replaced_and_nothing_changes(world):
    marker = world.parent / "marker"
    kwargs = {"dies_at": [str(marker), 1]}
    with load(world, env_kwargs=kwargs, num_workers=1).make_pool() as pool:
        marker.touch()
        expected = play(pool)
        marker.unlink()
        assert pool.replays
        assert play(pool) == expected
        assert sum(pool.restarts) == 1


def play(pool) -> list:
    pool.reset({0: Episode(0), 1: Episode(1)})
    heard = [pool.step({0: 0, 1: 1}, {0: Episode(2), 1: Episode(3)}) for _ in range(3)]
    return [
        (batch.rewards.tolist(), batch.next_observations.facts.tolist(), batch.infos)
        for batch in heard
    ]


def test_where_nothing_replays_a_crash_costs_the_running_episodes(world, caplog):
    marker = world.parent / "marker"
    marker.touch()
    kwargs = {"drifts": True, "dies_at": [str(marker), 2]}
    with load(world, env_kwargs=kwargs, num_workers=1).make_pool() as pool:
        assert not pool.replays
        assert "do not replay" in caplog.text
        pool.reset({slot: Episode(slot) for slot in range(3)})
        before = pool.step({0: 4, 1: 4}).observations
        marker.unlink()
        lost = pool.step({0: 4, 1: 4}, {0: Episode(7)})
        assert lost.truncated.tolist() == [True, True] and not lost.terminated.any()
        assert [info["lost"] for info in lost.infos] == [True, True]
        assert np.array_equal(lost.observations.frames, before.frames)
        assert np.array_equal(lost.observations.facts, before.facts)
        moves = pool.facts.index("moves")
        assert lost.next_observations.facts[:, moves].tolist() == [0, 1]
        # Of the third environment, which was not asked then, the episode is lost as well.
        last = pool.step({0: 4, 2: 4}, {0: Episode(8), 2: Episode(9)})
        assert [info.get("lost", False) for info in last.infos] == [False, True]
        assert last.next_observations.facts[:, moves].tolist() == [1, 0]
        assert sum(pool.restarts) == 1


def test_training_goes_on_where_nothing_replays(world, capsys):
    drifting = {"env_kwargs": {"drifts": True}, "run_name": "drifting"}
    run_training(load(world, **drifting, total_timesteps=32))
    run_training(load(world, **drifting, total_timesteps=96, resume_from="latest"))
    metrics = metrics_of(load(world, **drifting))
    assert [row["timesteps"] for row in metrics] == [32, 64, 96]
    assert "no film: this world does not replay" in capsys.readouterr().out
