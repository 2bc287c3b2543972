"""A person, a policy and a world at one table: by its verbs, its messages, and in a browser."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.browser import browser, page_without_errors, serious_findings
from tests.own_world import own_world
from tests.short_runs import fresh_policy
from vlm_agent import Recipe
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import episode_seed
from vlm_agent.demonstrations.reading import read_demonstrations, read_episodes
from vlm_agent.play.server import HERE, Door, make_app
from vlm_agent.play.session import PlaySession, Table
from vlm_agent.policy.decisions import act
from vlm_agent.recipe.recipe import make_recipe
from vlm_agent.runs.reporting import mind_of
from vlm_agent.world.observations import Observations

INSTRUCTED = "{{ image }} {{ task }} {{ side }} {{ moves }} {{ last_action }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("play")
    with own_world(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        yield folder


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    own = {"frame_size": 28, "demonstrations": str(tmp_path / "saved")}
    return Recipe.load(folder / "corridor.yaml", **own)


@pytest.fixture
def table(recipe: Recipe) -> Table:
    policy = fresh_policy(recipe).eval()
    return Table(policy, recipe.env, recipe.ppo.gamma, recipe, mind_of)


@pytest.fixture
def session(table: Table) -> Iterator[PlaySession]:
    session = PlaySession(table)
    yield session
    session.close()


def expert(session: PlaySession) -> int:
    return session.env.world.expert().act()


def test_the_policy_is_asked_at_every_moment_and_says_what_it_finds_most_probable(session, table):
    for _ in range(3):
        shown = session.state()
        observation = Observations.stack([session._now])
        decided = act(table.policy, observation)
        assert shown["probabilities"] == np.round(decided.probs[0], 4).tolist()
        assert shown["prompt"] == table.policy.encoder.prompt(session._now.facts.tolist())
        session.advance()
        said = session.state()["said"][-1]
        assert said["word"] == table.policy.words[int(decided.actions[0])]
        assert said["by"] == "policy"
    session.say(4)
    assert session.state()["said"][-1]["by"] == "you"


def test_what_a_person_said_is_a_demonstration_that_a_warm_start_reads(session, recipe, folder):
    session.begin()  # the first is left out
    said = []
    while not session.is_over:
        with pytest.raises(UserError, match="of solved episodes: this one is not"):
            session.save()
        said.append(expert(session))
        session.say(said[-1])
    session.save()
    assert "--num_demo_episodes 2" in session.state()["notice"]
    with pytest.raises(UserError, match="saved already"):
        session.save()
    wanted = make_recipe(recipe.to_dict() | {"num_demo_episodes": 2}, [folder])
    (episode,) = read_episodes(wanted)
    assert episode.seed == episode_seed("train", recipe.run.seed, "demo", 1)
    assert list(episode.actions) == said
    read = read_demonstrations(wanted)
    assert read.actions.tolist() == said
    assert np.array_equal(read.observations.facts, np.stack([o.facts for o in session._seen]))
    with pytest.raises(UserError, match="the episode is over"):
        session.say(0)
    session.begin(0)
    while not session.is_over:
        session.say(expert(session))
    with pytest.raises(UserError, match="is beyond episode 0"):
        session.save()


def test_another_prompt_changes_the_scores_and_nothing_of_the_policy(session, table):
    before = session.state()
    session.set_prompt(INSTRUCTED + " Please.")
    other = session.state()
    assert other["prompt"].count("Please.") == 1 and other["own_prompt"]
    assert other["probabilities"] != before["probabilities"]
    session.set_prompt(INSTRUCTED, "Go to the moon.")
    asked = session.state()
    assert "Go to the moon." in asked["prompt"]
    assert asked["probabilities"] != before["probabilities"]
    with pytest.raises(UserError, match="sied"):
        session.set_prompt("{{ image }} {{ sied }}")
    assert "Go to the moon." in session.state()["prompt"]
    session.set_prompt(INSTRUCTED)
    again = session.state()
    assert again["probabilities"] == before["probabilities"] and not again["own_prompt"]
    assert PlaySession(table).state()["probabilities"] == before["probabilities"]


OWN = {"origin": "http://127.0.0.1:7860", "host": "127.0.0.1:7860"}


def test_only_its_own_page_may_talk_to_it(table):
    client = TestClient(make_app(table, "play"), base_url="http://127.0.0.1:7860")
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": "evil.example:7860"}).status_code == 400
    strangers = (
        {"origin": "http://evil.example", "host": "127.0.0.1:7860"},
        {"origin": "http://127.0.0.1:9999", "host": "127.0.0.1:7860"},
        {"host": "127.0.0.1:7860"},
        {"origin": "http://evil.example:7860", "host": "evil.example:7860"},
    )
    for headers in strangers:
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/talk", headers=headers),
        ):
            pass
    with client.websocket_connect("/talk", headers=OWN) as tab:
        assert tab.receive_json()["said"] == []
        assert tab.receive_json()["scene"]


def test_a_public_page_is_for_whoever_asks_for_its_host(table):
    door = Door.public("you-can.hf.space")
    client = TestClient(make_app(table, "play", door), base_url="https://you-can.hf.space")
    assert client.get("/", headers={"host": "127.0.0.1"}).status_code == 400
    page = client.get("/")
    assert page.headers["content-security-policy"] == "frame-ancestors https://huggingface.co"
    own = {"origin": "https://you-can.hf.space", "host": "you-can.hf.space"}
    for stranger in (OWN, own | {"origin": "https://evil.example"}, {"host": own["host"]}):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/talk", headers=stranger),
        ):
            pass
    with client.websocket_connect("/talk", headers=own) as tab:
        assert tab.receive_json()["said"] == []


def test_a_tab_that_says_nothing_for_long_gives_its_world_back(table):
    door = replace(Door.public("You-Can.hf.space:443"), idle_s=0.2)
    assert door.hosts == ("you-can.hf.space",)
    client = TestClient(make_app(table, "play", door), base_url="https://you-can.hf.space")
    own = {"origin": "https://you-can.hf.space", "host": "you-can.hf.space"}
    with client.websocket_connect("/talk", headers=own) as tab:
        told = iter(tab.receive_json, None)
        assert "nothing was said" in next(one["error"] for one in told if "error" in one)
    for name in ("", "*", "a b"):
        with pytest.raises(UserError, match="expected a host's name"):
            Door.public(name)


def test_messages_that_nobody_would_send_are_answered(table):
    client = TestClient(make_app(table, "play"), base_url="http://127.0.0.1:7860")
    with client.websocket_connect("/talk", headers=OWN) as tab:
        tab.receive_json()
        tab.receive_json()  # the scene
        for text, problem in (
            ("{", "cannot be read"),
            ("[]", "cannot be read"),
            ('{"do": "dance"}', "nobody knows what 'dance' is"),
            ('{"do": "say", "word": "jump"}', "jump"),
            ('{"do": "say"}', "cannot be read"),
            ('{"do": "begin", "number": -1}', "number"),
            ('{"do": "prompt", "template": 3}', "cannot be read"),
            ('{"do": "prompt", "template": "no picture"}', "image"),
            ('{"do": "prompt", "template": "' + "x" * 200_000 + '"}', "a message of more than"),
        ):
            tab.send_text(text)
            assert problem in tab.receive_json()["error"], text
            assert tab.receive_json()["scene"]
        tab.send_text('{"do": "say", "word": "left"}')
        assert [one["word"] for one in tab.receive_json()["said"]] == ["left"]


@pytest.fixture
def address(table) -> Iterator[str]:
    """A server in a thread."""
    place = HERE.open_port(0)
    server = uvicorn.Server(uvicorn.Config(make_app(table, "corridor"), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    yield f"http://127.0.0.1:{place.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def test_a_person_plays(address: str):
    with browser() as started, page_without_errors(started) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        page.goto(address)
        page.wait_for_selector("main:not([hidden])")
        assert not serious_findings(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        said = page.locator("#said li")
        shares = page.locator(".share").all_inner_texts()
        page.locator("[data-word='stay']").click()
        page.wait_for_function("document.querySelectorAll('#said li').length == 1")
        page.locator("#template").fill("{{ image }} {{ task }} what now?")
        page.locator("#apply").click()
        page.wait_for_function("document.getElementById('prompt').textContent.includes('now?')")
        assert page.locator(".share").all_inner_texts() != shares
        page.locator("#template").fill("{{ image }} {{ sied }}")
        page.locator("#apply").click()
        page.wait_for_function("document.getElementById('problem').textContent.includes('sied')")
        page.locator("#restore").click()
        page.wait_for_function("!document.getElementById('own').textContent")
        page.locator("#title").click()
        for _ in range(200):  # faster than anybody is
            page.keyboard.press("ArrowLeft")
        page.wait_for_function("document.getElementById('standing').textContent.includes('over')"
                               " || document.querySelector('.solved')")  # fmt: skip
        page.locator("#next").click()
        page.wait_for_function("document.querySelectorAll('#said li').length == 0")
        page.locator("#run").click()
        page.wait_for_function("document.querySelectorAll('#said li').length >= 2")
        page.keyboard.press("ArrowRight")  # takes over in the middle
        page.wait_for_selector("#said li.you")
        count = said.count()
        time.sleep(0.5)
        assert said.count() == count


def test_tabs_do_not_disturb_each_other_and_one_that_is_closed_is_forgotten(address, recipe):
    with browser() as started, page_without_errors(started) as one:
        with page_without_errors(started) as other:
            for page in (one, other):
                page.goto(address)
                page.wait_for_selector("main:not([hidden])")
            other.locator("#run").click()
            one.locator("[data-word='left']").click()
            one.wait_for_selector("#said li.you")
            assert one.locator("#said li").all_inner_texts() == ["left"]
        # The other one was closed while it ran.
        one.locator("[data-word='right']").click()
        one.wait_for_function("document.querySelectorAll('#said li').length == 2")
        # A person who knows the way: the pad's colour is beside it.
        solved = False
        for _ in range(8):
            for word in ("far left", "far right"):
                one.locator("#next").click()
                one.wait_for_function("document.querySelectorAll('#said li').length == 0")
                for _ in range(4):
                    if one.locator(f"[data-word='{word}']").is_enabled():
                        one.locator(f"[data-word='{word}']").click()
                        time.sleep(0.1)
                solved = solved or one.locator(".solved").count() > 0
                if solved:
                    break
            if solved:
                break
        assert solved
        one.locator("#save").click()
        one.wait_for_function("document.getElementById('notice').textContent.includes('saved in')")
    assert list((Path(recipe.imitation.demonstrations) / "data").glob("*.parquet"))


def test_a_port_that_is_taken_is_a_sentence(folder):
    place = HERE.open_port(0)
    port = str(place.getsockname()[1])
    with pytest.raises(UserError, match=f"--port {port}: .*--port 0 takes a free one"):
        main(["play", "--port", port])
    with pytest.raises(UserError, match="--port 99999"):
        main(["play", "--port", "99999"])
    place.close()
