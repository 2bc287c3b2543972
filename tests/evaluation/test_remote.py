"""A model behind an OpenAI-compatible server, against a stand-in that checks what it is sent."""

import base64
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.own_world import own_world
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.evaluation import remote
from vlm_agent.evaluation.remote import RemoteModel, named_word
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.world.actions import DEFAULT_WORDS
from vlm_agent.world.observations import Observations

WORDS = (*DEFAULT_WORDS, "far forward")


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("forward", "forward"),
        (" Forward.\n", "forward"),
        ("far forward", "far forward"),
        ("I would say: **close gripper**", "close gripper"),
        ("Move far forward now", "far forward"),
        ("left or right", None),
        ("forwards", None),
        ("", None),
        ("upright", None),
        ("left, left", "left"),
    ],
)
def test_the_word_that_an_answer_names(answer: str, word: str | None):
    found = named_word(answer, WORDS)
    assert (None if found is None else WORDS[found]) == word


Answer = Callable[[dict[str, Any], Image.Image, str], tuple[int, Any]]


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that refuses what the real one would; its address, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            status, said = self.reply(body)
            data = json.dumps(said).encode() if not isinstance(said, bytes) else said
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def reply(self, body: dict[str, Any]) -> tuple[int, Any]:
            if self.path != "/v1/chat/completions":
                return 404, {"error": "no such path"}
            if self.headers.get("Authorization") != "Bearer secret":
                return 401, {"error": {"message": "Incorrect API key provided"}}
            (message,) = body["messages"]
            text, picture = "", None
            for part in message["content"]:
                if part["type"] == "text":
                    text += part["text"]
                    assert part["text"].strip(), "an empty text is refused"
                else:
                    kind, _, data = part["image_url"]["url"].partition(";base64,")
                    assert kind == "data:image/png"
                    picture = Image.open(io.BytesIO(base64.b64decode(data)))
            assert message["role"] == "user" and picture is not None
            return answer(body, picture, text)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1", asked
    httpd.shutdown()


def message(text: str | None) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)


@pytest.fixture
def world(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with own_world(tmp_path):
        yield tmp_path


def does_as_it_is_told(body: dict[str, Any], picture: Image.Image, text: str) -> tuple[int, Any]:
    """Says another word for each of the colours that a prompt asks for, while it sees something."""
    assert body["model"] == "some-model" and body["temperature"] == 0
    assert picture.size == (56, 56) and np.asarray(picture).max() == 255
    is_red = "to red" in text or "the red" in text
    return 200, message("Far left!" if is_red else "I say: far right")


def test_it_plays_as_a_policy_does(world: Path):
    with server(does_as_it_is_told) as (url, asked):
        output = world / "result.json"
        words = ["eval", "--policy", "openai:some-model", "--base_url", url, "--json", str(output)]
        scene = ["--env", "corridor:Corridor-v0", "--frame_size", "56", "--horizon", "12"]
        assert main([*words, *scene, "--num_eval_episodes", "6"]) == 0
    result = json.loads(output.read_text())
    assert {episode["goal"] for episode in result["episodes"]} == {"red", "blue"}
    for episode in result["episodes"]:
        word = "far left" if episode["goal"] == "red" else "far right"
        assert set(episode["words"]) == {word}
    assert (result["asked"], result["unparseable"]) == (len(asked), 0)
    assert len(asked) == sum(episode["length"] for episode in result["episodes"])


@pytest.fixture
def template() -> PromptTemplate:
    return PromptTemplate("{{ image }} Say one of {{ actions }}.", "Pick up the can.")


def observations(count: int) -> Observations:
    return Observations(np.zeros((count, 28, 28, 3), np.uint8), np.zeros((count, 4), np.int32))


def test_answers_that_name_no_word_are_counted_and_a_random_one_is_said(template):
    answers = iter(["hm", "left", None])
    with server(lambda *_: (200, message(next(answers)))) as (url, _):
        model = RemoteModel("m", url, template)
        said = [int(model(observations(1), np.array([0.99]))[0]) for _ in range(3)]
    assert said == [7, DEFAULT_WORDS.index("left"), 7]
    assert (model.asked, model.unparseable) == (3, 2)


def test_a_server_that_is_busy_is_asked_again(template):
    statuses = iter([429, 503, 200])
    with server(lambda *_: (next(statuses), message("up"))) as (url, asked):
        model = RemoteModel("m", url, template)
        assert model(observations(1), np.zeros(1))[0] == DEFAULT_WORDS.index("up")
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda *_: (400, {"error": "no such model"}), "openai:m: .*400: .*no such model"),
        (lambda *_: (500, {"error": "broken"}), "500: .*broken"),
        (lambda *_: (200, b"<html>"), "an answer that is no JSON"),
        (lambda *_: (200, {"choices": []}), "an answer without a message"),
    ],
)
def test_a_server_that_refuses_is_a_sentence(template, answer: Answer, problem: str):
    with server(answer) as (url, _), pytest.raises(UserError, match=problem):
        RemoteModel("m", url, template)(observations(1), np.zeros(1))


def test_no_key_and_no_server_are_sentences(template, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    refused = pytest.raises(UserError, match="is OPENAI_API_KEY set?")
    with server(does_as_it_is_told) as (url, _), refused:
        RemoteModel("m", url, template)(observations(1), np.zeros(1))
    with pytest.raises(UserError, match="cannot be reached"):
        RemoteModel("m", "http://127.0.0.1:9/v1", template)(observations(1), np.zeros(1))
