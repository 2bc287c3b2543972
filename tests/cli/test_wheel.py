"""The wheel: what it holds, and that it needs no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

LINKS = {"recipes": "**/*.yaml", "prompts": "*.jinja", "accelerate_configs": "*.yaml"}
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist')"
"""What pip calls; without pip, it asks the network for nothing."""

USE = """
import os
import sys

import vlm_agent
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError

print(vlm_agent.__file__)
recipe = vlm_agent.Recipe.load("quick")
print(recipe.prompt.prompt_template, repr(recipe.template.source))
print(*recipe.tracking.report_to)
policy = vlm_agent.VLMPolicy.from_pretrained(recipe.run.init_from)
print(policy.config.model_name_or_path, len(policy.words))

os.environ.pop("OMP_NUM_THREADS", None)
try:
    main(["train", "--config", "quikc"])
except UserError as error:
    print(error)
print(os.environ["OMP_NUM_THREADS"])
print(os.listdir())
main(["init"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that nothing of an earlier build is in it and nothing is left here."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("vlm_agent", "tests", *LINKS):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (built,) = (source / "dist").glob("vlm_agent-*-py3-none-any.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_the_package_and_what_ships_and_nothing_else(wheel: zipfile.ZipFile):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = ROOT / "vlm_agent"
    code = {path.relative_to(ROOT).as_posix(): path for path in package.rglob("*.py")}
    places = [package / "shipped" / "policies", *package.rglob("assets")]
    data = {
        path.relative_to(ROOT).as_posix(): path
        for place in places
        for path in place.rglob("*")
        if path.is_file()
    }
    linked = {
        f"vlm_agent/shipped/{path.relative_to(ROOT)}": path
        for folder, files in LINKS.items()
        for path in (ROOT / folder).glob(files)
    }
    measured = "recipes/results/plan_constants.json"  # what `vlm-agent plan` reads
    expected = code | data | linked | {f"vlm_agent/shipped/{measured}": ROOT / measured}
    assert held == set(expected)
    for name, path in expected.items():
        assert wheel.read(name) == path.read_bytes(), name


def test_in_an_empty_folder_it_finds_recipe_prompt_and_policy(
    wheel: zipfile.ZipFile, tmp_path: Path
):
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    wheel.extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site)}
    said = subprocess.check_output([sys.executable, "-c", USE], cwd=here, env=env, text=True)
    module, prompt, trackers, policy, unknown, threads, left, *init = said.splitlines()
    assert module == str(site / "vlm_agent" / "__init__.py")
    source = (ROOT / "prompts" / "minimal.jinja").read_text()
    assert prompt == f"prompts/minimal.jinja {source!r}"
    assert trackers == "wandb"  # which is a dependency: a bare wheel runs every recipe
    assert policy == "tiny 20"
    assert "did you mean 'quick'" in unknown
    assert threads == str(len(os.sched_getaffinity(0)))
    assert left == "[]"
    assert "wrote recipes/quick.yaml" in init
    assert (here / "prompts" / "default.jinja").is_file()
