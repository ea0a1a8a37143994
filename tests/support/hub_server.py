"""A small server on loopback that speaks the part of the Hub's HTTP API that uploads use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from http.server import ThreadingHTTPServer
from typing import Any

from servers import JsonHandler


class Hub(ThreadingHTTPServer):
    """Repositories and files that were sent, large ones by their digest first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.cards: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.keys: set[str | None] = set()
        self.status = 200
        """Status of every answer; other than 200 it refuses."""
        self.place = ""
        """Part of the paths that it refuses; empty: all."""
        self.wait = ""
        """When it says that a refused request may be repeated."""
        self.silence = 0.0
        """Seconds before it answers."""
        self.cut = ""
        """Part of the paths at which it closes the connection in the middle of a request; empty: none."""
        self.hold = ""
        """Part of the paths at which it takes the request and never answers; empty: none."""
        self.held = threading.Event()
        """Set as soon as it holds a request."""
        self.present: list[str] = []
        """Files that the repository holds already."""
        self.faults: list[str] = []
        """What it finds wrong with a card."""
        self.url = f"http://127.0.0.1:{self.server_port}"


class HubHandler(JsonHandler):
    server: Hub

    def do_POST(self) -> None:
        if self.is_cut():
            return
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.keys.add(self.headers.get("Authorization"))
        time.sleep(self.server.silence)
        if self.server.status != 200 and self.server.place in self.path:
            return self.refuse()
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.answer({"url": f"{self.server.url}/team/desk"})
        if self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["repoType"])
            errors = [{"message": fault} for fault in self.server.faults]
            return self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in files}
            answers = [{"path": p, "uploadMode": m, "shouldIgnore": False, "oid": None} for p, m in modes.items()]
            return self.answer({"files": answers})
        if self.path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [{**o, "actions": {"upload": {"href": f"{self.server.url}/put/{o['oid']}"}}} for o in objects]
            return self.answer({"objects": upload, "transfer": "basic"})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[line["value"]["path"]] = self.server.objects[line["value"]["oid"]]
            return self.answer({"commitUrl": f"{self.server.url}/team/desk/commit/1", "commitOid": "1"})
        return self.answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        if "/tree/" not in self.path:
            return self.answer({"error": self.path}, 404)
        self.answer([{"type": "file", "path": path, "size": 1, "oid": "1"} for path in self.server.present])

    def refuse(self) -> None:
        content = b'{"error": "no entry"}'
        self.send_response(self.server.status)
        if self.server.wait:
            self.send_header(*self.server.wait.split(": "))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def is_cut(self) -> bool:
        """Whether the connection was closed instead of an answer."""
        if self.server.hold and self.server.hold in self.path:
            self.server.held.set()
            self.rfile.read()  # until the client is gone
        elif not (self.server.cut and self.server.cut in self.path):
            return False
        self.close_connection = True
        return True

    def do_PUT(self) -> None:
        if self.is_cut():
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status != 200 and self.server.place in self.path:
            return self.refuse()
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer({})
