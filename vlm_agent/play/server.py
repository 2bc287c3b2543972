"""The page's server: one WebSocket, and one world, for each tab."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from vlm_agent.common.errors import UserError
from vlm_agent.play.session import PlaySession, Table

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Door:
    """Who comes in.

    Attributes:
        address: Where the server listens.
        hosts: The names by which it may be asked; whoever comes by another one is sent away.
        framed_by: A site whose pages may show this one.
        idle_s: How long a tab may say nothing before its world is given to others.
    """

    address: str = "127.0.0.1"
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    framed_by: str = "'none'"
    idle_s: float | None = None

    @classmethod
    def public(cls, host: str) -> Door:
        """For everybody, by the name of a host; a Space's page is shown by the hub's.

        Raises:
            UserError: That is no host's name.
        """
        host = host.partition(":")[0].lower()
        if not re.fullmatch(r"[a-z0-9.-]+", host):
            raise UserError(f"--public {host!r}: expected a host's name, user-name.hf.space say")
        everywhere = "0.0.0.0"  # noqa: S104 (that is what it is for)
        return cls(everywhere, (host,), "https://huggingface.co", IDLE_S)

    def is_own(self, tab: WebSocket) -> bool:
        """Whether the page that asks is this server's own."""
        origin = urlsplit(tab.headers.get("origin", ""))
        return origin.hostname in self.hosts and origin.netloc == tab.headers.get("host")

    def app(
        self, page: Callable[[], str], talk: Callable[[WebSocket], Awaitable[None]]
    ) -> Starlette:
        """A page, and what its WebSocket does once it is accepted.

        No page of another site can use it: the names of the host and of the page that asks are
        looked at.
        """
        ancestors = f"frame-ancestors {self.framed_by}"
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": ancestors}

        async def show(_: Request) -> Response:
            return HTMLResponse(page(), headers=headers)

        async def listen(tab: WebSocket) -> None:
            if not self.is_own(tab):
                await tab.close(code=1008)
                return
            await tab.accept()
            await talk(tab)

        routes = [Route("/", show), WebSocketRoute("/talk", listen)]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[*self.hosts])
        return Starlette(routes=routes, middleware=[hosts])

    def open_port(self, port: int) -> socket.socket:
        """A port to serve at.

        Args:
            port: Its number; 0 for a free one.

        Raises:
            UserError: It is taken, or there is none of that number.
        """
        place = socket.socket()
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((self.address, port))
            place.listen()  # who comes before the server is ready waits
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {error}; --port 0 takes a free one") from None
        return place


HERE = Door()
"""For whoever sits at this machine."""

MOST_SESSIONS = 8
"""Tabs that have a world at once; each has some hundred megabytes."""

LONGEST_MESSAGE = 100_000

MOST_WAITING = 64
"""Messages of a tab that wait; a tab that says more is read when there is room again."""

IDLE_S = 600.0
"""Of a tab on a public page."""

logger = logging.getLogger(__name__)

KEYS = {
    "forward": "ArrowUp",
    "backward": "ArrowDown",
    "left": "ArrowLeft",
    "right": "ArrowRight",
    "up": "PageUp",
    "down": "PageDown",
    "close gripper": "c",
    "open gripper": "o",
}
"""Keys of the usual words; others have digits and letters, as far as there are some."""

SPARE_KEYS = "1234567890qwertyuiadghjklxvb"


def make_app(table: Table, title: str, door: Door = HERE) -> Starlette:
    """The page and its WebSocket.

    Args:
        table: What the sessions share.
        title: The page's heading.
        door: Who comes in.
    """
    open_sessions: set[WebSocket] = set()

    def page() -> str:
        about = {"title": title, "words": list(table.policy.words)}
        return page_text("page", {**about, "keys": keys_of(table.policy.words)})

    async def talk(tab: WebSocket) -> None:
        if len(open_sessions) >= MOST_SESSIONS:
            await tab.send_json({"error": f"{MOST_SESSIONS} tabs are open: close one"})
            await tab.close()
            return
        open_sessions.add(tab)
        try:
            await _converse(tab, table, door.idle_s)
        finally:
            open_sessions.discard(tab)

    return door.app(page, talk)


def page_text(name: str, about: dict[str, Any]) -> str:
    """A page with its style, its script, and what this says about it, as JSON."""
    text = (ASSETS / f"{name}.html").read_text()
    text = text.replace("{{ style }}", (ASSETS / "page.css").read_text())
    text = text.replace("{{ script }}", (ASSETS / f"{name}.js").read_text())
    return text.replace("{{ about }}", json.dumps(about).replace("<", "\\u003c"))


async def _converse(tab: WebSocket, table: Table, idle_s: float | None) -> None:
    """Do what a tab asks for, in order, until it is closed.

    The scene's picture, which takes longest, follows when nobody waits for anything else.
    """
    loop = asyncio.get_running_loop()
    asked: asyncio.Queue[str | None] = asyncio.Queue(MOST_WAITING)
    with ThreadPoolExecutor(1, thread_name_prefix="play") as thread:

        def within(do: Callable[..., Any], *what: Any) -> Awaitable[Any]:
            return loop.run_in_executor(thread, do, *what)

        listening = asyncio.create_task(_listen(tab, asked))
        session: PlaySession | None = None
        try:
            session = await within(PlaySession, table)
            told = await within(session.state)
            while True:
                await tab.send_json(told)
                if asked.empty() and (scene := await within(session.scene)):
                    await tab.send_json({"scene": scene})
                message = await asyncio.wait_for(asked.get(), idle_s)
                if message is None:
                    return
                told = await within(answer, session, message)
        except WebSocketDisconnect:  # the tab is closed, in the middle perhaps
            pass
        except TimeoutError:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await tab.send_json({"error": "nothing was said for long: load the page anew"})
                await tab.close()
        except Exception as error:  # of the simulator, the renderer or the model
            if not isinstance(error, UserError) and not listening.done():
                logger.exception("a tab's world has failed")
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it may be closed
                await tab.send_json({"error": str(error) or type(error).__name__})
                await tab.close()
        finally:
            listening.cancel()
            if session is not None:
                await within(session.close)


async def _listen(tab: WebSocket, asked: asyncio.Queue[str | None]) -> None:
    """Put what a tab says into a queue; nothing, when it is closed."""
    try:
        while True:
            await asked.put(await tab.receive_text())
    except (WebSocketDisconnect, RuntimeError, KeyError):
        await asked.put(None)


def answer(session: PlaySession, asked: str) -> dict[str, Any]:
    """Do what a message asks for; the state then, or what stands against it."""
    if len(asked) > LONGEST_MESSAGE:
        return {"error": f"a message of more than {LONGEST_MESSAGE} characters"}
    try:
        message = json.loads(asked)
        what = message["do"]
        if what == "say":
            session.say(session.env.vocabulary.index(message["word"]))
        elif what == "advance":
            session.advance()
        elif what == "begin":
            session.begin(message.get("number"))
        elif what == "prompt":
            session.set_prompt(message["template"], message.get("instruction"))
        elif what == "save":
            session.save()
        else:
            return {"error": f"nobody knows what {what!r} is"}
    except UserError as error:
        return {"error": str(error), **session.state()}
    except (ValueError, KeyError, TypeError) as error:
        return {"error": f"a message that cannot be read: {error!r}"}
    return session.state()


def keys_of(words: Sequence[str]) -> dict[str, str]:
    """Word -> the key that says it."""
    taken = {word: KEYS[word] for word in words if word in KEYS}
    spare = [key for key in SPARE_KEYS if key not in taken.values()]
    others = [word for word in words if word not in taken]
    return taken | dict(zip(others, spare, strict=False))


def make_server(app: Starlette) -> uvicorn.Server:
    """What serves an application, quietly."""
    config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio", ws_max_size=1 << 20)
    return uvicorn.Server(config)
