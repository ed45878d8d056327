"""Foreign Socket.IO servers as feeds: real servers, real connections, a bridge as a user starts it."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import bson
import httpx
import pytest
from pymongo.database import Database
from socketio.exceptions import ConnectionError as SocketError
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from app.decisions import DecisionRefused, Decisions
from app.embedded.ports import free_port
from app.embedded.process import ManagedProcess
from app.events.policies import Policies
from app.events.source_file import source_from
from app.events.sources import Source
from app.feeding import FeedState, FeedStates
from app.leases import Lease
from app.settings import Settings
from app.stores import mongo
from app.stores.capacity import measure, why_full
from broadcaster.bridge.buffer import Buffer
from broadcaster.bridge.client import MAX_MESSAGE_BYTES, OrderedClient
from broadcaster.bridge.foreign import ForeignFeed
from broadcaster.bridge.malformed import MAX_BODY_BYTES, MAX_KEPT, MalformedStore
from broadcaster.bridge.watch import ROLE
from tests.support.bridging import Place, place_of
from tests.support.system import ROOT
from tests.support.waiting import eventually

QUICK: dict[str, Any] = {"lease_ms": 600, "grace_ms": 60_000, "sweep_ms": 100, "heartbeat_ms": 200, "listener_grace_s": 60}


class Foreign:
    """Somebody else's server."""

    def __init__(self, spawn: Callable[..., ManagedProcess], token: str = "") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._argv = ["python", "-m", "tests.support.foreign_server", str(self.port), *([token] if token else [])]
        self._spawn = spawn
        self.start()

    def start(self) -> None:
        self.process = self._spawn("foreign", self._argv, cwd=ROOT)
        eventually(self._answers, 20, self.process.log_tail)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/clients").status_code == 200
        except httpx.TransportError:
            return False

    def await_clients(self, number: int) -> None:
        eventually(lambda: httpx.get(f"{self.url}/clients").json() == number, 20)

    def emit(self, *payloads: Any, event: str = "departure", namespace: str = "/", **more: Any) -> None:
        order = {"event": event, "namespace": namespace, "payloads": list(payloads)} | more
        httpx.post(f"{self.url}/emit", json=order, timeout=20).raise_for_status()

    def ask(self, payload: Any, *, patience_s: float = 10) -> bool:
        order = {"event": "departure", "payload": payload, "patience_s": patience_s}
        answered: bool = httpx.post(f"{self.url}/ask", json=order, timeout=60).raise_for_status().json()
        return answered

    def raw(self, text: str) -> None:
        httpx.post(f"{self.url}/raw", content=text.encode()).raise_for_status()


@pytest.fixture
def place(make_settings) -> Iterator[Place]:
    with place_of(make_settings(**QUICK)) as made:
        yield made


def state_of(place: Place) -> FeedState | None:
    return next(iter(FeedStates(place.redis, place.deployment).all()), None)


def accepted(place: Place) -> dict[str, Any]:
    return {e["key"]: e["body"]["data"] for d in place.db.inbox.find().sort("_id") for e in d["events"]}


def bridge(spawn, place: Place, *arguments: str, **env: str) -> ManagedProcess:
    made: ManagedProcess = spawn("feed", ["dedup", "bridge", *arguments], settings=place.settings, env=env)
    return made


def test_a_foreign_server_s_events_are_accepted_and_forwarded_at_once(place, spawn):
    foreign = Foreign(spawn, token="s3cret")
    place.beat("listener-1")
    other = Lease(place.redis, place.deployment, ROLE, owner="another bridge", life_ms=60_000)
    assert other.hold(), "so the feed's bridge stands by"
    process = bridge(
        spawn, place, "--from", foreign.url, "--event", "departure", "--namespace", "/flights", "--auth", "env:FEED_TOKEN",
        "--type", "kind", "--key", "carrier", "--key", "no", FEED_TOKEN="s3cret",
    )  # fmt: skip
    foreign.await_clients(1)
    eventually(lambda: "bridge.standby" in process.log.read_text(), 10, process.log_tail)
    place.beat("listener-1")

    flights = [{"kind": "flight.departed", "carrier": "UA", "no": n} for n in range(300)]
    foreign.emit(*flights, {"carrier": "UA", "no": 1}, "binary", 5, namespace="/flights")
    foreign.emit({"kind": "k", "carrier": "UA", "no": 5}, namespace="/")  # another namespace

    eventually(lambda: len(accepted(place)) == 300, 10, process.log_tail)
    source = f"127.0.0.1:{foreign.port}"
    assert accepted(place)[f'id~{source}~["UA",7]'] == flights[7]
    assert {d["door"] for d in place.db.inbox.find()} == {"feed"}
    assert {e["type"] for d in place.db.inbox.find() for e in d["events"]} == {"flight.departed"}
    eventually(lambda: sum(len(sent.delivery.keys) for sent in place.of("listener-1")) == 300, 5, process.log_tail)
    eventually(lambda: all(d["forwards"] == 1 and d["seq"] for d in place.db.inbox.find()), 5)

    failures = list(place.db.failures.find())
    assert [f["state"] for f in failures] == ["malformed"] * 3
    assert all(f["_id"] == f"{f['key']}#{f['digest']}" and f["reason"] for f in failures)
    assert {str(f["body"]["data"]) for f in failures} >= {"{'carrier': 'UA', 'no': 1}", "5"}
    found = eventually(lambda: (s := state_of(place)) and s.accepted == 300 and s, 5)
    assert (found.connected, found.received, found.malformed, found.unaccepted) == (True, 303, 3, 0)
    status = spawn("status", ["dedup", "status"], settings=place.settings)
    eventually(lambda: "connected, 300 accepted, 3 malformed" in status.log_tail(), 15, status.log_tail)

    assert process.terminate(deadline_s=5) == 0
    assert state_of(place) is None


def test_g5_one_payload_does_not_hold_up_those_behind_it(place, spawn):
    foreign = Foreign(spawn)
    place.beat("listener-1")
    process = bridge(spawn, place, "--from", foreign.url, "--event", "departure", "--key", "carrier", "--key", "no")
    foreign.await_clients(1)
    foreign.raw('2["departure",{"carrier":"\\ud800","no":1}]')
    foreign.emit({"carrier": "UA", "no": 2})
    eventually(lambda: len(accepted(place)) == 1, 15, process.log_tail)
    (failure,) = eventually(lambda: list(place.db.failures.find()), 10, process.log_tail)
    assert (failure["state"], "\\ud800" in failure["body"]["data"]) == ("malformed", True)
    assert "bridge.failed" not in process.log.read_text()


def test_g5_nor_does_one_that_reading_did_not_foresee(place, spawn, monkeypatch):
    foreign = Foreign(spawn)
    foreseen = Source.event_of

    def event_of(self, payload):
        if payload == {"n": 1}:
            raise RecursionError
        return foreseen(self, payload)

    monkeypatch.setattr(Source, "event_of", event_of)
    here = InProcess(place.settings, place.db, foreign.url)
    here.start()
    foreign.await_clients(1)
    foreign.emit({"n": 1}, {"n": 2})
    eventually(lambda: len(accepted(place)) == 1, 15)
    (failure,) = eventually(lambda: list(place.db.failures.find()), 10)
    here.end()
    assert failure["reason"] == "reading it failed: RecursionError"


def test_a_server_that_goes_away_or_speaks_rubbish_is_borne(place, spawn):
    foreign = Foreign(spawn)
    process = bridge(spawn, place, "--from", foreign.url, "--event", "departure", "--id", "n")
    foreign.await_clients(1)
    foreign.emit({"n": 1})
    for text in (
        "",
        "9",
        "2{",
        '2["departure"',
        '2["departure",',
        "2[]",
        "2{}",
        '51-["departure",{"_placeholder":true,"num":0}]',
        "x" * 100_000,
        '2["departure"]',
    ):
        foreign.raw(text)
    foreign.emit([{"n": 2}, {"n": 3}], several=True)  # the first is no argument list of one
    foreign.emit({"n": 4})
    eventually(lambda: len(accepted(place)) == 2, 10, process.log_tail)

    foreign.process.kill()
    eventually(lambda: (s := state_of(place)) and not s.connected, 15, process.log_tail)
    foreign.start()
    foreign.await_clients(1)
    foreign.emit({"n": 5})
    eventually(lambda: len(accepted(place)) == 3, 10, process.log_tail)
    found = eventually(lambda: (s := state_of(place)) and s.accepted == 3 and s, 5)
    assert found.rubbish > 0
    assert process.log.read_text().count("bridge.rubbish") == 1
    assert "Traceback" not in process.log.read_text()


def test_feeds_of_the_policy_file_and_what_is_wrong_with_the_command_line(place, spawn, tmp_path):
    foreign = Foreign(spawn, token="s3cret")
    (tmp_path / "policies.toml").write_text(
        f"[feeds.airport]\nurl = '{foreign.url}'\nevent = 'departure'\nkey = 'n'\ntransport = 'polling'\nauth = 'env:AIRPORT_TOKEN'\n"
    )
    (tmp_path / ".env").write_text("AIRPORT_TOKEN=s3cret\n")  # the secret may stand where settings stand
    process = bridge(spawn, place, "--from", "airport", DEDUP_POLICIES=str(tmp_path / "policies.toml"))
    foreign.await_clients(1)
    foreign.emit({"n": 1})
    eventually(lambda: list(accepted(place)) == ["id~airport~1"], 10, process.log_tail)
    process.terminate()

    for arguments, code, said in (
        (["--from", "nowhere"], 1, "the policy file has no feed 'nowhere'"),
        (["--from", foreign.url], 2, "needs --event NAME"),
        (["--event", "departure"], 2, "needs --from"),
        (["--from", foreign.url, "--event", "departure", "--key", "a["], 1, "is no JMESPath"),
        (["--from", foreign.url, "--event", "departure", "--auth", "env:NOT_SET_ANYWHERE"], 1, "NOT_SET_ANYWHERE"),
    ):
        failed = bridge(spawn, place, *arguments)
        eventually(lambda it=failed: not it.alive, 20)  # type: ignore[misc]
        assert failed.returncode == code
        assert said in failed.log_tail().replace("\n", " "), failed.log_tail()


class InProcess:
    """A feed without its bridge."""

    def __init__(self, settings: Settings, db: Database[dict[str, Any]], url: str) -> None:
        source = source_from("test", "airport", {"url": url, "event": "departure", "key": "n"})
        self.feed = ForeignFeed(source, settings, Policies.load(None, settings), db, lambda _: None)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self.feed.run, args=(self._stop, lambda: None)),
            threading.Thread(target=self.feed.accept, args=(self._stop,)),
        ]

    def start(self) -> ForeignFeed:
        for thread in self._threads:
            thread.start()
        return self.feed

    def end(self) -> None:
        self._stop.set()
        self.feed.close()
        for thread in self._threads:
            thread.join(20)


@pytest.mark.fault
def test_g7_what_mongodb_cannot_take_waits_and_what_finds_no_room_is_counted(private_servers, private_settings, spawn, capsys):
    """G7: the buffer has an end; what is in it is accepted when MongoDB is back, the rest is counted as not accepted."""
    foreign = Foreign(spawn)
    with place_of(private_settings) as place:
        hasty = replace(private_settings, mongo_timeout_ms=500)
        hasty_db = mongo.connect(hasty, role="feed")
        here = InProcess(hasty, hasty_db, foreign.url)
        here.feed._buffer = Buffer(max_payloads=5)
        feed = here.start()
        foreign.await_clients(1)
        foreign.emit({"n": 0})
        eventually(lambda: feed.accepted == 1, 10)
        node = private_servers.mongo.nodes[0]
        node.pause()
        foreign.emit(*[{"n": n} for n in range(1, 13)], {"no": "n"})
        eventually(lambda: feed.state().received == 14 and feed.state().unaccepted > 0, 10)
        eventually(lambda: "inbox, for feed" in capsys.readouterr().out, 10, "that it waits for the inbox")
        node.resume()

        eventually(lambda: feed.state().waiting == 0, 30)
        here.end()
        hasty_db.client.close()
        found = feed.state()
        assert found.accepted + found.malformed + found.unaccepted == found.received == 14
        assert found.unaccepted >= 13 - 5 - 1
        assert len(accepted(place)) == found.accepted


@pytest.mark.fault
def test_g1_a_server_that_waits_for_acknowledgements_gets_them_when_its_events_are_accepted(private_servers, private_settings, spawn):
    """G1: acknowledged means in the inbox by majority, at this door, too; no event gets one as well, for sent again it would be none again."""
    foreign = Foreign(spawn)
    with place_of(private_settings) as place:
        hasty = replace(private_settings, mongo_timeout_ms=500)
        hasty_db = mongo.connect(hasty, role="feed")
        here = InProcess(hasty, hasty_db, foreign.url)
        here.start()
        foreign.await_clients(1)
        assert foreign.ask({"n": 1})
        assert list(accepted(place)) == ["id~airport~1"]
        assert foreign.ask({"no": "n"})
        assert place.db.failures.count_documents({"state": "malformed"}) == 1

        node = private_servers.mongo.nodes[0]
        node.pause()
        assert not foreign.ask({"n": 2}, patience_s=2)
        node.resume()
        assert eventually(lambda: foreign.ask({"n": 2}), 20), "it asks again"
        eventually(lambda: list(accepted(place)) == ["id~airport~1", "id~airport~2"], 10)
        here.end()
        hasty_db.client.close()


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_a_server_that_does_not_answer_is_named_with_the_reason_and_without_its_password(transport):
    port = free_port()
    client = OrderedClient(timeout_s=5)
    with pytest.raises(SocketError, match=rf"^http://127\.0\.0\.1:{port}: .*[Cc]onnection refused") as raised:
        client.connect(f"http://user:s3cret@127.0.0.1:{port}", transports=[transport])
    assert "s3cret" not in str(raised.value)


def test_an_acknowledgement_is_for_its_own_connection_alone():
    """G1: the same number means another event on the next connection."""
    asked: list[Callable[[], None]] = []
    answers: list[str] = []

    def serve_one(connection: ServerConnection) -> None:
        connection.send('0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":20000}')
        connection.recv()
        connection.send('40{"sid":"t"}')
        connection.send('427["departure",1]')
        try:
            for message in connection:
                answers.append(str(message))
                if message == "end":
                    return
        except ConnectionClosed:
            pass

    with serve(serve_one, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = OrderedClient(timeout_s=5)
        client.hear("departure", "/", lambda _arguments, acknowledge: asked.append(acknowledge))
        for number in (1, 2):
            client.connect(f"http://127.0.0.1:{server.socket.getsockname()[1]}", transports=["websocket"])
            eventually(lambda number=number: len(asked) == number, 10)  # type: ignore[misc]
            if number == 1:
                client.disconnect()
        asked[0]()
        asked[1]()
        eventually(lambda: "437[]" in answers, 10)
        client.disconnect()
        server.shutdown()
        thread.join(10)
    assert answers.count("437[]") == 1


def test_g7_malformed_payloads_are_kept_up_to_a_number(place):
    """G7: a server that changed its form does not fill ``failures``."""
    source = source_from("test", "airport", {"url": "http://h", "event": "departure"})
    store = MalformedStore(source, place.db, max_kept=3)
    for n in (1, 2, 2, 3, 4, 5):
        store.note({"n": n}, ValueError("no key"))  # type: ignore[arg-type]
        store.flush()

    assert place.db.failures.count_documents({"state": "malformed"}) <= 3
    assert (store.seen, store.seen - store.unkept) == (6, 3)


def test_g7_malformed_payloads_that_are_huge_are_kept_in_part_and_hold_nothing_up(place):
    """G7: of each only the beginning; a payload that BSON could not hold would else be tried for ever, and its feed with it."""
    store = MalformedStore(source_from("test", "airport", {"url": "http://h", "event": "departure"}), place.db)
    payloads = [
        [1] * 3_000_000,
        [2] * 30_000,
        {"n": "x" * 5_000_000},
        b"y" * 17_000_000,
        "ä" * 200_000,
        {"blob": b"z" * 1_000_000},
        [[2**70]],
    ]
    for payload in payloads:
        store.note(payload, ValueError("no key"))  # type: ignore[arg-type]
    store.flush()

    kept = list(place.db.failures.find({"state": "malformed"}))
    assert len({d["digest"] for d in kept}) == len(payloads)
    assert all(len(bson.encode(d)) < MAX_BODY_BYTES + 1_000 for d in kept)
    assert {str(d["body"]["data"])[:4] for d in kept} >= {"[1,1", "[2,2", '{"n"', "ääää", "[[11"}
    assert place.settings.failures_max_bytes > MAX_KEPT * (MAX_BODY_BYTES + 1_000)


def test_g7_no_feed_closes_the_doors_with_what_is_no_event(place, spawn):
    """G7: however low the limit of ``failures`` is, malformed payloads take half of it at most."""
    foreign = Foreign(spawn)
    settings = replace(place.settings, failures_max=6)
    here = InProcess(settings, place.db, foreign.url)
    feed = here.start()
    foreign.await_clients(1)
    foreign.emit(*[{"no": number} for number in range(20)], {"n": 1})
    eventually(lambda: feed.accepted == 1 and feed.state().malformed == 20, 10)
    here.end()
    assert place.db.failures.count_documents({}) == 3
    assert feed.state().unkept == 17
    assert why_full(measure(place.db), settings) == ""


def test_a_malformed_payload_is_discarded_and_never_tried_as_if_it_were_an_event(place):
    """It has neither source, id nor data as handlers expect them: a retry would hand them somebody else's payload raw."""
    store = MalformedStore(source_from("test", "airport", {"url": "http://h", "event": "departure"}), place.db)
    store.note({"number": 5}, ValueError("no key"))  # type: ignore[arg-type]
    store.flush()
    (failure,) = place.db.failures.find()
    decisions = Decisions.on(place.db)
    with pytest.raises(DecisionRefused, match="no event, so handlers cannot have it"):
        decisions.retry(failure["key"], failure["digest"])
    assert place.db.failures.find_one() == failure
    assert place.failures.due(10) == []
    assert decisions.discard(failure["key"], failure["digest"]) == "discarded"
    assert place.db.failures.count_documents({}) == 0


def test_a_buffer_is_bounded_by_number_and_by_bytes():
    buffer = Buffer(max_payloads=3, max_bytes=100)
    assert buffer.put("huge", 5_000)
    assert not buffer.put("b", 1)
    buffer.drop(1)
    assert [buffer.put(n, 40) for n in range(3)] == [True, True, False]
    assert buffer.first(1, 0) == [0]
    assert buffer.first(10, 0) == [0, 1]
    buffer.drop(2)
    assert [buffer.put(n, 1) for n in range(4)] == [True, True, True, False]
    assert (buffer.received, buffer.refused, len(buffer)) == (9, 3, 3)


def test_a_server_whose_handshake_is_none_is_tried_again_until_it_is_one():
    """Whatever it says first, the next connection begins anew, and no socket is left open."""
    rest = '"sid":"s","upgrades":[]'
    pings = ("null", "1e400", "NaN", '"a"', "[]")
    firsts = [
        "0{}",
        "0[]",
        '0"x"',
        "0",
        "",
        "x",
        "1",
        "6",
        "4",
        b"\x00\xff",
        *(f'0{{{rest},"pingInterval":{p},"pingTimeout":{p}}}' for p in pings),
    ]
    good = [f'0{{{rest},"pingInterval":{p},"pingTimeout":{p}}}' for p in (-5, 0, 25000)]
    said = iter([*firsts, *good])
    heard: list[Any] = []

    def serve_one(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.send(next(said))
            connection.recv(timeout=10)
            connection.send('40{"sid":"t"}')
            connection.send('42["departure",1]')
            connection.recv(timeout=10)

    with serve(serve_one, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = OrderedClient(timeout_s=5)
        client.hear("departure", "/", lambda arguments, _acknowledge: heard.extend(arguments))
        for first in firsts:
            with pytest.raises((SocketError, OSError)):
                client.connect(f"http://127.0.0.1:{server.socket.getsockname()[1]}", transports=["websocket"])
            assert not client.connected, first
        for number, _ in enumerate(good, 1):
            client.connect(f"http://127.0.0.1:{server.socket.getsockname()[1]}", transports=["websocket"])
            eventually(lambda number=number: len(heard) == number, 10)  # type: ignore[misc]
            client.disconnect()
        server.shutdown()
        thread.join(10)
    gc.collect()


def test_g7_a_message_that_is_too_long_is_not_read():
    """G7: a foreign server that sends more than fits into memory loses its connection, in one frame or in many."""
    heard: list[object] = []

    def hostile(connection: ServerConnection) -> None:
        connection.send('0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":20000}')
        connection.recv()
        connection.send('40{"sid":"t"}')
        connection.send('42["departure",1]')
        assert connected.wait(10)
        connected.clear()
        try:
            if len(served) == 1:
                connection.send('42["departure","' + "x" * MAX_MESSAGE_BYTES + '"]')
            else:
                connection.send(['42["departure","', *["x" * 1_000_000] * 20, '"]'])
            connection.recv()
        except ConnectionClosed:
            cut.append(True)

    connected = threading.Event()
    served: list[bool] = []
    cut: list[bool] = []

    def serve_one(connection: ServerConnection) -> None:
        served.append(True)
        hostile(connection)

    with serve(serve_one, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for _ in range(2):
            client = OrderedClient(timeout_s=5)
            client.on("departure", heard.append)
            client.connect(f"http://127.0.0.1:{server.socket.getsockname()[1]}", transports=["websocket"])
            connected.set()
            eventually(lambda it=client: not it.connected, 15)  # type: ignore[misc]
        server.shutdown()
        thread.join(10)
    assert heard == [1, 1]
    assert cut == [True, True]
