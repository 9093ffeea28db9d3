"""Chromium without a window, over the DevTools protocol."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--remote-debugging-port=0", "about:blank"),
)
_PATIENCE = 60.0


class Tab:
    """One page: its console and what went wrong in it is in `problems`."""

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self._numbers = itertools.count(1)
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give an order and wait for its answer."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=_PATIENCE))
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(message["params"]["exceptionDetails"]))
            case "Log.entryAdded":
                entry = message["params"]["entry"]
                self.problems.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait for an expression to be true."""
        deadline = time.monotonic() + _PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.problems, self.run("document.body.innerText"))
            time.sleep(0.02)
        return value

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        code = {"Enter": 13, "Tab": 9, "Escape": 27}[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        if key == "Enter" and not modifiers:
            common["text"] = "\r"
        self.send("Input.dispatchKeyEvent", type="keyDown", **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Set the window's size and the system's colours."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def shoot(self, path: Path) -> None:
        """Write a screenshot."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A fresh browser's first tab."""
    command = [CHROMIUM, f"--user-data-dir={profile}", *_FLAGS]
    environment = {**os.environ, "HOME": str(profile)}
    with (profile / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
    try:
        address = _address(profile / "log", process)
        targets = httpx.get(f"http://{address}/json/list").json()
        page = next(target for target in targets if target["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=2**26) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(60)


def _address(log: Path, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + _PATIENCE
    while (match := re.search(r"DevTools listening on ws://([^/]+)/", log.read_text(errors="replace"))) is None:
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.05)
    return match[1]
