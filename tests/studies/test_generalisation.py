"""The study of generalisation: its stages can be run, and its comparisons are right by hand."""

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlm_agent.common.errors import UserError
from vlm_agent.evaluation.splits import find_suite
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.report.generalisation import BEGIN, END, write_page
from vlm_agent.studies.generalisation import (
    GRPO,
    IMITATION,
    PPO,
    Generalisation,
    comparisons,
    write_generalisation,
)


def row(policy: str, seed: int, split: str, solved: str, is_mistake: bool = False) -> dict:
    rate = solved.count("1") / len(solved)
    about = {"suite": "can", "split": split, "group": "vision", "is_mistake": is_mistake}
    about |= {"seen": "no", "episodes": len(solved), "successes": solved.count("1")}
    about |= {"success_rate": rate, "ci95_low": 0.0, "ci95_high": 1.0, "mean_length": 40.0}
    return {**about, "mode": "greedy", "solved": solved, "policy": policy, "train_seed": seed}


def test_each_stage_is_a_command_that_stands_alone_and_comes_after_what_it_needs(tmp_path: Path):
    study = Generalisation(tmp_path)
    stages = [*study.training(), *study.suites()]
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    for number, stage in enumerate(stages):
        assert tmp_path in stage.makes.parents
        assert set(stage.needs) <= set(names[:number])
        words = list(stage.command[2 if stage.command[0] == "vlm_agent.cli" else 1 :])
        if stage in list(study.suites()):
            assert find_suite(words[words.index("--config") + 1]).splits
        else:
            load_recipe(words)


def test_what_is_compared_differs_in_nothing_but_how_it_learns():
    start, ppo, grpo, more = (
        Recipe.load(ROOT / "recipes" / f"general_can{which}.yaml")
        for which in ("_start", "", "_group", "_more")
    )
    for other in (ppo, grpo, more):
        assert other.env.changed(horizon=120, reward="progress") == start.env
        assert other.template == start.template
    assert ppo.run.total_timesteps == grpo.run.total_timesteps
    # An episode of the expert has 47 words.
    words = 47 * more.imitation.num_demo_episodes
    assert words == pytest.approx(ppo.run.total_timesteps, rel=0.01)
    assert more.run.seed != start.run.seed


def test_comparisons_pool_all_splits_in_which_success_was_asked_for():
    rows = [
        row(IMITATION, 0, "a", "1100"),
        row(IMITATION, 0, "b", "0000"),
        row(IMITATION, 0, "c", "1111", is_mistake=True),
        row(PPO, 0, "a", "1110"),
        row(PPO, 0, "b", "1000"),
        row(PPO, 0, "c", "0000", is_mistake=True),
        row(PPO, 1, "a", "0111"),
        row(PPO, 1, "b", "0000"),
        row(GRPO, 1, "a", "1111"),
        row(IMITATION, 0, "a", "0001") | {"suite": "pick"},
    ]
    found = {(one["policy"], one["over"], one["train_seed"]): one for one in comparisons(rows)}
    assert set(found) == {(PPO, IMITATION, 0), (PPO, IMITATION, 1), (GRPO, IMITATION, 1)} | {
        (PPO, GRPO, seed) for seed in (0, 1)
    }
    first, second = (found[PPO, IMITATION, seed] for seed in (0, 1))
    assert (first["only_this"], first["only_first"], first["splits"]) == (2, 0, 2)
    assert first["gain"] == pytest.approx((0.25 + 0.25) / 2)
    assert first["p_value"] == pytest.approx(2 / 2**2)
    assert (second["only_this"], second["only_first"]) == (2, 1)
    assert second["gain"] == pytest.approx(0.25 / 2)
    assert second["p_value"] == 1.0
    assert found[PPO, GRPO, 1]["only_first"] == 1


def test_what_was_measured_elsewhere_stays_until_it_is_measured_again(tmp_path: Path):
    study, output = Generalisation(tmp_path), tmp_path / "out.json"
    kept, old = row(PPO, 1, "blue can", "10"), row(IMITATION, 0, "blue can", "00")
    gone = row("nobody", 0, "a", "00")
    output.write_text(json.dumps({"rows": [kept, old, gone], "hours": {}}))
    new = row("checkpoints/x", 0, "blue can", "11") | {"seed": 0, "weights": "1f"}
    dropped = row("checkpoints/x", 0, "no split any more", "11")
    start = next(one for one in study.candidates() if one.label == IMITATION)
    path = study.rows_file(start)
    path.parent.mkdir()
    path.write_text(json.dumps([new, dropped]))
    written = write_generalisation(study, output)
    assert [(r["policy"], r["train_seed"], r["solved"]) for r in written["rows"]] == [
        (IMITATION, 0, "11"),
        (PPO, 1, "10"),
    ]
    assert written == json.loads(output.read_text())
    assert written["comparisons"][0]["gain"] == -0.5


def test_the_page_has_the_mean_of_each_policy_and_leaves_the_rest_alone(tmp_path: Path):
    page, chart = tmp_path / "page.md", tmp_path / "chart.png"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    rows = [
        row(IMITATION, 0, "a", "1100"),
        row(IMITATION, 0, "b", "1000"),
        row(IMITATION, 0, "c", "1111", is_mistake=True),
        *(row(PPO, seed, split, "1110") for seed in (0, 1) for split in "ab"),
        row(PPO, 1, "c", "0000", is_mistake=True),
    ]
    rows[-2] |= {"success_rate": 0.25}
    rows.append(row("history 2", 0, "a", "1110") | {"suite": "memory"})
    hours = {"demonstrations: memory_2": 0.5, "warm start: memory_2": 1.25, "suite: can": 3.0}
    results = {"rows": rows, "comparisons": list(comparisons(rows)), "hours": hours}
    write_page(results, page, chart)
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert "| split | imitation | PPO, 2 seeds |" in lines
    assert "| a | 50.0 | 75.0 (75.0–75.0) |" in lines
    assert "| c (lower is better) | 100.0 | 0.0 |" in lines
    assert "| **mean** | 37.5 | 62.5 (50.0–75.0) |" in lines
    assert "| PPO | imitation | 0 | 2 | +37.5 | 3 / 0 | 0.2 |" in lines
    assert lines[lines.index("### `memory`") + 2 :][:3] == [
        "| split | history 2 |",
        "|---|---|",
        "| a | 75.0 |",
    ]
    assert [line for line in lines if "memory_2" in line or "suite: can" in line] == [
        "| demonstrations: memory_2 | 0.50 |",
        "| warm start: memory_2 | 1.25 |",
    ]
    assert chart.stat().st_size > 5000
    page.write_text("no marks")
    with pytest.raises(UserError, match="expected the lines"):
        write_page(results, page, chart)
