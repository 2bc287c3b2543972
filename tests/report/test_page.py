"""The report of a run: what it says is what the run left, and a person can look through it."""

import json
import os
import re
from pathlib import Path

import pytest
from pytest import approx

from tests.browser import browser, page_without_errors, serious_findings
from tests.own_world import own_world
from vlm_agent import Recipe, VLMPolicy
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.ppo.run import run_training
from vlm_agent.report.html.players import choose_episodes
from vlm_agent.report.html.records import RunRecord, differing_settings, smoothed

SETTINGS = {
    "frame_size": 28,
    "num_envs": 2,
    "num_workers": 1,
    "rollout_steps": 8,
    "total_timesteps": 96,
    "eval_freq": 48,
    "batch_size": 8,
    "n_epochs": 1,
    "learning_rate": 1e-3,
    "num_eval_episodes": 10,
    "value_input": "state",
    "report_episodes": 6,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """The folders of two runs."""
    folder = tmp_path_factory.mktemp("runs")
    with own_world(folder) as world, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        for name, rate in (("one", 1e-3), ("two", 3e-3)):
            own = {"run_name": name, "learning_rate": rate, "output_dir": str(folder)}
            run_training(Recipe.load(world, **(SETTINGS | own)))
        yield [folder / "runs" / name for name in ("one", "two")]


def data_of(page: Path) -> dict:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(found[1])


def test_a_run_ends_with_a_report_of_what_it_did(runs):
    page = runs[0] / "report.html"
    assert page.stat().st_size < 12e6
    metrics = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    last = json.loads((runs[0] / "evaluations" / "96.json").read_text())
    data = data_of(page)
    charts = {chart["title"]: chart["curves"] for chart in data["charts"]}
    (entropy,) = charts["entropy (nats)"]
    assert entropy["values"] == [row["entropy"] for row in metrics]
    assert entropy["words"] == [row["timesteps"] for row in metrics]
    hours = sum(row["rollout_s"] + row["update_s"] for row in metrics) / 3600
    assert entropy["hours"][-1] == approx(hours)
    assert [c["name"] for c in charts["stages reached"]] == ["near_rate"]
    players = data["players"]["one"]
    assert len(players) == 6
    policy = VLMPolicy.from_pretrained(runs[0].parents[1] / "checkpoints" / "one_step96")
    for player in players:
        played = last["episodes"][player["number"]]
        assert (player["seed"], player["said"]) == (played["seed"], played["words"])
        assert sum(player["rewards"]) == approx(played["return"], abs=1e-2)
        assert player["stages"][-1] == played["stage"]
        # Greedy: what was said is what is most probable when it is asked again.
        greedy = [policy.words[max(range(5), key=p.__getitem__)] for p in player["probabilities"]]
        assert greedy == player["said"]
        assert len(player["values"]) == len(player["said"])
        assert "Go to" in player["sentence"] or "Find" in player["sentence"]
    assert [p["success"] for p in players] == sorted(p["success"] for p in players)


def test_the_command_shows_several_runs_with_what_their_policies_say_now(runs, tmp_path):
    output = tmp_path / "both.html"
    words = ["report", *map(str, runs), "--output", str(output), "--episodes", "3"]
    assert main([*words, "--trust_modules", "true"]) == 0
    data, own = data_of(output), data_of(runs[1] / "report.html")
    assert list(data["players"]) == ["one", "two"]
    mine = {player["seed"]: player for player in own["players"]["two"]}
    for player in data["players"]["two"]:  # by the checkpoint, and at the end of the run
        assert player["probabilities"] == mine[player["seed"]]["probabilities"]
        assert player["values"] == mine[player["seed"]]["values"]
    assert "learning_rate" in output.read_text()
    records = [RunRecord.load(folder) for folder in runs]
    assert differing_settings(records) == {"learning_rate": [1e-3, 3e-3]}


def test_what_cannot_be_reported_is_a_sentence(runs, tmp_path):
    for words, problem in (
        ([str(tmp_path)], "there is no metrics.jsonl"),
        ([str(runs[0]), str(runs[0])], "two of the runs have one name, 'one'"),
    ):
        with pytest.raises(UserError, match=problem):
            main(["report", *words])


def test_nothing_that_a_run_holds_ends_the_pages_script(runs, tmp_path):
    folder = tmp_path / "runs" / "</script><script>alert(1)"
    folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "recipe.yaml"):
        (folder / name).write_text((runs[0] / name).read_text())
    output = tmp_path / "page.html"
    main(["report", str(folder), "--output", str(output), "--episodes", "0"])
    assert "<script>alert(1)" not in output.read_text()


def test_episodes_are_chosen_by_where_they_failed():
    played = [
        {"success": stage == "done", "stage": stage}
        for stage in ("none", "none", "near", "done", "none", "done", "done", "done")
    ]
    assert choose_episodes(played, 4) == [0, 2, 3, 5]
    assert choose_episodes(played, 8) == [0, 2, 1, 4, 3, 5, 6, 7]
    assert choose_episodes(played[3:4] * 3, 2) == [0, 1]
    assert choose_episodes(played[:3], 2) == [0, 2]


def test_smoothing_does_not_lean_to_the_first_number():
    assert smoothed([4.0]) == approx([4.0])
    by_hand = (0.7 * 0.3 * 1.0 + 0.3 * 2.0) / (0.7 * 0.3 + 0.3)
    assert smoothed([1.0, 2.0]) == approx([1.0, by_hand])


@pytest.mark.parametrize("options", [{"color_scheme": "dark"}, {"color_scheme": "light"}])
def test_a_person_can_look_through_it(runs, options):
    with browser() as started, page_without_errors(started, **options) as page:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(f"file://{runs[0] / 'report.html'}")
        page.wait_for_selector("#list button")
        assert page.locator(".chart .main-svg").count() > 10
        assert not serious_findings(page)
        place = page.locator("#place")
        assert place.inner_text().startswith("word 1 of")
        page.locator("#scrub").fill("2")
        assert place.inner_text().startswith("word 3 of")
        page.keyboard.press("Escape")
        page.locator("#headline").click()  # out of the slider, whose arrows are its own
        page.keyboard.press("ArrowRight")
        assert place.inner_text().startswith("word 4 of")
        page.keyboard.press("ArrowLeft")
        assert place.inner_text().startswith("word 3 of")
        said = data_of(runs[0] / "report.html")["players"]["one"][0]["said"][2]
        assert page.locator(".bar.said span").first.inner_text() == said
        page.wait_for_function("document.getElementById('film').currentTime > 0.45")
        page.locator("#timeline").click(position={"x": 2, "y": 50})
        assert place.inner_text().startswith("word 1 of")
        page.get_by_role("button", name="failures").click()
        failed = page.locator("#list button").count()
        page.get_by_role("button", name="successes").click()
        solved = page.locator("#list button").count()
        assert failed + solved == 6
        page.get_by_role("button", name="by hours").click()
        assert page.locator("text=hours").count() > 3
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
