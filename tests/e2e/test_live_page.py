"""The live page, in a headless Chromium, on a running system."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.embedded.servers import EmbeddedServers
from tests.support.broadcasters import broadcaster_process
from tests.support.browser import Browser
from tests.support.servers import fresh_settings, remove_data
from tests.support.system import System
from tests.support.waiting import eventually
from workers.outcomes import LOOK_S

LISTENERS = ("listener-1", "listener-2", "listener-3")
LIVE = "document.querySelector('#connection').dataset.state === 'live'"
HOSTILE = '"><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


@pytest.fixture
def page(running: System, browser: Browser) -> Iterator[Browser]:
    """The page, just opened on a wide screen; it must stay without errors."""
    browser.errors.clear()
    browser.prefer(color_scheme="light", reduced_motion="no-preference")
    browser.size(1240, 900)
    browser.do("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    was_watched = bool(running.redis.keys("dedup:*:=watched"))
    browser.open(f"{running.url}/")
    browser.wait(
        f"{LIVE} && document.querySelectorAll('#names li').length === 3 && document.querySelector('#tile-ledger').textContent !== '–'"
    )
    eventually(lambda: running.redis.keys("dedup:*:=watched"))
    if not was_watched:
        time.sleep(LOOK_S)  # each of the listeners' processes looks once in this time whether somebody watches
    yield browser
    assert browser.errors == []


def event(kind: str, number: str, data: Any = None) -> dict[str, Any]:
    return {"type": kind, "source": "page", "id": number, "data": data}


def label_of(key: str) -> str:
    """An expression: what the newest column of an event says."""
    start = json.dumps(f"{key},")
    return f"([...document.querySelectorAll('.column')].map(c => c.ariaLabel).filter(l => l.startsWith({start})).at(-1) ?? '')"


def in_failures(key: str) -> str:
    """An expression: a failure's entry in the list."""
    return f"[...document.querySelectorAll('#failures li')].find(li => li.querySelector('.key').textContent === {json.dumps(key)})"


def press_button(page: Browser, key: str, label: str) -> None:
    """Click a button of a failure, with the mouse."""
    page.js(f"[...{in_failures(key)}.querySelectorAll('button')].find(b => b.textContent === {json.dumps(label)}).id = 'pressed'")
    page.click("#pressed")
    page.js("document.querySelector('#pressed')?.removeAttribute('id')")


def test_an_event_lights_up_where_it_was_won_and_is_grey_where_it_was_skipped(running: System, page: Browser) -> None:
    # When events come one by one
    keys = [key for number in range(8) for key in running.accept([event("fault.count", f"lit-{number}")])]

    # Then each is lit in one lane, the one that the ledger names, and grey in the two others
    for key in keys:
        said = page.wait(f"(l => l.split(' by ').length === 4 && l)({label_of(key)})")
        winner = eventually(lambda key=key: running.db.events.find_one({"_id": key}))["listener"]
        assert f"won by {winner}" in said
        assert all(f"skipped by {name} (" in said for name in LISTENERS if name != winner)
    cells = page.js("[...document.querySelectorAll('.column')].slice(-8).map(c => [...c.children].map(i => i.className).sort().join())")
    assert cells == ["cell skipped,cell skipped,cell won"] * 8
    page.wait("document.querySelector('#sampling').textContent === 'Every event is shown.'")
    page.picture("live")

    # And the counters are those of the listeners
    def told() -> dict[str, int]:
        return {name: sum(listener[name] for listener in running.stats()["listeners"]) for name in ("won", "skipped")}

    eventually(lambda: told()["won"] == running.db.events.count_documents({}))
    wanted = told()
    eventually(lambda: _counters(page) == wanted, 10, lambda: (wanted, _counters(page)))
    page.wait(f"document.querySelector('#tile-ledger').textContent === '{running.db.events.count_documents({})}'")


def _counters(page: Browser) -> dict[str, int]:
    """Won and skipped of all lanes together, as they are shown."""
    texts = page.js("[...document.querySelectorAll('#names li > span')].map(s => s.textContent)")
    found = {"won": 0, "skipped": 0}
    for text in texts:
        for part in text.split(", "):
            name, _, number = part.partition(" ")
            if name in found:
                found[name] += int(number.replace(",", ""))
    return found


def test_what_was_processed_before_the_page_was_opened_is_there(running: System, page: Browser) -> None:
    [key] = running.accept([event("fault.count", "before")])
    winner = eventually(lambda: running.db.events.find_one({"_id": key}))["listener"]
    page.open(f"{running.url}/")
    page.wait(f"{label_of(key)}.includes('won by {winner}')")


def test_a_failure_can_be_discarded_and_retried_from_the_page(running: System, page: Browser) -> None:
    # Given two dead events
    [gone, again] = running.accept([event("fault.mixed", "gone", {"do": "dead"}), event("fault.mixed", "again", {"do": "dead"})])
    page.wait(f"{in_failures(gone)} && {in_failures(again)}", 15)
    assert "never" in page.js(f"{in_failures(gone)}.innerText")
    page.wait(f"{label_of(gone)}.includes('failed by listener-')")

    # When the question is answered with no, nothing happens; with yes, the event is discarded
    press_button(page, gone, "Discard")
    page.wait("document.querySelector('#confirm').open && document.querySelector('#confirm-key').textContent !== ''")
    page.click("#confirm-no")
    page.wait("!document.querySelector('#confirm').open")
    assert running.db.failures.count_documents({"key": gone}) == 1
    press_button(page, gone, "Discard")
    page.wait("document.querySelector('#confirm').open")
    page.click("#confirm-yes")
    page.wait(f"!{in_failures(gone)} && document.querySelector('#decided').textContent.endsWith('discarded.')")
    assert running.db.events.find_one({"_id": gone})["discarded"] is True

    # And the other one is tried again, in vain
    first = running.db.failures.find_one({"key": again})["updated_at"]
    press_button(page, again, "Retry")
    page.wait("document.querySelector('#decided').textContent.endsWith('will be tried again.')")
    eventually(lambda: running.db.failures.find_one({"key": again, "state": "dead", "updated_at": {"$gt": first}}), 15)


def test_a_conflict_is_shown_and_decided(running: System, page: Browser) -> None:
    # Given the same key with other content
    [key] = running.accept([event("fault.count", "twice", {"n": 1})])
    eventually(lambda: running.db.events.find_one({"_id": key}))
    running.accept([event("fault.count", "twice", {"n": 2})])
    page.wait(f"{in_failures(key)}?.querySelector('.badge').textContent === 'conflict'", 15)

    # When the new content is accepted
    press_button(page, key, "Accept new")
    page.wait("document.querySelector('#confirm').open")
    page.click("#confirm-yes")

    # Then it stands, and the story says so
    page.wait(f"!{in_failures(key)}")
    assert running.db.events.find_one({"_id": key})["body"]["data"] == {"n": 2}
    running.told.pop(key)
    page.js(f"document.querySelector('#lookup-key').value = {json.dumps(key)}")
    page.click("#lookup button")
    page.wait("document.querySelector('#story').innerText.includes('other content superseded')")


def test_an_event_s_story_is_found_by_key_and_by_task_id(running: System, page: Browser) -> None:
    [key] = running.accept([event("fault.mixed", "told", {"do": "raise", "times": 1})])
    eventually(lambda: running.db.events.find_one({"_id": key}))
    running.await_finished()
    for asked in (key, f"{key}/listener-2", f"{key}+249/recovery~2", f"  {key} "):
        page.js(f"document.querySelector('#story').replaceChildren(); document.querySelector('#lookup-key').value = {json.dumps(asked)}")
        page.click("#lookup button")
        story = page.wait("document.querySelector('#story').innerText")
        assert key in story
        assert "in attempt 2" in story
        assert '"times": 1' in story
    assert page.js("location.hash") == ""
    page.js("document.querySelector('#lookup-key').value = 'id~page~unheard'")
    page.click("#lookup button")
    page.wait("document.querySelector('#story').innerText.includes('Nothing is known of it')")
    assert any("404" in error for error in page.errors), "the browser notes the status, and that is all"
    page.errors.clear()


def test_hostile_content_is_text(running: System, page: Browser) -> None:
    # Given markup wherever a producer can put it, in an event that is processed and in one that fails
    processed, failed = running.accept(
        [
            {"type": f"t{HOSTILE}", "source": HOSTILE, "id": HOSTILE, "data": {HOSTILE: HOSTILE}},
            {"type": "fault.mixed", "source": HOSTILE, "id": "failed", "data": {"do": "dead", "more": HOSTILE}},
        ]
    )
    running.told.pop(processed)
    running.told.pop(failed)
    page.wait(f"{label_of(processed)}.split(' by ').length === 4")
    page.wait(in_failures(failed), 15)

    # When the page shows it everywhere
    page.js("document.querySelector('.column:last-child').focus()")
    for key in (processed, failed):
        page.open(f"{running.url}/#key={key.replace('%', '%25')}")
        story = page.wait("document.querySelector('#story').innerText")
        assert "<script>window.hacked=1</script>" in story

    # Then nothing of it became code or markup, and nothing tried to
    assert page.js("window.hacked") is None
    assert page.js("document.querySelectorAll('main img, main script, main iframe').length") == 0
    page.picture("hostile", whole=True)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_phone(running: System, page: Browser, width: int) -> None:
    [key] = running.accept([event("fault.mixed", f"{width}-{'wide' * 60}", {"do": "dead", "text": "x" * 3_000})])
    running.told.pop(key)
    page.size(width, 844)
    page.wait(in_failures(key), 15)
    page.js(f"document.querySelector('#lookup-key').value = {json.dumps(key)}")
    page.click("#lookup button")
    page.wait("document.querySelector('#story pre')")
    press_button(page, key, "Discard")
    page.wait("document.querySelector('#confirm').open")
    page.picture(f"phone-{width}-dialog")
    assert page.js("document.documentElement.scrollWidth") == width
    page.click("#confirm-no")
    page.picture(f"phone-{width}", whole=True)
    assert page.js("document.documentElement.scrollWidth") == width
    small = page.js(
        "[...document.querySelectorAll('button, select, input')].filter(e => e.getClientRects().length)"
        ".map(e => [e.className || e.id || e.textContent, e.getBoundingClientRect()]).filter(([, r]) => r.width < 24 || r.height < 24).map(([n]) => n)"
    )
    assert small == [], "targets for fingers"


CONTRASTS = """(() => {
  const style = getComputedStyle(document.documentElement);
  const light = name => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const parts = [0, 2, 4].map(at => parseInt(hex.slice(at, at + 2), 16) / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const found = {};
  for (const ground of ["--card", "--ground"])
    for (const text of ["--text", "--quiet", "--accent", "--won", "--failed", "--left", "--skipped"]) found[`${text} on ${ground}`] = ratio(text, ground);
  return found;
})()"""


def test_it_is_light_or_dark_as_the_user_likes_and_can_be_read_in_both(page: Browser) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        page.prefer(color_scheme=scheme)
        grounds[scheme] = page.js("getComputedStyle(document.body).backgroundColor")
        for pair, ratio in page.js(CONTRASTS).items():
            assert ratio >= (3 if pair.startswith("--skipped") else 4.5), f"{scheme}: {pair}"
        page.picture(scheme, whole=True)
    assert grounds["light"] != grounds["dark"]


def test_nothing_moves_for_who_wants_it_calm(running: System, page: Browser) -> None:
    moving = "document.getAnimations().length"
    page.prefer(reduced_motion="reduce")
    [key] = running.accept([event("fault.count", "calm")])
    page.wait(f"{label_of(key)}.includes('won by')")
    assert page.js(moving) == 0
    page.prefer(reduced_motion="no-preference")
    running.accept([event("fault.count", "lively")])
    page.wait(f"{moving} > 0")


def test_everything_can_be_done_with_the_keyboard(running: System, page: Browser) -> None:
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
    [key] = running.accept([event("fault.mixed", "keys", {"do": "dead"})])
    page.wait(in_failures(key), 15)
    page.wait(f"{label_of(key)} !== ''")

    # The link over everything leads to the look-up
    page.press("Tab")
    assert page.js(focused) == "skip"
    page.press("Enter")
    page.press(key, "Enter")
    page.wait("document.querySelector('#story').innerText.includes('dead after 1 attempt')")
    assert page.js(focused) == "story"

    # Pause, then the events: one stop, and arrow keys
    page.js("document.querySelector('#pause').focus()")
    page.press(" ")
    assert page.js("document.querySelector('#pause').ariaPressed") == "true"
    page.press("Tab")
    newest = page.js("document.activeElement.ariaLabel")
    assert newest == page.js("document.querySelector('.column:last-child').ariaLabel")
    page.press("ArrowLeft")
    assert page.js("document.activeElement === document.querySelector('.column:last-child').previousSibling")
    assert page.js("document.querySelector('#under').textContent === document.activeElement.ariaLabel")
    page.press("Home", "ArrowLeft", "End", "ArrowRight")
    assert page.js("document.activeElement.ariaLabel") == newest
    page.js("document.querySelector('#story').replaceChildren()")
    page.press("Enter")
    page.wait("document.querySelector('#story h3')")

    # A failure: its buttons, the question, and back
    page.js("document.querySelector('#failures-state').focus()")
    page.js(
        "document.querySelector('#failures-state').value = 'dead'; document.querySelector('#failures-state').dispatchEvent(new Event('change'))"
    )
    page.wait(f"document.querySelectorAll('#failures li').length && {in_failures(key)}")
    page.js(f"{in_failures(key)}.querySelector('.key').focus()")
    page.press("Tab", "Tab")
    assert page.js("document.activeElement.ariaLabel") == f"Discard: {key}"
    page.press("Enter")
    page.wait("document.querySelector('#confirm').open")
    assert page.js(focused) == "confirm-no", "what does no harm comes first"
    page.press("Escape")
    page.wait("!document.querySelector('#confirm').open")
    assert page.js("document.activeElement.ariaLabel") == f"Discard: {key}"
    page.press("Enter")
    page.wait("document.querySelector('#confirm').open")
    page.press("Tab")
    assert page.js(focused) == "confirm-yes"
    page.press("Enter")
    page.wait(f"!{in_failures(key)}")
    running.told.pop(key)
    assert page.js("document.activeElement !== document.body"), "the focus is not lost with what was decided"


def test_a_screen_reader_finds_names_for_everything(running: System, page: Browser) -> None:
    [key] = running.accept([event("fault.mixed", "heard", {"do": "dead"})])
    page.wait(in_failures(key), 15)
    nodes = page.do("Accessibility.getFullAXTree")["nodes"]
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    nameless = [role for role, name in roles if role in ("button", "textbox", "combobox", "link", "region", "group", "list") and not name]
    assert [role for role in nameless if role != "list"] == []
    assert {"Listeners", "Failures", "Look up an event"} <= {name for role, name in roles if role == "region"}
    assert page.js("document.querySelector('#summary').ariaLive") == "polite"
    assert page.js("document.documentElement.lang") == "en"


def test_at_1000_events_a_second_it_stays_smooth_and_small_and_says_that_it_shows_a_sample(running: System, page: Browser) -> None:
    before, began = page.numbers(), time.monotonic()
    page.js("window.longest = 0; new PerformanceObserver(l => l.getEntries().forEach(e => { window.longest = Math.max(window.longest, e.duration) }))"
            ".observe({entryTypes: ['longtask']})")  # fmt: skip
    stop = threading.Event()
    sent = [0]

    def publish() -> None:
        with httpx.Client(timeout=20) as http:
            while not stop.is_set():
                number = sent[0]
                batch = [event("stored", f"many-{number + n}", {"n": n}) for n in range(50)]
                http.post(f"{running.url}/events", json=batch).raise_for_status()
                sent[0] += 50
                stop.wait(max(0.0, began + sent[0] / 1_000 - time.monotonic()))

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        page.wait("/^A sample is shown: [0-9]+ of [0-9,]+ events a second.$/.test(document.querySelector('#sampling').textContent)", 15)
        eventually(lambda: sent[0] >= 4_000, 30, lambda: sent, every_s=0.2)
        after, seconds, longest = page.numbers(), time.monotonic() - began, page.js("window.longest")
        page.picture("busy")
    finally:
        stop.set()
        publisher.join()
    busy = (after["TaskDuration"] - before["TaskDuration"]) / seconds
    print({name: round(after[name] - before[name], 3) for name in after if name.endswith("Duration")})
    print(f"{sent[0] / seconds:.0f} events/s; main thread busy {busy:.0%}, longest task {longest:.0f} ms")
    assert busy < 0.3, "of one core; what it waits for others on a busy machine is not counted"
    assert page.js("document.querySelectorAll('.column').length") < 60
    page.wait("/In the last ten seconds: .*listener-[123] (won|skipped) [0-9]/.test(document.querySelector('#summary').textContent)", 12)
    running.await_finished()
    said = "[...document.querySelectorAll('.column')].map(c => c.ariaLabel).filter(l => l.split(' by ').length !== 4)"
    eventually(lambda: page.js(said) == [], 5, lambda: f"all is told of what is shown, not so of {page.js(said)}")


def test_looking_at_an_event_holds_the_lanes_and_pausing_does_too(running: System, page: Browser) -> None:
    [key] = running.accept([event("fault.count", "held-1")])
    page.wait(f"{label_of(key)}.includes('won by')")
    page.js("document.querySelector('.column:last-child').focus()")
    [unseen] = running.accept([event("fault.count", "held-2")])
    page.wait("document.querySelector('#sampling').textContent.startsWith('Held while you look at an event: 1 since then')")
    page.js("document.activeElement.blur()")
    page.click("#pause")
    page.wait("document.querySelector('#sampling').textContent.startsWith('Paused')")
    assert page.js(f"{label_of(key)}.startsWith({json.dumps(key)})")
    assert page.js(f"{label_of(unseen)}") == ""
    page.click("#pause")
    [seen] = running.accept([event("fault.count", "held-3")])
    page.wait(f"{label_of(seen)}.includes('won by')")


def test_with_a_token_set_the_page_asks_for_it_and_comes_back_after_an_outage(
    servers: EmbeddedServers, browser: Browser, tmp_path: Path
) -> None:
    # Given a broadcaster with a token
    settings = replace(fresh_settings(servers, tmp_path), token="s3cret")
    with broadcaster_process(settings, tmp_path) as (_, url):
        browser.open(f"{url}/")
        browser.wait("document.querySelector('#ask').open")
        browser.picture("token")

        # When the wrong one and then the right one is given
        browser.press("wrong", "Enter")
        browser.wait("document.querySelector('#ask-wrong').textContent === 'That was not the token.'")
        browser.press("s3cret", "Enter")

        # Then the page is let in, and remembers it in this tab
        browser.wait(LIVE)
        browser.wait("document.querySelector('#problems').textContent.includes('No listener is alive')", 5)
        browser.do("Page.reload")
        browser.wait(f"{LIVE} && !document.querySelector('#ask').open")
        assert browser.js("localStorage.length") == 0

    # When the broadcaster is away for a while
    browser.wait("document.querySelector('#connection').dataset.state === 'lost'")
    (tmp_path / "broadcaster.log").unlink()
    with broadcaster_process(settings, tmp_path):
        browser.wait(LIVE, 20)
    remove_data(settings)
    browser.open("about:blank#away")
    browser.errors.clear()
