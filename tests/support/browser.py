"""A headless browser for tests: that of `make test-pages`, else chromium or Google Chrome where one is installed."""

import base64
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websocket import create_connection

ENVIRONMENT = Path(__file__).parents[2] / ".venv-pages"
"""What `make test-pages` installs: Qt's WebEngine and axe-core."""
AXE = ENVIRONMENT / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0 --window-size=1400,900"
)


def browser_command(folder: Path) -> list[str] | None:
    """The command that starts a browser with its DevTools protocol open; None where there is no browser.

    `folder` takes the browser's own files.
    """
    if (ENVIRONMENT / "bin" / "python").exists():
        return [str(ENVIRONMENT / "bin" / "python"), str(Path(__file__).with_name("qt_browser.py"))]
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return [program, *FLAGS.split(), f"--user-data-dir={folder}", "about:blank"] if program else None


class Browser:
    """A page of a browser. It remembers what went wrong in it and what it asked the network for."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        lines = iter(self._process.stderr or ())
        address = next(match for line in lines if (match := re.search(r"listening on ws://([^/]+)/", line)))
        with urlopen(f"http://{address.group(1)}/json/list", timeout=30) as response:
            target = next(target for target in json.load(response) if target["type"] == "page")
        self._socket = create_connection(target["webSocketDebuggerUrl"], suppress_origin=True, timeout=60)
        self._numbers = itertools.count()
        self.faults: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(self._socket.recv())).get("id") != number:
            if message.get("method") == "Runtime.exceptionThrown":
                self.faults.append(str(message["params"]["exceptionDetails"]))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
        assert "error" not in message, message
        return message["result"]

    def js(self, expression: str) -> Any:
        """The value of an expression, or of its promise, in the page."""
        result = self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true in the page."""
        poll = f"(done) => {{ const look = () => ({condition}) ? done(true) : setTimeout(look, 5); look(); }}"
        limit = f"new Promise((done) => setTimeout(() => done(false), {seconds * 1000}))"
        assert self.js(f"Promise.race([new Promise({poll}), {limit}])"), f"{condition}: never; {self.faults}"

    def open(self, page: Path, fragment: str = "", ready: str = "document.readyState === 'complete'") -> None:
        """Load a file, and wait until an expression is true in it."""
        self.faults.clear()
        self.requests.clear()
        self.command("Page.navigate", url="about:blank")
        self.command("Page.navigate", url=page.as_uri() + fragment)
        self.until(f"location.href !== 'about:blank' && {ready}")

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page this size in CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def prefer(self, scheme: str) -> None:
        """Let the reader prefer this colour scheme: light or dark."""
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str, **fields: Any) -> None:
        """Press and release a key."""
        self.command("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **fields)
        self.command("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def screenshot(self) -> bytes:
        """What is in sight, as PNG."""
        return base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End the browser."""
        self._socket.close()
        self._process.terminate()
        self._process.communicate(timeout=30)
