"""A person plays the episodes of an evaluation, on a page: the same as everybody else's."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.browser import browser, page_without_errors, serious_findings
from tests.own_world import own_world
from vlm_agent import Recipe
from vlm_agent.common.errors import UserError
from vlm_agent.evaluation.agents import load_agent, measure
from vlm_agent.evaluation.compare import compare
from vlm_agent.evaluation.evaluate import Evaluation
from vlm_agent.play.human import HumanAgent


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Recipe]:
    with own_world(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
        yield Recipe.load(tmp_path / "corridor.yaml", frame_size=28)


@pytest.fixture
def played(recipe: Recipe) -> Iterator[tuple[HumanAgent, list[Evaluation]]]:
    """Somebody who is to play two episodes, and what comes of it."""
    found: list[Evaluation] = []
    human = HumanAgent(recipe.env, episodes=2)

    def play() -> None:
        with human:
            found.append(measure(human.agent, 2, 0, False, "test", 1))

    thread = threading.Thread(target=play)
    thread.start()
    yield human, found
    thread.join(60)
    assert not thread.is_alive()


def test_what_is_said_is_measured_on_the_usual_episodes(played, recipe):
    human, found = played
    place = human.url.removeprefix("http://")
    shown = []
    with connect(f"ws://{place}/talk", origin=human.url) as tab:
        while not (told := json.loads(tab.recv(timeout=60))).get("over"):
            if "frame" in told:
                shown.append((told["episode"], told["step"]))
                now = told["picture"]  # what is no word, or of an earlier picture, is passed over
                for word, picture in (("jump", now), ("right", now - 1), ("left", now)):
                    tab.send(json.dumps({"word": word, "picture": picture}))
    assert shown == [(episode, step) for episode in (1, 2) for step in range(4)]
    (result,) = found
    assert [episode.actions for episode in result.episodes] == [(0, 0, 0, 0)] * 2
    others = measure(load_agent("random", change=lambda _: recipe.env), 2, 0, True, "test")
    assert [row["num_eval_episodes"] for row in compare([result, others])] == [2, 2]
    assert result.to_dict()["policy"] == "human"


def test_a_person_says_words_by_buttons_and_keys(played):
    human, found = played
    with browser() as started, page_without_errors(started) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        page.goto(human.url)
        page.wait_for_selector("main:not([hidden])")
        assert not serious_findings(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.locator(".word").first.click()
        page.wait_for_function("standing.textContent.includes('1 words said')")
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("standing.textContent.includes('2 words said')")
        page.reload()
        page.wait_for_function("standing.textContent.includes('2 words said')")
        while not found:
            page.keyboard.press("ArrowLeft")
            page.wait_for_timeout(50)
        page.wait_for_function("standing.textContent.includes('last episode')")
    assert found[0].episodes[0].actions[1:] == (0,) * (len(found[0].episodes[0].actions) - 1)


def test_an_evaluation_that_ends_says_so_and_a_taken_port_too(recipe):
    with HumanAgent(recipe.env, 1) as human:
        place = human.url.removeprefix("http://")
        with pytest.raises(UserError, match="--port .*: .*; --port 0 takes a free one"):
            HumanAgent(recipe.env, 1, int(place.rpartition(":")[2]))
        tab = connect(f"ws://{place}/talk", origin=human.url)
        assert json.loads(tab.recv(timeout=20)) == {"waiting": True}
    assert json.loads(tab.recv(timeout=20)) == {"over": True}
    tab.close()
