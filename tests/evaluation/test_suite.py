"""Suites: what they change, what they write, and what has been seen in training."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from vlm_agent.cli.entry import run_command
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.common.statistics import wilson_interval
from vlm_agent.evaluation.splits import GROUPS, find_suite, read_suite, seen_in_training
from vlm_agent.evaluation.suite import Played, measure_suite
from vlm_agent.recipe.command_line import change_env
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.report.suite import mean_success, plot_suite, suite_table
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.registry import declare

DOORS = """
world: {env: "vlm_agent.world.gym.minigrid:GoToDoor-v0", frame_size: 28, horizon: 20}
splits:
  usual: {group: distribution}
  little time: {group: execution, horizon: 1}
  # a comment
  wide: {group: vision, env_kwargs: {size: 7}, is_mistake: true}
"""


@pytest.fixture
def doors(tmp_path):
    path = tmp_path / "doors.yaml"
    path.write_text(DOORS)
    return path


def test_each_split_plays_the_same_episodes_in_its_own_world(doors):
    rows = list(measure_suite(read_suite(doors), "expert", Played(12)))
    assert [row["split"] for row in rows] == ["usual", "little time", "wide"]
    usual, hurried, wide = rows
    assert (usual["successes"], usual["success_rate"], usual["solved"]) == (12, 1.0, "1" * 12)
    assert hurried["mean_length"] == 1 and hurried["success_rate"] < 1
    assert wide["mean_length"] > usual["mean_length"]
    for row in rows:
        assert row["successes"] == row["solved"].count("1") == round(12 * row["success_rate"])
        interval = wilson_interval(row["successes"], 12)
        assert (row["ci95_low"], row["ci95_high"]) == interval
    assert mean_success(rows) == pytest.approx((1 + hurried["success_rate"]) / 2)
    table = suite_table(rows).splitlines()
    assert "100.0 % (12 of 12)" in table[2] and "wide (lower is better)" in table[4]


def test_what_is_there_is_not_played_again_but_another_policy_or_suite_is(doors, tmp_path):
    played = []

    def rows(policy="expert", split="test", names=()):
        suite, how = read_suite(doors), Played(3, split=split)
        options = {"known": known, "names": names, "on_episode": played.append}
        return list(measure_suite(suite, policy, how, **options))

    known = []
    known += rows(names=["usual"])
    assert played == ["usual"] * 3
    assert rows(names=["usual"]) == known and len(played) == 3
    rows()
    assert played[3:] == ["little time"] * 3 + ["wide"] * 3
    played.clear()
    rows("random", names=["usual"])
    rows(names=["usual"], split="validation")
    doors.write_text(DOORS.replace("usual: {", "usual: {env_kwargs: {size: 6}, "))
    rows(names=["usual"])
    assert played == ["usual"] * 9


def test_the_command_goes_on_where_it_was_stopped(doors, tmp_path, capsys):
    output, chart = tmp_path / "rows.json", tmp_path / "chart.png"
    command = ["suite", "--policy", "random", "--config", str(doors), "--num_eval_episodes", "3"]
    command += ["--json", str(output)]
    assert main([*command, "--splits", "wide"]) == 0
    first = json.loads(output.read_text())
    assert [row["split"] for row in first] == ["wide"]
    assert main([*command, "--chart", str(chart)]) == 0
    assert [row["split"] for row in json.loads(output.read_text())] == [
        "wide",
        "usual",
        "little time",
    ]
    assert "| little time |" in capsys.readouterr().out
    assert chart.stat().st_size > 5000


def test_a_new_answer_takes_the_place_of_the_old_one(doors, tmp_path):
    output = tmp_path / "rows.json"
    command = ["suite", "--policy", "random", "--config", str(doors), "--json", str(output)]
    assert main([*command, "--num_eval_episodes", "2"]) == 0
    doors.write_text(DOORS.replace("group: execution, horizon: 1", "group: semantics, horizon: 2"))
    assert main([*command, "--num_eval_episodes", "3"]) == 0
    rows = {row["split"]: row for row in json.loads(output.read_text())}
    assert len(rows) == len(json.loads(output.read_text())) == 3
    assert {row["episodes"] for row in rows.values()} == {3}
    assert rows["little time"]["group"] == "semantics"


def test_a_mistake_in_the_last_split_is_found_before_the_first_is_played(doors):
    doors.write_text(DOORS.replace("env_kwargs: {size: 7}", "words: 3"))
    played = []
    with pytest.raises(UserError, match="^doors: splits: wide: words: 3"):
        list(measure_suite(read_suite(doors), "random", Played(1), on_episode=played.append))
    assert not played


def test_who_is_told_nothing_skips_what_would_be_kept_from_him(doors):
    doors.write_text(DOORS.replace("horizon: 1}", "ablate: instruction}"))
    rows = list(measure_suite(read_suite(doors), "random", Played(1)))
    assert [row["split"] for row in rows] == ["usual", "wide"]


def test_a_chart_has_a_mark_for_each_policy(tmp_path):
    row = {"split": "a", "group": "vision", "success_rate": 0.5, "ci95_low": 0.4, "ci95_high": 0.6}
    plot_suite({"one": [row], "other": [row, row | {"split": "unknown"}]}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("splits: {}", "expected the keys world and splits"),
        ("worlds: {}", "unknown key 'worlds'; did you mean 'world'?"),
        ("splits: {a: [1]}", "splits: a: expected a mapping"),
        ("splits: {a: {group: vision, ligth: 1}}", "splits: a: unknown key 'ligth'"),
        ("splits: {a: {light: 1}}", "splits: a: group: None: expected one of distribution"),
        ("splits: {a: {group: vision, ablate: foo}}", "ablate: 'foo': expected one of none, image"),
        (
            "splits: {a: {group: vision, is_mistake: 3}}",
            "is_mistake: 3: expected one of false, true",
        ),
        ("world: {group: vision}\nsplits: {a: {group: vision}}", "world: unknown key 'group'"),
    ],
)
def test_a_mistake_in_a_suite_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_suite(path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--config", "cann"], "unknown suite 'cann'; did you mean 'can'?"),
        (["--splits", "blue cam"], "unknown split 'blue cam'; did you mean 'blue can'"),
        (["--policy", "no/such/folder"], "no policy"),
        (["--chart", "x.foo"], "--chart x.foo: expected a name with .png or .svg"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(capsys, options, sentence):
    assert run_command(lambda: main(["suite", "--policy", "expert", *options])) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("drawn", "fixed", "seen"),
    [
        ({"light_brightness": [0.6, 1.2]}, {}, "yes"),
        ({"light_brightness": 0.5}, {}, "yes"),
        ({"light_brightness": [0.4, 0.6]}, {}, "partly"),
        ({"light_brightness": [0.2, 0.4]}, {}, "no"),
        ({"object_colour": "red"}, {}, "yes"),
        ({"object_colour": ["red", "blue"]}, {}, "partly"),
        ({"object_colour": ["blue"], "light_brightness": 1}, {}, "no"),
        ({"camera_fov": 2}, {}, "no"),
        ({}, {"robot": "UR5e"}, "no"),
        ({}, {"tasks": ["PickPlaceCan", "Lift"]}, "partly"),
        ({}, {"task": "Lift"}, "no"),
        ({}, {"instructions": ["Lift it.", "Now."]}, "partly"),
        ({}, {"instructions": ["Now."]}, "no"),
        ({"bin_colour": "#102030"}, {}, "yes"),
        ({"distractors": 2}, {}, "no"),
        ({}, {"horizon": 50}, "yes"),
        ({}, {}, "yes"),
    ],
)
def test_what_has_been_seen_in_training(drawn, fixed, seen):
    ranges = {"light_brightness": [0.5, 1.4], "object_colour": ["own", "red"]}
    ranges |= {"bin_colour": ["own", "any"]}
    trained = EnvConfig(randomize=ranges, instructions=["Lift it."])
    played = dataclasses.replace(trained, randomize=drawn, **fixed)
    assert seen_in_training(trained, played) == seen


SUITES = {"can": "general_can_start", "pick": "general_pick_start"}


def test_what_training_alone_draws_is_not_the_usual_scene():
    trained = EnvConfig(randomize={"light_brightness": [1.2, 1.4]})
    assert seen_in_training(trained, EnvConfig()) == "no"


@pytest.mark.parametrize(("name", "recipe"), SUITES.items())
def test_a_suite_that_ships(name, recipe):
    """Its splits can be played, and in distribution is what the policies are trained with."""
    suite, trained = find_suite(name), Recipe.load(recipe).env
    assert len(suite.splits) >= 14
    assert {split.group for split in suite.splits.values()} == set(GROUPS)
    played = {}
    for split in suite.splits.values():
        played[split.name] = change_env(trained, split.changes)
        declare(played[split.name])
    assert played["in distribution"].randomize == trained.randomize
    assert played["in distribution"].instructions == trained.instructions
    header = Path(f"recipes/suites/{name}.yaml").read_text().splitlines()[0]
    assert header.startswith("# Purpose:") and yaml.safe_load(header) is None
