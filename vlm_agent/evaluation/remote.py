"""``RemoteModel``: a model behind an OpenAI-compatible server, asked as a policy is."""

from __future__ import annotations

import base64
import io
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import requests
from PIL import Image

from vlm_agent.common.errors import UserError
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.world.observations import Observations

PREFIX = "openai:"
"""What the name of such a model begins with, for ``--policy``."""

OPENAI = "https://api.openai.com/v1"

KEY_VARIABLE = "OPENAI_API_KEY"

TRIES = 4
"""How often a server that is busy is asked."""

PATIENCE_S = 120.0

MOST_TOKENS = 64
"""Of an answer; some models think aloud before they say a word."""


class RemoteModel:
    """Asks a server for one word at each moment, by chat completions with a picture.

    Args:
        model: The model's name there.
        base_url: Of the server, up to ``/chat/completions``.
        template: The prompt; the picture stands where it says.

    Attributes:
        asked: How many answers there were so far.
        unparseable: How many of them named no word, or several: a random word was said then.
    """

    def __init__(self, model: str, base_url: str, template: PromptTemplate) -> None:
        self.model = model
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.template = template
        self.asked = self.unparseable = 0
        self._session = requests.Session()
        if key := os.environ.get(KEY_VARIABLE):
            self._session.headers["Authorization"] = f"Bearer {key}"

    def __call__(self, observations: Observations, uniforms: np.ndarray | None) -> np.ndarray:
        """Words for B observations, int64 (B,).

        Args:
            observations: Pictures and facts.
            uniforms: Numbers (B,) in [0, 1) that choose a word where the answer names none.

        Raises:
            UserError: The server cannot be reached, or refuses.
        """
        assert uniforms is not None, "some answers name no word"
        with ThreadPoolExecutor(len(observations)) as threads:
            rows = zip(observations.frames, observations.facts.tolist(), strict=True)
            answers = list(threads.map(lambda row: self._answer(*row), rows))
        self.asked += len(answers)
        actions = []
        for answer, uniform in zip(answers, uniforms, strict=True):
            action = named_word(answer, self.template.words)
            if action is None:
                self.unparseable += 1
                action = int(uniform * len(self.template.words))
            actions.append(action)
        return np.array(actions, np.int64)

    def _answer(self, frame: np.ndarray, facts: Sequence[int]) -> str:
        before, after = self.template.render(facts)
        picture = {"type": "image_url", "image_url": {"url": _data_url(frame)}}
        texts = [{"type": "text", "text": text} for text in (before, after)]
        parts: list[dict[str, Any]] = [texts[0], picture, texts[1]]
        content = [part for part in parts if part.get("text", "-").strip()]  # none may be empty
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": MOST_TOKENS,
        }
        answered = self._ask(body)
        try:
            return str(answered["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{self.url}: an answer without a message: {answered!r}") from None

    def _ask(self, body: dict[str, Any]) -> Any:
        """The server's answer; one that is busy is asked again, later each time."""
        problem = ""
        for tried in range(TRIES):
            if tried:
                time.sleep(2**tried / 4)
            try:
                said = self._session.post(self.url, json=body, timeout=PATIENCE_S)
            except requests.RequestException as error:
                problem = f"cannot be reached: {error}"
                continue
            if said.status_code == 200:
                try:
                    return said.json()
                except ValueError:
                    raise UserError(f"{self.url}: an answer that is no JSON") from None
            problem = f"{said.status_code}: {' '.join(said.text.split())[:300]}"
            if said.status_code not in (408, 429) and said.status_code < 500:
                break
        hint = f"; is {KEY_VARIABLE} set?" if problem.startswith(("401", "403")) else ""
        raise UserError(f"{PREFIX}{self.model}: {self.url}: {problem}{hint}")


def named_word(answer: str, words: Sequence[str]) -> int | None:
    """The index of the word that an answer names, if it names one alone.

    An answer that is a word, but for case and marks, names it; else the one word that stands in it.
    A word within a longer one ("forward" in "far forward") does not count.
    """
    plain = " ".join(re.sub(r"[^\w\s]", " ", answer.lower()).split())
    names = [" ".join(re.sub(r"[^\w\s]", " ", word.lower()).split()) for word in words]
    if plain in names:
        return names.index(plain)
    found = set()
    left = f" {plain} "
    for number in sorted(range(len(names)), key=lambda n: -len(names[n])):
        if f" {names[number]} " in left:
            found.add(number)
            left = left.replace(f" {names[number]} ", " | ")
    return found.pop() if len(found) == 1 else None


def _data_url(frame: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
