# ruff: noqa: INP001 - a script, not a package
"""Makes the README's pictures anew: ``.venv/bin/python docs/images/make.py [demo] [flower] [live]``.

``demo.svg``: the terminal after a real ``dedup demo``. ``flower.png``: Flower's task list after some sample events; ``live.png``: the live page
while flights come in; both in a headless Chromium, which has to be installed. Everything is started for the pictures, on free ports and in a temporary folder, and stopped.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

from app.cli.demo import HANDLER
from app.embedded.ports import free_port
from app.publisher import Publisher
from app.samples import flights
from app.settings import load_settings
from app.stack import Stack, placeholder_urls

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COLUMNS = 92
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r?\n)|(\r)")
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def demo() -> None:
    """Run the demo on a terminal of its own and draw what stands there at its end."""
    with TemporaryDirectory() as home:
        output = _on_terminal([Path(sys.executable).with_name("dedup"), "demo"], env=os.environ | {"DEDUP_HOME": home})
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w"), force_terminal=True)  # noqa: SIM115 - ends with us
    console.print("[bold]$[/] make demo")
    for line in _screen(output):
        console.print(Text.from_ansi(line))
    svg = console.export_svg(title="make demo")
    (HERE / "demo.svg").write_text(_FONT.sub("", svg), encoding="utf-8")  # the fonts would be fetched from elsewhere


def flower() -> None:
    """Start the system, send single events and a bulk, and take a picture of Flower's task list."""
    with TemporaryDirectory() as home:
        folder = Path(home)
        places = {"home": folder, "port": free_port(), "flower_port": free_port(), "policies": ROOT / "policies.toml"}
        settings = load_settings({}, folder=folder, handlers=(HANDLER,), **placeholder_urls(), **places)
        with Stack(settings, embedded=True, listeners=3, cwd=folder) as stack, Publisher(stack.broadcaster_url) as publisher:
            time.sleep(1)  # until the bridge has heard of the listeners
            rows = list(flights(253))
            for batch in [rows[3:], *([row] for row in rows[:3])]:
                publisher.send(batch)
                time.sleep(1.5)  # in Flower by then, in this order
            _photograph(f"{stack.flower_url}/tasks", HERE / "flower.png", folder / "chromium")


def live() -> None:
    """Start the system, send flights at a human pace and one with other content, and take a picture of the live page meanwhile."""
    sys.path.insert(0, str(ROOT))
    from tests.support.browser import chromium

    with TemporaryDirectory() as home:
        folder = Path(home)
        places = {"home": folder, "port": free_port(), "flower_port": free_port(), "policies": ROOT / "policies.toml"}
        settings = load_settings({}, folder=folder, handlers=(HANDLER,), **placeholder_urls(), **places)
        with (
            Stack(settings, embedded=True, listeners=3, cwd=folder) as stack,
            Publisher(stack.broadcaster_url) as publisher,
            chromium(folder) as page,
        ):
            page.size(1100, 760)
            page.open(stack.broadcaster_url)
            page.wait(
                "document.querySelector('#connection').dataset.state === 'live' && document.querySelectorAll('#names li').length === 3"
            )
            rows = list(flights(460))
            publisher.send(rows[60:])
            time.sleep(3)  # by then the listeners know that somebody watches
            for row in rows[:60]:
                publisher.send([row])
                time.sleep(0.09)
            publisher.send([rows[0] | {"data": rows[0]["data"] | {"dep_delay": 999}}])
            page.wait("document.querySelector('#failures .badge')")
            page.wait("document.querySelector('#tile-ledger').textContent === '460'")
            time.sleep(1)  # what was lit last has faded
            shutil.copy(page.picture("live"), HERE / "live.png")


def _on_terminal(argv: list[str | Path], env: dict[str, str]) -> str:
    """What a program writes to a terminal."""
    leader, follower = pty.openpty()
    os.set_blocking(leader, True)
    subprocess.run(["stty", "-F", os.ttyname(follower), "cols", str(COLUMNS), "rows", "40"], check=True)
    process = subprocess.Popen(argv, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    output = b""
    with suppress(OSError):  # Linux says EIO when the other side is closed
        while chunk := os.read(leader, 65_536):
            output += chunk
    if process.wait():
        raise SystemExit(f"the demo failed:\n{output.decode()}")
    return output.decode()


def _screen(output: str) -> list[str]:
    """The lines that stand on a terminal at the end; knows what rich's live display writes: up, erase, return, colours."""
    lines, at = [""], 0
    for text, code, letter in _parts(output):
        if letter == "A":
            at = max(0, at - int(code or 1))
        elif letter == "K":
            lines[at] = ""
        elif letter == "m":
            lines[at] += f"\x1b[{code}m"
        elif letter == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        lines[at] += text
    return [line.rstrip() for line in lines[:at]]


def _parts(output: str) -> Iterator[tuple[str, str, str]]:
    end = 0
    for match in _CONTROL.finditer(output):
        yield output[end : match.start()], "", ""
        yield "", match[1] or "", match[2] or ("\n" if match[3] else "\r")
        end = match.end()
    yield output[end:], "", ""


def _photograph(url: str, picture: Path, profile: Path) -> None:
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise SystemExit(f"no Chromium is installed: {' or '.join(CHROMIUM)}")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    view = [f"--user-data-dir={profile}", "--window-size=1640,905", "--hide-scrollbars", "--virtual-time-budget=8000"]
    subprocess.run([browser, *quiet, *view, f"--screenshot={picture}", url], check=True, timeout=90, capture_output=True)


if __name__ == "__main__":
    pictures = {"demo": demo, "flower": flower, "live": live}
    for name in sys.argv[1:] or pictures:
        pictures[name]()
