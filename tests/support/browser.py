"""A headless Chromium over its DevTools pipe: no driver, no socket, no package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Chromium reads commands from file 3, and answers on file 4.
_START = 'exec "$0" "$@" 3<&{read} 4>&{write}'
_OPTIONS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-pipe",
        "--disable-extensions",
        "--no-first-run",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
)
_PATIENCE_SECONDS = 60


def chromium() -> str:
    """The program; skips the test where there is none."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"no Chromium here: none of {', '.join(NAMES)} is on the path (Debian's package is chromium)")
    return found


class Tab:
    """One page of the browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._read, self._count, self._session = b"", 0, ""
        #: What the page said: uncaught errors, and whatever it tried to load or run and must not.
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run a command of the protocol and wait for its answer."""
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        command = {"id": self._count, "method": method, "params": parameters, **session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        number = self._count
        while True:
            message = self._message()
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                answer: dict[str, Any] = message["result"]
                return answer

    def wait_for(self, method: str) -> None:
        """Wait until the browser tells of that."""
        while self._message().get("method") != method:
            pass

    def show(self, path: Path, width: int, theme: str, height: int = 900) -> None:
        """Open a file in a window so wide, for someone who likes "light" or "dark"."""
        self.complaints.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def run(self, code: str) -> Any:
        """What a JavaScript expression is, as JSON data."""
        found = self.ask("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def move_to(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """Click there."""
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, x: float, y: float, to_x: float) -> None:
        """Press there, move aside, and let go."""
        button = {"button": "left", "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **button)
        for part in (0.5, 1.0):
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x + part * (to_x - x), y=y, **button)
        self.ask("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=y, **button)

    def press(self, key: str) -> None:
        """Press a key, by its name."""
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        for kind, typed in (("keyDown", text), ("keyUp", {})):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **typed)

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG file."""
        taken = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert select([self._answers], [], [], _PATIENCE_SECONDS)[0], "Chromium does not answer"
            part = os.read(self._answers, 1 << 16)
            assert part, "Chromium has ended"
            self._read += part
        text, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(message["params"]["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            self.complaints += [] if url.startswith(("file:", "about:")) else [f"it asked for {url}"]
        return message


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A browser with one empty page, whose profile lies in `folder`."""
    program = chromium()
    (commands_read, commands), (answers, answers_write) = os.pipe(), os.pipe()
    start = _START.format(read=commands_read, write=answers_write)
    words = ["bash", "-c", start, program, *_OPTIONS, f"--user-data-dir={folder}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, pass_fds=(commands_read, answers_write), **quiet)  # type: ignore[call-overload]
    os.close(commands_read), os.close(answers_write)
    try:
        yield Tab(commands, answers)
    finally:
        os.close(commands), os.close(answers)
        process.terminate()
        process.wait(30)
