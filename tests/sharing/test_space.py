"""A Space: a folder that needs nothing but its packages, and serves the page to everybody."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from huggingface_hub import RepoCard
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.own_world import SMALL, own_world
from tests.short_runs import fresh_policy
from vlm_agent import Recipe
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "can"
    assert main(["space", "beginner", "someone/can", "--output", str(folder)]) == 0
    return folder


def test_it_holds_the_policy_the_package_and_what_runs_them(space: Path):
    assert (space / "policy/model.safetensors").is_file()
    assert not list(space.glob("vlm_agent/shipped/policies/*"))  # one policy is enough
    assert not [path for path in space.rglob("*") if path.is_symlink()]
    lines = (space / "requirements.txt").read_text().splitlines()
    assert {"robosuite==1.5.2", "torch==2.13.0"} <= set(lines)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines[1:])
    card = RepoCard.load(space / "README.md")
    assert (card.data["sdk"], card.data["app_port"], card.data["title"]) == ("docker", 7860, "can")
    assert "PickPlaceCan" in card.text
    size = sum(path.stat().st_size for path in space.rglob("*") if path.is_file())
    assert size < 12e6


@pytest.fixture
def served(space: Path) -> Iterator[int]:
    """The port of what the Dockerfile starts, in a process that knows no other package."""
    (command,) = re.findall(r"^CMD (.+)$", (space / "Dockerfile").read_text(), re.MULTILINE)
    *_, line = json.loads(command)
    with socket.socket() as place:
        place.bind(("", 0))
        port = place.getsockname()[1]
    line = line.replace("exec python", sys.executable).replace("7860", str(port))
    environ = {**os.environ, "SPACE_HOST": "someone-can.hf.space"}
    environ.pop("PYTHONPATH", None)
    server = subprocess.Popen(["sh", "-c", f"exec {line}"], cwd=space, env=environ)
    yield port
    server.terminate()
    server.wait(30)


def test_everybody_may_play_who_asks_for_its_name(served: int):
    url, own = f"http://127.0.0.1:{served}", {"Host": "someone-can.hf.space"}
    for _ in range(120):
        try:
            page = requests.get(url, headers=own, timeout=5)
            break
        except requests.ConnectionError:
            time.sleep(0.5)
    assert page.status_code == 200
    assert requests.get(url, timeout=5).status_code == 400
    talk = f"ws://127.0.0.1:{served}/talk"
    with pytest.raises(InvalidStatus):
        connect(talk, origin="http://evil.example", additional_headers=own)
    origin = "https://someone-can.hf.space"
    line = socket.create_connection(("127.0.0.1", served))
    with connect("ws://someone-can.hf.space/talk", sock=line, origin=origin) as tab:
        state = json.loads(tab.recv(timeout=60))
        tab.send(json.dumps({"do": "save"}))
        told = iter(lambda: json.loads(tab.recv(timeout=60)), None)
        problem = next(one["error"] for one in told if "error" in one)
    assert len(state["probabilities"]) == 20
    assert "nothing can be saved" in problem


def test_what_cannot_be_a_space_is_refused(tmp_path: Path):
    with own_world(tmp_path) as world:
        policy = fresh_policy(Recipe.load(world, **SMALL))
        policy.recipe = Recipe.load(world, **SMALL).to_dict()
        policy.save_pretrained(tmp_path / "policy")
        told = ["space", str(tmp_path / "policy"), "someone/corridor", "--output"]
        with pytest.raises(UserError, match="code of yours, which it lacks: corridor"):
            main([*told, str(tmp_path / "space")])
    with pytest.raises(UserError, match="'can': expected USER/NAME"):
        main(["space", "beginner", "can", "--output", str(tmp_path / "space")])
    with pytest.raises(UserError, match="is there already"):
        main(["space", "beginner", "someone/can", "--output", str(tmp_path)])
    assert not (tmp_path / "space").exists()
