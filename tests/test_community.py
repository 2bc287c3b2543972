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
