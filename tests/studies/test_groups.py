import json
from pathlib import Path

import numpy as np
import pytest

from vlm_agent.evaluation.evaluate import Evaluation
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.studies.groups import GroupStudy, outcome, paired_interval
from vlm_agent.world.episode import Episode


def test_the_interval_is_about_that_of_drawing_episodes_again():
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.6
    second = np.where(rng.random(200) < 0.7, first, rng.random(200) < 0.8)
    low, high = paired_interval(first.tolist(), second.tolist())
    drawn = rng.integers(200, size=(20_000, 200))
    gains = second[drawn].mean(1) - first[drawn].mean(1)
    assert (low, high) == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=0.01)
    back = paired_interval(second.tolist(), first.tolist())
    assert back == pytest.approx((-high, -low))


def test_equal_outcomes_leave_the_difference_open():
    low, high = paired_interval([True] * 10, [True] * 10)
    assert low == pytest.approx(-high)
    assert 0.2 < high < 0.4  # ten episodes say little: Wilson's interval begins at 0.72
    assert paired_interval([False] * 400, [True] * 400)[0] > 0.98


def write_evaluation(path: Path, solved: range) -> None:
    episodes = tuple(Episode(n, (0,) * 9, success=n in solved) for n in range(20))
    path.parent.mkdir(exist_ok=True)
    about = {"policy": path.stem, "split": "test"}
    path.write_text(json.dumps(Evaluation(episodes, ("a",), about).to_dict()))


def test_the_ends_of_both_runs_are_compared(tmp_path: Path):
    study = GroupStudy(tmp_path)
    names = [stage.name.removeprefix("PPO: ") for stage in study.training()]
    for name in names:
        for step in ("step9000", "step50123", "step60000.partial", "best"):
            (tmp_path / "checkpoints" / f"{name}_{step}").mkdir(parents=True)
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "summary.json").write_text('{"timesteps": 50123}')
    stages = list(study.evaluations())
    ends = [str(tmp_path / "checkpoints" / f"{name}_step50123") for name in names]
    assert [stage.command[3] for stage in stages] == ["starter", *ends]
    assert [stage.needs for stage in stages] == [(), *((f"PPO: {name}",) for name in names)]
    for row, solved in zip(study.rows(), (range(8), range(12), range(4, 14)), strict=True):
        write_evaluation(tmp_path / "evaluations" / row.file, solved)
    told = outcome(study)
    assert [row["success_rate"] for row in told["rows"]] == [0.4, 0.6, 0.5]
    compared = [
        (row["policy"], row["over"], round(row["gain"], 3), row["only_this"], row["only_first"])
        for row in told["comparisons"]
    ]
    assert compared == [
        ("GRPO", "starter policy", 0.2, 4, 0),
        ("PPO", "starter policy", 0.1, 6, 4),
        ("GRPO", "PPO", 0.1, 4, 2),
    ]
    assert all(row["ci95_low"] < row["gain"] < row["ci95_high"] for row in told["comparisons"])


def test_both_runs_differ_in_how_they_learn_alone(tmp_path: Path):
    """The scene, the start, the reward and the number of words are the same."""
    group, ppo = (load_recipe(list(stage.command[1:])) for stage in GroupStudy(tmp_path).training())
    assert (group.ppo.advantage, ppo.ppo.advantage) == ("group", "gae")
    assert group.env == ppo.env
    assert (group.template, group.evaluation) == (ppo.template, ppo.evaluation)
    assert group.run.total_timesteps == ppo.run.total_timesteps == 50_000
    assert group.run.init_from == ppo.run.init_from == "starter"
