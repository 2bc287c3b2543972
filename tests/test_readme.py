"""README and pages say what the repository holds."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlm_agent.cli.main import make_parser
from vlm_agent.recipe.keys import key_types
from vlm_agent.recipe.reference import keys_page

DOCS = ROOT / "docs"
README, SPEED, RECIPES, RESULTS = (
    (ROOT / name).read_text()
    for name in ("README.md", "docs/speed.md", "docs/recipes.md", "docs/results.md")
)
FIRST_RUN = (DOCS / "first-run.md").read_text()


def test_figures_of_the_quick_run_are_those_of_its_results_file():
    result = results("quick")
    first, last = result["evaluations"][0], result["evaluations"][-1]
    count = first["num_eval_episodes"]
    solved = [round(e["success_rate"] * count) for e in (first, last)]
    sentence = (
        f"in {result['seconds'] / 60:.1f} minutes: {solved[0]} of {count} episodes solved before, "
        f"{solved[1]} of {count} after"
    )
    for page in (README, FIRST_RUN):
        assert sentence in " ".join(page.split())


def test_the_figures_of_the_quick_study_are_those_of_its_results_file():
    found = results("quick_study")
    gain, low, high = (100 * found[key] for key in ("mean_gain", "ci95_low", "ci95_high"))
    sentence = f"gained {gain:.1f} points (95 %: {low:.1f} to {high:.1f})"
    for page in (README, FIRST_RUN):
        assert sentence in " ".join(page.split())


def test_the_readmes_table_is_of_rows_of_the_results():
    found = {
        (row["policy"], row["task"], row["train_seed"]): row
        for row in results("results")["rows"]
        if row["mode"] == "greedy" and row["change"] == "none"
    }
    took = results("results")["hours"]
    rows = re.findall(
        r"^\| (.+?) \| ([\d.]+ %) \| ([\d.–]+) \| ([\d.]+) \| ?([\d.]*)", README, re.MULTILINE
    )
    for (_, *told, hours), (key, stages) in zip(rows, SHOWN.items(), strict=True):
        row = found[key]
        success, low, high = (100 * row[k] for k in ("success_rate", "ci95_low", "ci95_high"))
        assert told == [f"{success:.1f} %", f"{low:.1f}–{high:.1f}", f"{row['mean_length']:.1f}"]
        assert hours == (f"{sum(took[stage] for stage in stages):.1f}" if stages else "")


SHOWN = {
    ("scripted expert", "PickPlaceCan", None): [],
    ("untrained model", "PickPlaceCan", None): [],
    ("starter policy", "PickPlaceCan", 0): ["warm start: starter"],
    ("PPO from the starter policy", "PickPlaceCan", 0): ["PPO: full_tiny_0"],
    ("warm start", "PickPlaceCan", 0): ["warm start: warm_start"],
    ("PPO from the warm start", "Lift", 0): ["warm start: lift_warm_start", "PPO: lift_best_0"],
}
"""Rows of the README, and what made them, besides the demonstrations."""


def test_the_readme_is_for_the_first_ten_minutes():
    assert len(README.splitlines()) < 200


def results(name: str) -> dict:
    return json.loads((ROOT / "recipes" / "results" / f"{name}.json").read_text())


def test_the_table_of_the_robots_world_is_that_of_the_results_files():
    camera, env, control, pool = (
        results(f"bench_{name}") for name in ("camera", "env", "control", "pool")
    )
    rows = [
        f"| a frame, `camera: exact`: equal in all {camera['states']} states | "
        f"{camera['stock_ms']:.1f} ms | {camera['exact_ms']:.1f} ms | "
        f"{camera['speedup_exact']:.1f} |",
        f"| a frame, `camera: fast`: {camera['mean_abs_diff_fast']:.2f} of 255 away on average | "
        f"{camera['stock_ms']:.1f} ms | {camera['fast_ms']:.1f} ms | "
        f"{camera['speedup_fast']:.1f} |",
        f"| words with a frame, per second | {env['stock_words_per_s']:.1f} | "
        f"{env['ours_words_per_s']:.1f} | {env['speedup']:.1f} |",
        f"| the same against bare physics and a frame | {env['floor_words_per_s']:.1f} | "
        f"{env['ours_words_per_s']:.1f} | {env['of_physics_floor']:.2f} |",
        f"| scripted expert, controller at 500 and 100 Hz: solved of {control['episodes']} | "
        f"{control['stock_successes']} | {control['ours_successes']} | |",
        f"| … and its words per episode | {control['stock_mean_length']:.1f} | "
        f"{control['ours_mean_length']:.1f} | |",
        f"| simulation, words per second with 1 and 2 workers | "
        f"{pool['words_per_s_1_worker']:.0f} | {pool['words_per_s_2_workers']:.0f} | "
        f"{pool['scaling']:.2f} |",
        f"| share of both cores in use during rollouts of the tiny policy | | "
        f"{pool['cpu_utilisation']:.2f} | |",
    ]
    assert camera["max_abs_diff_exact"] == 0
    for row in rows:
        assert row in SPEED, row
    ratios = (
        f"{camera['speedup_fast']:.1f} times as fast as stock robosuite's, "
        f"words {env['speedup']:.1f}"
    )
    assert ratios in " ".join(README.split())
    soak = results("soak")
    growth = (
        f"its memory grew by {100 * soak['rss_growth']:.2f} % and its open files by "
        f"{100 * soak['open_files_growth']:.0f} %"
    )
    assert growth in " ".join(SPEED.split())


def test_the_table_of_the_policys_costs_is_that_of_the_results_files():
    scoring, update = results("bench_scoring"), results("bench_update")
    rows = [
        f"| `first_token` | {scoring['overhead_vs_backbone']:.2f} |",
        f"| whole phrases over `first_token`: `phrase_sum` | {scoring['phrase_overhead']:.2f} |",
        f"| … `phrase_word` | {scoring['phrase_word_overhead']:.2f} |",
        "| eight sequences a picture, with the whole vocabulary's scores | "
        f"{scoring['speedup_vs_phrases']:.0f} |",
        f"| `generate` of the word | {scoring['speedup_vs_generate']:.1f} |",
        "| with recomputed vision and whole-vocabulary scores of all positions | "
        f"{update['speedup_vs_naive']:.1f} |",
        f"| with recomputed vision only | {update['speedup_vs_recomputed_vision']:.1f} |",
        f"| … and their peak memory is so much of it | | {update['peak_memory_ratio']:.2f} |",
    ]
    for row in rows:
        assert row in SPEED, row
    text = " ".join(SPEED.split())
    own = [
        f"{scoring['overhead_vs_backbone_own_vocabulary']:.2f}",
        f"{scoring['phrase_overhead_own_vocabulary']:.2f}",
        f"{scoring['phrase_word_overhead_own_vocabulary']:.2f}",
        f"{scoring['speedup_vs_phrases_own_vocabulary']:.1f}",
    ]
    last = f"{scoring['speedup_vs_generate_own_vocabulary']:.1f}"
    assert f"the same figures are {', '.join(own)} and {last}:" in text
    assert f"{scoring['vocabulary']:,} tokens" in text
    frames = {size: results(name)["frames_share"] for size, name in POOLS.items()}
    assert f"takes {100 * frames[112]:.1f} % of a rollout's time at 112 px" in text
    assert f"and {100 * frames[128]:.0f} % at 128 px" in text


def test_the_tables_of_deep_models_and_whole_iterations_are_those_of_the_results_files():
    scoring, update, loop = map(results, ("bench_scoring_deep", "bench_update_deep", "bench_loop"))
    told = [
        f"computed once per batch | {scoring['speedup_prefix']:.2f} |",
        f"four epochs of LoRA, the same | {update['speedup_prefix']:.2f} |",
        f"kept from the rollout | {update['speedup_trunk']:.2f} |",
        f"against neither and all layers trained | {update['speedup_both']:.2f} |",
        f"and its peak memory | {update['peak_memory_ratio_both']:.2f} |",
        f"at most {update['max_score_diff']:.0e} of their size",
        f"gradients by {update['max_gradient_diff']:.0e} (",
        f"| faster than the plain way | {loop['speedup']:.1f} |",
        f"against one with one | {loop['scaling_2proc']:.2f} |",
        f"waits for the other | {100 * loop['waiting_share']:.1f} % |",
        f"has a core of its own | {loop['async_speedup']:.2f} |",
        f"no core to spare | {loop['async_speedup_2proc']:.2f} |",
    ]
    for line in told:
        assert line in SPEED, line


POOLS = {112: "bench_pool_112", 128: "bench_pool"}


def test_every_recipe_and_launch_configuration_is_in_its_table():
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"[`{path.stem}`](../recipes/{path.name})" in RECIPES
    for path in (ROOT / "accelerate_configs").glob("*.yaml"):
        assert f"`accelerate_configs/{path.name}`" in RECIPES


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_exists(path: Path):
    text = path.read_text()
    for link in re.findall(r"\]\((?!http|#)([^)#\s]+)", text):
        assert (path.parent / link).exists(), link
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)|^make ([a-z]+)", text, re.MULTILINE)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }
    for line in shell_lines(text):
        check_command(line)


def shell_lines(text: str) -> list[str]:
    """Commands of a page's shell blocks, whole, without comments."""
    blocks = re.findall(r"^```(?:bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"&&|;", line.split(" #")[0])]
    return [part.strip() for part in parts if part.strip()]


def check_command(line: str) -> None:
    """Each command of ours takes the options that it is given."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["accelerate", "launch"]:
        module = next((word for word in words if word.startswith("vlm_agent.")), None)
        if module is None:
            return
        words = [module.replace("vlm_agent.", "vlm-agent "), *words[words.index(module) + 1 :]]
        words = [*words[0].split(), *words[1:]]
    if words[:1] != ["vlm-agent"] or "\N{HORIZONTAL ELLIPSIS}" in line:
        return
    arguments, rest = make_parser().parse_known_args(words[1:])
    options = [word.removeprefix("--").split("=")[0] for word in rest if word.startswith("--")]
    assert not rest or arguments.takes_recipe, line
    assert set(options) <= {"config", *key_types()}, line


def test_the_page_of_keys_is_that_of_the_code():
    assert (DOCS / "keys.md").read_text() == keys_page(), "vlm-agent keys --output docs/keys.md"


def test_the_site_is_built_without_a_warning(tmp_path: Path):
    """A link that leads nowhere, or to no anchor, and a page that is in no menu: each is one."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "from_pretrained" in (tmp_path / "api.html").read_text()
    assert (tmp_path / "files/recipes/quick.yaml").read_text()
