"""The README says what the repository holds."""

import json
import re

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_figures_of_the_quick_run_are_those_of_its_results_file():
    result = results("quick")
    first, last = result["evaluations"][0], result["evaluations"][-1]
    count = first["num_eval_episodes"]
    solved = [round(e["success_rate"] * count) for e in (first, last)]
    sentence = (
        f"in {result['seconds'] / 60:.1f} minutes: {solved[0]} of {count} episodes solved before, "
        f"{solved[1]} of {count} after"
    )
    assert sentence in " ".join(README.split())


def test_the_figures_of_the_quick_study_are_those_of_its_results_file():
    found = results("quick_study")
    gain, low, high = (100 * found[key] for key in ("mean_gain", "ci95_low", "ci95_high"))
    sentence = f"gained {gain:.1f} points (95 %: {low:.1f} to {high:.1f})"
    assert sentence in " ".join(README.split())


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
        assert row in README, row
    soak = results("soak")
    growth = (
        f"its memory grew by {100 * soak['rss_growth']:.2f} % and its open files by "
        f"{100 * soak['open_files_growth']:.0f} %"
    )
    assert growth in " ".join(README.split())


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
        assert row in README, row
    text = " ".join(README.split())
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


POOLS = {112: "bench_pool_112", 128: "bench_pool"}


def test_every_recipe_and_launch_configuration_is_in_its_table():
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"[`{path.stem}`](recipes/{path.name})" in README
    for path in (ROOT / "accelerate_configs").glob("*.yaml"):
        assert f"`accelerate_configs/{path.name}`" in README


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).is_file(), link


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z]+)", README))
    assert named <= targets
