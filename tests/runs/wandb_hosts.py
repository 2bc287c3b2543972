"""Hosts that stand in for wandb's: none that answers, one that refuses keys, one that works."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def closed_port() -> Iterator[str]:
    """Nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def mute_host() -> Iterator[str]:
    """Connections are accepted, and that is all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def refusing_host() -> Iterator[str]:
    """No key is right."""
    with _serve(lambda path, body: (401, {"errors": [{"message": "no such key"}]})) as url:
        yield url


@contextmanager
def working_host(asked: list[tuple[str, dict]]) -> Iterator[str]:
    """As much of wandb as a run needs; notes the names and variables of what it is asked."""

    def answer(path: str, body: dict) -> tuple[int, dict]:
        if path != "/graphql":
            return 200, {}
        query, variables = body["query"].split("(")[0].split()[-1], body.get("variables") or {}
        asked.append((query, variables))
        entity = {"id": "E", "name": "someone"}
        run = {
            "id": "R",
            "name": variables.get("name"),
            "displayName": variables.get("displayName"),
            "config": "{}",
            "historyLineCount": 0,
            "project": {"id": "P", "name": variables.get("project"), "entity": entity},
        }
        data = {
            "UpsertBucket": {"upsertBucket": {"bucket": run, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": []}},
        }
        return 200, {"data": data.get(query, {})}

    with _serve(answer) as url:
        yield url


@contextmanager
def _serve(answer: Any) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            is_json = "json" in self.headers.get("Content-Type", "")
            status, values = answer(self.path, json.loads(body) if is_json else {})
            self.send_response(status)
            said = json.dumps(values).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
