"""What a repository has beside its code: workflows, templates, a citation, a list of changes."""

import re

import yaml

import vlm_agent
from tests.conftest import ROOT


def test_the_files_for_the_community_can_be_read():
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == vlm_agent.__version__
    assert f"## {vlm_agent.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    check = (ROOT / ".github" / "workflows" / "check.yml").read_text()
    for command in re.findall(r"^make (\w+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE):
        assert f"make {command}" in check


def test_every_target_has_a_rule():
    text = (ROOT / "Makefile").read_text()
    (names,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    rules = set(re.findall(r"^(\w+):.*\n(?:\t|$)", text, re.MULTILINE))
    assert set(names.split()) <= rules | {"install"}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        told = yaml.safe_load(path.read_text())["jobs"][
            "long" if path.stem == "nightly" else "check"
        ]
        targets = told["strategy"]["matrix"].get("target", [])
        assert {target.split()[0] for target in targets} <= rules
