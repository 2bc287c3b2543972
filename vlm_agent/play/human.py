"""``HumanAgent``: a person who plays the episodes of an evaluation, on a page."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from types import TracebackType
from typing import Any, Self

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from vlm_agent.common.errors import Stopped
from vlm_agent.evaluation.agents import Agent
from vlm_agent.play.pictures import jpeg
from vlm_agent.play.server import HERE, keys_of, make_server, page_text
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.recipe.recipe import world_template
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.observations import Observations

HUMAN = "human"
"""Who is evaluated, as ``--policy`` names them."""

LOOK_S = 1.0
"""How often it is looked whether the server still runs, while a person thinks."""

STALLED_S = 2.0
"""How long a tab may take to be told something."""


class HumanAgent:
    """Sees what a policy would be shown, and says words: one episode after the other.

    As a context manager, it serves a page on this machine alone.

    Args:
        env: The scene.
        episodes: How many are asked for.
        port: Where the page is served; 0 for a free one.

    Attributes:
        agent: To be given to :func:`vlm_agent.evaluation.agents.measure`, with one environment.
        url: The page.

    Raises:
        UserError: The port is taken, or the scene's settings cannot be used.
    """

    def __init__(self, env: EnvConfig, episodes: int, port: int = 0) -> None:
        self.template: PromptTemplate = world_template(env)
        words, facts = self.template.words, self.template.fact_names
        self.agent = Agent(HUMAN, env, words=words, facts=facts, speak=self, draws=True)
        self._place = HERE.open_port(port)
        self.url = f"http://127.0.0.1:{self._place.getsockname()[1]}"
        about = {"title": f"You, in {env.name}", "words": list(words)}
        self._about = {**about, "keys": keys_of(words), "episodes": episodes}
        self._said: queue.Queue[int] = queue.Queue()
        self._tabs: set[WebSocket] = set()
        self._state: dict[str, Any] = {"waiting": True}
        self._episode = self._picture = 0
        app = HERE.app(lambda: page_text("human", self._about), self._talk)
        self._server = make_server(app)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="human", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self._tell({"over": error is None})
        finally:
            self._server.should_exit = True
            self._thread.join(timeout=10)

    def __call__(self, observations: Observations, uniforms: np.ndarray | None) -> np.ndarray:
        """The word that the person says of one observation.

        Raises:
            Stopped: Nobody can say one any more.
        """
        (frame,), (facts,) = observations.frames, observations.facts.tolist()
        told = dict(zip(self.template.fact_names, facts, strict=True))
        self._episode += told["step"] == 0
        picture = jpeg(frame[-frame.shape[1] :])
        self._said = queue.Queue()
        self._picture += 1
        self._tell(
            {
                "picture": self._picture,  # what was pressed before it is not of it
                "frame": picture,
                "prompt": self.template.render(facts),
                "episode": self._episode,
                "step": told["step"],
                "words_left": told["words_left"],
            }
        )
        while True:
            try:
                return np.array([self._said.get(timeout=LOOK_S)])
            except queue.Empty:
                if not self._thread.is_alive():
                    raise Stopped("the page's server has ended") from None

    def _serve(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._place])

        asyncio.run(run())

    def _tell(self, state: dict[str, Any]) -> None:
        """Show this in every tab, and in those that come later."""
        self._state = state
        loop = self._loop
        if loop is None or loop.is_closed():
            return

        async def send() -> None:
            for tab in list(self._tabs):
                try:
                    await asyncio.wait_for(tab.send_json(state), STALLED_S)
                except (RuntimeError, WebSocketDisconnect, TimeoutError):  # closed, or asleep
                    self._tabs.discard(tab)

        asyncio.run_coroutine_threadsafe(send(), loop).result()

    async def _talk(self, tab: WebSocket) -> None:
        """Show what there is, and take words until the tab is closed."""
        self._tabs.add(tab)
        try:
            await tab.send_json(self._state)
            while True:
                said = json.loads(await tab.receive_text())
                word, is_of_it = said.get("word"), said.get("picture") == self._picture
                if word in self.template.words and is_of_it:
                    self._said.put(self.template.words.index(word))
        except (WebSocketDisconnect, ValueError, AttributeError):  # or it says what is no word
            pass
        finally:
            self._tabs.discard(tab)
