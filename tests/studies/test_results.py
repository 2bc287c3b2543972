"""The study's stages, and the table and picture of docs/results.md that are made of its results."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT
from vlm_agent.common.errors import UserError
from vlm_agent.evaluation.evaluate import Evaluation
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.report.results import (
    BEGIN,
    END,
    SOURCE,
    curves_digest,
    plot_learning_curves,
    results_table,
    write_page,
)
from vlm_agent.studies import quick
from vlm_agent.studies.results import write_results
from vlm_agent.studies.stages import Stage, _note, run_stages
from vlm_agent.studies.study import TEST_EPISODES, Row, Study
from vlm_agent.world.episode import Episode

RESULTS = json.loads((ROOT / "recipes" / "results" / "results.json").read_text())
ROW_KEYS = {
    "policy", "task", "train_seed", "episodes", "success_rate", "ci95_low", "ci95_high",
    "mean_length", "mode", "change",
}  # fmt: skip


def test_the_page_shows_the_results():
    page = (ROOT / "docs/results.md").read_text()
    assert f"{BEGIN}\n{results_table(RESULTS)}\n{END}" in page
    assert ("(pictures/learning.png)" in page) == bool(RESULTS["curves"])
    if RESULTS["curves"]:
        picture = Image.open(ROOT / "docs/pictures/learning.png")
        assert picture.text[SOURCE] == curves_digest(RESULTS["curves"])


def test_the_results_say_what_was_run_and_where():
    assert all(set(row) == ROW_KEYS for row in RESULTS["rows"])
    assert {"commit", "hardware", "hours", "seeds"} <= set(RESULTS)
    assert len(RESULTS["commit"]) == 40
    assert "cores" in RESULTS["hardware"]


def test_every_stage_is_a_command_that_can_be_typed(tmp_path: Path):
    study = Study(tmp_path)
    makes = [stage.makes for stage in (*study.training(), *study.evaluations())]
    assert len(set(makes)) == len(makes)
    for stage in study.training():
        module, *words = stage.command
        words = words[1:] if module == "vlm_agent.cli" else words
        recipe = load_recipe(words)
        assert recipe.run.run_name in str(stage.makes)
        assert recipe.run.output_dir == str(tmp_path)


def saying(path: Path) -> Stage:
    """A stage that writes down its arguments, unless it is to fail first."""
    code = (
        "import pathlib, sys\n"
        f"path = pathlib.Path({str(path)!r})\n"
        "if path.with_name('fail').exists(): sys.exit(3)\n"
        "path.write_text(str(sys.argv[1:]))"
    )
    (path.parent / f"{path.name}_stage.py").write_text(code)
    return Stage(path.name, (f"{path.name}_stage",), path, anew=("anew",), go_on=("go on",))


def run(stages: Sequence[Stage], folder: Path, only: Sequence[str] = ()) -> dict[str, float]:
    """Run stages from the folder where their modules are."""
    with contextlib.chdir(folder):
        return run_stages(stages, folder, only)


def test_stages_that_are_done_are_not_run_again(tmp_path: Path):
    stages = [saying(tmp_path / "a"), saying(tmp_path / "b")]
    run(stages[:1], tmp_path)
    stages[0].makes.write_text("made before")
    assert set(run(stages, tmp_path)) == {"a", "b"}
    assert stages[0].makes.read_text() == "made before"
    assert stages[1].makes.exists()
    assert set(json.loads((tmp_path / "hours.json").read_text())) == {"a", "b"}


def test_stages_can_be_run_by_several_commands(tmp_path: Path):
    first, second, third = (saying(tmp_path / name) for name in "abc")
    stages = [first, dataclasses.replace(second, needs=("a",)), third]
    with pytest.raises(UserError, match="b needs 'a', which has not been run"):
        run(stages, tmp_path, only=["b"])
    with pytest.raises(UserError, match="unknown stage 'd'"):
        run(stages, tmp_path, only=["d"])
    assert set(run(stages, tmp_path, only=["c"])) == {"c"}
    assert not first.makes.exists()
    assert set(run(stages, tmp_path, only=["a"])) == {"a", "c"}
    assert set(run(stages, tmp_path, only=["b"])) == {"a", "b", "c"}
    assert set(run(stages, tmp_path)) == {"a", "b", "c"}
    assert not list(tmp_path.glob("*.partial"))


def test_what_was_made_otherwise_is_not_taken_for_a_stages_work(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seed: 1  # a comment\n")
    first, second, third = (saying(tmp_path / name) for name in "abc")
    first = dataclasses.replace(first, command=(*first.command, "--config", str(recipe)))
    second = dataclasses.replace(second, needs=("a",), folder=tmp_path / "folder")
    stages = [first, second, third]
    run(stages, tmp_path)
    recipe.write_text("seed: 1  # another\n")
    run(stages, tmp_path)

    recipe.write_text("seed: 2\n")
    was_another = "its recipe, or one before it, was another"
    with pytest.raises(UserError) as error:
        run(stages, tmp_path)
    assert str(error.value).splitlines() == [
        "delete what is to be made again:",
        f"  {first.makes}: {was_another}",
        f"  {tmp_path / 'folder'}: {was_another}",
    ]
    first.makes.unlink()
    with pytest.raises(UserError, match=was_another):
        run(stages, tmp_path)
    assert not first.makes.exists()
    second.makes.unlink()
    run(stages, tmp_path)
    # What does not matter to a stage may change, and so may the place of all that is made.
    seed_only = [dataclasses.replace(first, settings=frozenset({"seed"}))]
    seed_only[0].makes.unlink()
    run(seed_only, tmp_path)
    recipe.write_text("seed: 2\ngamma: 1.0\n")
    run(seed_only, tmp_path)
    (tmp_path / "stages.json").unlink()
    with pytest.raises(UserError, match=f"{third.makes}: nothing says what made it"):
        run(stages, tmp_path)


def test_a_stopped_stage_goes_on_only_as_it_was_begun(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seed: 1\n")
    stage = saying(tmp_path / "a")
    stage = dataclasses.replace(stage, command=(*stage.command, str(recipe)))
    fails = tmp_path / "fail"

    def attempt(is_stopped: bool = False) -> str:
        if is_stopped:
            fails.touch()
            with pytest.raises(UserError, match=r"a failed \(exit code 3\)"):
                run([stage], tmp_path)
            fails.unlink()
            return ""
        run([stage], tmp_path)
        said = stage.makes.read_text()
        stage.makes.unlink()
        return said

    assert "'anew'" in attempt()
    assert "'anew'" in attempt()  # it had come to its end, and then been deleted
    attempt(is_stopped=True)
    assert "'go on'" in attempt()
    attempt(is_stopped=True)
    recipe.write_text("seed: 2\n")
    assert "'anew'" in attempt()


def test_the_stages_need_each_other_as_their_commands_say(tmp_path: Path):
    study = Study(tmp_path)
    stages = [*study.training(), *study.evaluations()]
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    for stage in stages:
        assert set(stage.needs) <= set(names[: names.index(stage.name)])
        read = {w for w in stage.command if w.startswith(f"{tmp_path}/")} - {str(stage.makes)}
        made_by_itself = {str(stage.folder)} & read
        assert len(read - made_by_itself) == len(stage.needs)
        for path in read - made_by_itself:
            name = Path(path).name.removesuffix("_best").removesuffix("_final")
            assert name in [need.partition(": ")[2] for need in stage.needs]


def test_ppo_goes_on_at_a_checkpoint_if_there_is_one(tmp_path: Path):
    (stage,) = [s for s in Study(tmp_path).training() if s.name == "PPO: best_0"]
    anew, go_on = ("--overwrite", "true"), ("--resume_from", "latest")
    assert stage.further(tmp_path, is_begun=True) == anew
    (tmp_path / "checkpoints" / "best_0_step20480.partial").mkdir(parents=True)
    assert stage.further(tmp_path, is_begun=True) == anew
    (tmp_path / "checkpoints" / "best_0_step20480").mkdir()  # by whatever command
    assert stage.further(tmp_path, is_begun=True) == go_on
    assert stage.further(tmp_path, is_begun=False) == anew


def test_a_stage_is_run_by_one_command_at_a_time(tmp_path: Path):
    stage = saying(tmp_path / "a")
    (tmp_path / "a_stage.py").write_text(
        "import pathlib, sys\n"
        "from vlm_agent.studies.stages import Stage, UserError, run_stages\n"
        f"path, folder = pathlib.Path({str(stage.makes)!r}), pathlib.Path({str(tmp_path)!r})\n"
        "stage = Stage('a', ('a_stage',), path, anew=('anew',), go_on=('go on',))\n"
        "inner = folder / 'inner'\n"
        "if inner.exists(): sys.exit('was run twice')\n"
        "inner.touch()\n"
        "try: run_stages([stage], folder)\n"
        "except UserError as error: path.write_text(str(error))"
    )
    run([stage], tmp_path)
    assert stage.makes.read_text() == "a is being run by another command"
    assert json.loads((tmp_path / "stages.json").read_text())["a"]["done"]


def test_what_several_commands_note_at_once_is_kept(tmp_path: Path):
    path = tmp_path / "hours.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: _note(path, str(n), n), range(64)))
    assert json.loads(path.read_text()) == {str(n): n for n in range(64)}


def test_a_stage_that_makes_nothing_has_failed(tmp_path: Path):
    with pytest.raises(UserError, match="nothing failed"):
        run_stages([Stage("nothing", ("this",), tmp_path / "x")], tmp_path)


def evaluation(path: Path, name: str, solved: int) -> None:
    episodes = tuple(Episode(n, (0,) * 9, success=n < solved) for n in range(10))
    about = {"policy": name, "split": "test"}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(Evaluation(episodes, ("a",), about).to_dict()))


class StudyOf(Study):
    """A study of these rows alone."""

    def __init__(self, folder: Path, rows: Iterable[Row]) -> None:
        super().__init__(folder)
        self.own_rows = tuple(rows)

    def rows(self) -> Iterator[Row]:
        yield from self.own_rows


def test_results_from_evaluations_to_the_page(tmp_path: Path):
    start = Row("starter policy", "s", train_seed=0)
    learnt = Row("PPO from the starter policy", "full_tiny_0_best", train_seed=1)
    dark = Row(learnt.label, "b", train_seed=1, change=("--light", "0.6"))
    first = (start, learnt, dark)
    for row, solved in ((start, 2), (learnt, 9), (dark, 5)):
        evaluation(tmp_path / "evaluations" / row.file, row.label, solved)
    run = tmp_path / "runs" / "full_tiny_0" / "summary.json"
    run.parent.mkdir(parents=True)
    points = [
        {"timesteps": t, "success_rate": r, "ci95_low": r / 2, "ci95_high": 1.0}
        | {"num_eval_episodes": 7}
        for t, r in ((0, 0.2), (100, 0.8))
    ]
    run.write_text(json.dumps({"run_name": "full_tiny_0", "seconds": 3600, "evaluations": points}))
    lines = [json.dumps({"timesteps": t, "curriculum_share": t / 200}) for t in (50, 100)]
    (run.parent / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "hours.json").write_text('{"PPO: full_tiny_0": 1.0, "another study": 1.0}')
    output = tmp_path / "results.json"
    write_results(StudyOf(tmp_path, first), output)
    lift = Row("starter policy", "s", "Lift", train_seed=0)
    lifts = Row("PPO from the starter policy", "p", "Lift", train_seed=1)
    evaluation(tmp_path / "evaluations" / lift.file, "lift", 4)
    evaluation(tmp_path / "evaluations" / lifts.file, "lifts", 10)
    rows = (start, learnt, dark, lift, lifts)
    write_results(StudyOf(tmp_path, rows), tmp_path / "more.json")
    more = json.loads((tmp_path / "more.json").read_text())
    written = json.loads(output.read_text())
    assert written["hours"] == {"PPO: full_tiny_0": 1.0}
    # Each with the start of the same task, also where a file is written a second time.
    assert more["comparisons"][:1] == written["comparisons"]
    write_results(StudyOf(tmp_path, rows), tmp_path / "more.json")
    assert json.loads((tmp_path / "more.json").read_text())["comparisons"] == more["comparisons"]
    assert ["+70.0 points" in line for line in results_table(more).splitlines()].count(True) == 1
    assert ["+60.0 points" in line for line in results_table(more).splitlines()].count(True) == 1
    assert [row["success_rate"] for row in written["rows"]] == [0.2, 0.9, 0.5]
    assert written["rows"][2]["change"] == "light at 60 %"
    (compared,) = written["comparisons"]
    assert (compared["train_seed"], compared["only_this"], compared["only_first"]) == (1, 7, 0)
    assert compared["p_value"] == pytest.approx(2 / 2**7)
    _the_rest_stays(tmp_path, output, written, rows)
    page = tmp_path / "results.md"
    page.write_text(f"before {BEGIN} old {END} after")
    write_page(written, page)
    write_page(written, page)
    text = page.read_text()
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert "+70.0 points, p = 0.02" in text
    assert "| light at 60 % | 50.0 % (5 of 10) |" in text
    assert "old" not in text
    plot_learning_curves(written, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").text[SOURCE] == curves_digest(written["curves"])
    (curve,) = written["curves"]
    assert curve["success_rate"] == [0.2, 0.8]
    assert curve["curriculum_share"] == 0.5
    about = (curve["policy"], curve["task"], curve["train_seed"], curve["episodes"])
    assert about == (learnt.label, "PickPlaceCan", 1, 7)


def _the_rest_stays(folder: Path, output: Path, written: dict, rows: Sequence[Row]) -> None:
    """A study that has made only one row anew leaves the others as they were.

    If it came out as before, or was none of the two that were compared, the comparison stays too.
    """
    again, _, dark, *_ = rows
    new = folder / "new"
    new.mkdir()
    evaluation(new / "evaluations" / again.file, again.label, 2)
    write_results(StudyOf(new, rows), output)
    assert json.loads(output.read_text()) == written
    evaluation(new / "evaluations" / dark.file, dark.label, 6)
    write_results(StudyOf(new, rows), output)
    merged = json.loads(output.read_text())
    assert merged["rows"][2]["success_rate"] == 0.6
    assert merged["comparisons"] == written["comparisons"]
    evaluation(new / "evaluations" / dark.file, dark.label, 5)
    evaluation(new / "evaluations" / again.file, again.label, 3)
    write_results(StudyOf(new, rows), output)
    merged = json.loads(output.read_text())
    assert merged["rows"][0] == written["rows"][0] | {
        "success_rate": 0.3,
        "ci95_low": pytest.approx(0.108, abs=1e-3),
        "ci95_high": pytest.approx(0.603, abs=1e-3),
    }
    assert merged["rows"][1:] == written["rows"][1:]
    assert merged["comparisons"] == []
    for key in ("hours", "curves"):
        assert merged[key] == written[key]
    of_another_study = {"task": "Wipe", "run": "of another study"}
    for key in ("rows", "comparisons", "curves"):
        written[key].append(written[key][0] | of_another_study)
    output.write_text(json.dumps(written))
    for key in ("rows", "comparisons", "curves"):
        written[key].pop()
    write_results(StudyOf(folder / "nothing new", rows), output)
    assert json.loads(output.read_text()) == written


def test_names_of_evaluations_differ():
    files = [row.file for row in Study(Path("x")).rows()]
    assert len(set(files)) == len(files)
    assert not any(" " in file or "/" in file for file in files)
    assert TEST_EPISODES == 200


def test_the_quick_study_says_what_it_brings(tmp_path: Path):
    """Of ten episodes six are solved before, and 7, 7, 8, 8 and 5 after."""
    (tmp_path / "evaluations").mkdir()
    study = quick.QuickStudy(tmp_path)
    for seed, solved in zip(quick.SEEDS, (7, 7, 8, 8, 5), strict=True):
        evaluation(study.before(seed), "beginner", 6)
        evaluation(study.after(seed), "quick", solved)
    found = quick.write_results(study, tmp_path / "study.json")
    assert found["before"] == [0.6] * 5
    assert found["after"] == [0.7, 0.7, 0.8, 0.8, 0.5]
    assert found["mean_gain"] == pytest.approx(0.1)
    # t(4) at 97.5 % is 2.776; the gains' standard deviation is sqrt(0.015).
    half = 2.7764 * (0.015 / 5) ** 0.5
    assert found["ci95_low"] == pytest.approx(0.1 - half, abs=1e-4)
    assert found["ci95_high"] == pytest.approx(0.1 + half, abs=1e-4)
    assert (found["only_before"], found["only_after"]) == (1, 6)
    assert found["p_value"] == pytest.approx(2 * (1 + 7) / 2**7)
    assert json.loads((tmp_path / "study.json").read_text()) == found


def test_the_quick_study_trains_as_users_do_but_for_the_evaluations(tmp_path: Path):
    stages = list(quick.QuickStudy(tmp_path).stages())
    assert len({stage.makes for stage in stages}) == len(stages)
    trainings = [stage for stage in stages if stage.command[0] == "vlm_agent.train"]
    shipped = load_recipe(["--config", "recipes/quick.yaml"])
    for stage in trainings:
        recipe = load_recipe(stage.command[1:])
        assert recipe.run.total_timesteps == shipped.run.total_timesteps == 2000
        assert recipe.run.run_name in str(stage.makes)
        (after,) = [s for s in stages if f"{recipe.run.run_name}_step2000" in str(s.command)]
        assert after.command[after.command.index("--seed") + 1] == str(recipe.run.seed)
    assert len(trainings) == len(quick.SEEDS)
    assert shipped.run.init_from == quick.START
