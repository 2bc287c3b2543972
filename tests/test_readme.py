"""The README says what the repository holds."""

import json
import re

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_figures_of_the_quick_run_are_those_of_its_results_file():
    result = json.loads((ROOT / "recipes" / "results" / "quick.json").read_text())
    first, last = result["evaluations"][0], result["evaluations"][-1]
    count = first["num_eval_episodes"]
    solved = [round(e["success_rate"] * count) for e in (first, last)]
    sentence = (
        f"in {result['seconds'] / 60:.1f} minutes: {solved[0]} of {count} episodes solved before, "
        f"{solved[1]} of {count} after"
    )
    assert sentence in " ".join(README.split())


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
