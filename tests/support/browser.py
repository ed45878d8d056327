"""A headless Chromium, driven over the DevTools protocol.

Source: https://chromedevtools.github.io/devtools-protocol/. No driver program is needed: the browser opens a WebSocket, and the commands
are JSON. One page per browser, with a profile of its own that nothing is kept of.
"""

import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import websocket

from tests.support.waiting import eventually

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion=0",
    "--remote-debugging-port=0",
)
_KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
    " ": (32, " "),
}


class Browser:
    """One page of a browser.

    Attributes:
        errors: uncaught exceptions, errors of the console, and what the page's own rules kept from running.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self._socket = websocket.create_connection(address, timeout=30, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.folder = folder
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message.get('error')}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif message.get("method") == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(json.dumps(parameters["args"]))

    def close(self) -> None:
        """Let go of the page."""
        self._socket.close()

    # ---------------------------------------------------------------------------------------------------------- the page

    def open(self, url: str) -> None:
        """Load a page and wait until its scripts have run."""
        self.do("Page.navigate", url="about:blank")
        self.do("Page.navigate", url=url)
        eventually(lambda: self.js("location.href !== 'about:blank' && document.readyState === 'complete'"), 20, f"{url} is loaded")

    def forget(self, origin: str) -> None:
        """Leave the page, and what a site keeps in the browser behind: what is open could write it again."""
        self.do("Page.navigate", url="about:blank")
        eventually(lambda: self.js("location.href === 'about:blank'"), 10, "the page is left")
        self.do("Storage.clearDataForOrigin", origin=origin, storageTypes="local_storage,session_storage")

    def js(self, expression: str) -> Any:
        """What an expression gives; promises are awaited."""
        answer = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, expression: str, timeout_s: float = 10.0) -> Any:
        """Wait until an expression is true, and return what it gives: of an element that it is there."""
        asked = f"(found => found instanceof Node || found)({expression})"
        return eventually(lambda: self.js(asked), timeout_s, lambda: f"{expression}; the page says: {self.text()[:2_000]}", every_s=0.05)

    def text(self) -> str:
        """All text that is shown."""
        return str(self.js("document.body.innerText"))

    def size(self, width: int, height: int) -> None:
        """As on a screen of this size."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def prefer(self, **features: str) -> None:
        """As for a user who prefers ``color_scheme="dark"``, ``reduced_motion="reduce"``."""
        named = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.do("Emulation.setEmulatedMedia", features=named)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other: names as in ``_KEYS``, with ``Shift+`` before them, or text that is typed."""
        for key in keys:
            name = key.removeprefix("Shift+")
            modifiers = 8 if name != key else 0
            if name not in _KEYS:
                self.do("Input.insertText", text=key)
                continue
            code, text = _KEYS[name]
            common = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
            self.do("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
            self.do("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        """Click with the mouse on the middle of an element."""
        found = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=found[0], y=found[1], button="left", clickCount=1)

    def picture(self, name: str, *, whole: bool = False) -> Path:
        """Leave a picture of what is shown, or of the whole page, in the test's folder."""
        shot = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path = self.folder / f"{name}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def numbers(self) -> dict[str, float]:
        """The browser's own measurements: ``TaskDuration`` in seconds of its main thread's CPU, ``Nodes``, ``JSHeapUsedSize`` and others."""
        self.do("Performance.enable", timeDomain="threadTicks")
        return {one["name"]: one["value"] for one in self.do("Performance.getMetrics")["metrics"]}


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A running browser; skips the test, or fails it in CI, where none is installed.

    Args:
        folder: where its profile, its log and the pictures go.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no Chromium is installed: {' or '.join(PROGRAMS)}")
    profile = folder / "profile"
    log = (folder / "chromium.log").open("wb")
    process = subprocess.Popen([program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"], stdout=log, stderr=log)
    log.close()
    try:
        port = profile / "DevToolsActivePort"
        eventually(lambda: process.poll() is None and port.exists() and len(port.read_text().splitlines()) == 2, 30, _log_of(folder))
        with urlopen(f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json/list", timeout=10) as answer:
            targets = json.load(answer)
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        browser = Browser(address, folder)
        try:
            yield browser
        except BaseException as error:
            error.add_note(f"the browser's errors: {browser.errors}")
            raise
        finally:
            browser.close()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _log_of(folder: Path) -> Callable[[], str]:
    return lambda: (folder / "chromium.log").read_text(errors="replace")[-2_000:]
