"""A stand-in for the hub's HTTP API, which refuses what the hub would."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "a" * 34
LICENCES = {"apache-2.0", "mit", "other"}


class Hub:
    """What was put there: repository -> its files, and whether it is private."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.validated: list[dict[str, Any]] = []


@contextmanager
def stand_in() -> Iterator[tuple[str, Hub]]:
    """The address of a hub, and what it holds."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            self.answer(*self.reply(body))

        def do_GET(self):
            if self.path == "/api/whoami-v2":
                known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                told = {"name": "someone", "type": "user"} if known else {"error": "Invalid token"}
                self.answer(200 if known else 401, told)
                return
            name = self.path.removeprefix("/api/models/").partition("?")[0]
            known = name in hub.files
            told = {"id": name, "private": hub.private.get(name), "siblings": []}
            self.answer(200 if known else 404, told)

        def answer(self, status: int, said: Any) -> None:
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def reply(self, body: bytes) -> tuple[int, Any]:
            if self.path == "/api/validate-yaml":
                return self.validate(json.loads(body))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return 401, {"error": "Invalid username or password."}
            if self.path == "/api/repos/create":
                return self.create(json.loads(body))
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
            if not found or found[1] not in hub.files:
                return 404, {"error": "Repository not found"}
            if found[2] == "preupload":
                files = json.loads(body)["files"]
                told = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in files
                ]
                return 200, {"files": told}
            return self.commit(found[1], body)

        def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
            name = f"{asked.get('organization')}/{asked['name']}"
            if not name.startswith("someone/"):
                return 403, {"error": "You don't have the rights to create a model there"}
            if name in hub.files:
                return 409, {"error": "You already created this model repo", "url": f"/{name}"}
            hub.files[name], hub.private[name] = {}, asked["visibility"] == "private"
            return 200, {"url": f"{self.address}/{name}", "name": name, "id": name}

        def validate(self, asked: dict[str, Any]) -> tuple[int, Any]:
            content = asked["content"]
            data = yaml.safe_load(re.match(r"---\n(.*?)\n---", content, re.DOTALL)[1])
            hub.validated.append(data)
            errors = []
            if data.get("license") not in LICENCES:
                errors.append({"message": "license must be one of the known ones"})
            for model in data.get("model-index", []):
                for result in model["results"]:
                    if not {"task", "dataset", "metrics"} <= result.keys():
                        errors.append({"message": "a result lacks its task, dataset or metrics"})
            return (400 if errors else 200), {"errors": errors, "warnings": []}

        def commit(self, name: str, body: bytes) -> tuple[int, Any]:
            header, *lines = [json.loads(line) for line in body.splitlines()]
            assert header["key"] == "header" and header["value"]["summary"]
            for line in lines:
                value = line["value"]
                assert line["key"] == "file" and value["encoding"] == "base64"
                hub.files[name][value["path"]] = base64.b64decode(value["content"])
            url = f"{self.address}/{name}/commit/{40 * 'a'}"
            return 200, {"commitUrl": url, "commitOid": 40 * "a", "pullRequestUrl": None}

        @property
        def address(self) -> str:
            return f"http://127.0.0.1:{server.server_port}"

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", hub
    server.shutdown()
