"""The publisher against a broadcaster that is a function."""

import gzip
import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from app.errors import PermanentError
from app.publisher import MAX_BODY_BYTES, NotTaken, Publisher, Refused, UnfitToken

Answer = httpx.Response | Exception


class Door:
    """Answers requests one after the other; keeps what came."""

    def __init__(self, *answers: Answer) -> None:
        self.answers: Iterator[Answer] = iter(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def bodies(self) -> list[object]:
        return [json.loads(request.content) for request in self.requests]


def accepted(*keys: str) -> httpx.Response:
    return httpx.Response(202, json={"accepted": len(keys), "keys": keys, "batch": "b"})


def problem(status: int, detail: str, **more: object) -> httpx.Response:
    return httpx.Response(status, json={"detail": detail, **more})


def publisher(door: Door, *, pauses: list[float] | None = None, told: Callable[[str, float], None] | None = None, **options) -> Publisher:
    sleep = (pauses if pauses is not None else []).append
    return Publisher("http://door/", transport=httpx.MockTransport(door), sleep=sleep, on_wait=told, **options)


def test_events_go_as_one_request_and_their_keys_come_back():
    door = Door(accepted("k1", "k2"))
    with publisher(door, token="secret") as sending:
        assert sending.send([b'{"type": "a"}', {"type": "b"}]) == ["k1", "k2"]
    assert door.bodies == [[{"type": "a"}, {"type": "b"}]]
    assert str(door.requests[0].url) == "http://door/events"
    assert door.requests[0].headers["Authorization"] == "Bearer secret"


def test_an_unknown_outcome_is_met_by_the_very_same_request():
    door = Door(httpx.ConnectError("refused"), problem(503, "the inbox is full"), httpx.ReadTimeout("late"), accepted("k"))
    pauses: list[float] = []
    told: list[str] = []
    with publisher(door, pauses=pauses, told=lambda why, _: told.append(why)) as sending:
        assert sending.send([b"{}"]) == ["k"]
    assert len(door.requests) == 4
    assert len({request.content for request in door.requests}) == 1
    assert told[:2] == ["nothing answers there", "the inbox is full"]
    assert all(0 < pause <= 5 for pause in pauses)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 507, 408, 425, 429])
def test_a_fault_of_a_server_is_no_refusal(status: int):
    """G1: a refusal means that nothing was accepted, and after a fault nobody knows."""
    door = Door(problem(status, "an unexpected error"), accepted("k"))
    with publisher(door) as sending:
        assert sending.send([b"{}"]) == ["k"]


def test_the_pause_is_the_one_that_the_broadcaster_asks_for():
    door = Door(httpx.Response(503, headers={"Retry-After": "7"}, json={}), accepted("k"))
    pauses: list[float] = []
    with publisher(door, pauses=pauses) as sending:
        sending.send([b"{}"])
    assert pauses == [7.0]


def test_patience_ends():
    door = Door(*[problem(503, "MongoDB is away")] * 3)
    with publisher(door, patience_s=0.0) as sending, pytest.raises(NotTaken, match=r"MongoDB is away.*sending them again"):
        sending.send([b"{}"])
    assert len(door.requests) == 1


def test_a_refusal_says_where_and_is_not_repeated():
    door = Door(problem(422, "the event has no type", index=3, field="type"))
    with publisher(door) as sending, pytest.raises(Refused, match=r"^the event has no type$") as raised:
        sending.send([b"{}"])
    assert (raised.value.status, raised.value.index, raised.value.field) == (422, 3, "type")


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(202, json=[1]), httpx.Response(202, json={})])
def test_something_else_that_answers_is_no_broadcaster(answer):
    with publisher(Door(answer)) as sending, pytest.raises(PermanentError, match="no broadcaster"):
        sending.send([b"{}"])


@pytest.mark.parametrize("status", [302, 404, 405])
def test_an_address_without_the_door_is_named_whatever_it_says(status: int):
    door = Door(httpx.Response(status, json={"detail": "Not Found"}))
    with publisher(door) as sending, pytest.raises(Refused, match=rf"^no broadcaster answers at http://door: HTTP {status} ") as raised:
        sending.send([b"{}"])
    assert raised.value.status == status


@pytest.mark.parametrize("answer, answered", [(httpx.ConnectError("refused"), False), (problem(503, "full"), True)])
def test_what_was_not_taken_says_whether_anything_answered(answer: Answer, answered: bool):
    with publisher(Door(answer), patience_s=0.0) as sending, pytest.raises(NotTaken) as raised:
        sending.send([b"{}"])
    assert raised.value.answered is answered


@pytest.mark.parametrize("token", ["…", "gehéim", "secret\n", "a\tb", "\x7f"])
def test_a_token_that_no_header_holds_is_refused_at_once_and_not_shown(token: str):
    with pytest.raises(ValueError, match="must be printable ASCII") as raised:
        Publisher("http://door", token=token)
    assert isinstance(raised.value, UnfitToken)
    assert token not in str(raised.value)


def test_a_url_that_is_none_is_said():
    with Publisher("localhost:4000") as sending, pytest.raises(PermanentError, match="no URL of a broadcaster"):
        sending.send([b"{}"])


# ----------------------------------------------------------------------------------------------------- any number of events


def broadcaster(*, most: int = 500, wrong: int | None = None) -> tuple[Door, list[int]]:
    """A door that takes requests of at most so many events, and refuses the event with one number; the numbers that it took."""
    door = Door()
    taken: list[int] = []

    def answers() -> Iterator[httpx.Response]:
        while True:
            request = door.requests[-1]
            content = gzip.decompress(request.content) if request.headers.get("Content-Encoding") == "gzip" else request.content
            numbers = [event["n"] for event in json.loads(content)]
            if len(numbers) > most:
                yield problem(413, "too many")
            elif wrong in numbers:
                yield problem(422, "wrong", index=numbers.index(wrong), field="n")
            else:
                taken.extend(numbers)
                yield accepted(*map(str, numbers))

    door.answers = answers()
    return door, taken


@pytest.mark.parametrize("most", [1, 7, 500])
@pytest.mark.parametrize("count", [0, 1, 500, 501, 1_203])
def test_any_number_of_events_goes_in_requests_that_fit(most, count):
    door, taken = broadcaster(most=most)
    with publisher(door) as sending:
        assert sending.send_all({"n": n} for n in range(count)) == count
    assert taken == list(range(count))


def test_requests_are_bounded_in_bytes_too():
    door, taken = broadcaster()
    with publisher(door) as sending:
        assert sending.send_all({"n": n, "data": "x" * 100_000} for n in range(100)) == 100
    assert max(len(request.content) for request in door.requests) < MAX_BODY_BYTES + 1_000
    assert len(door.requests) == 3
    assert taken == list(range(100))


@pytest.mark.parametrize("most", [10, 500])
def test_a_wrong_event_is_named_by_its_place_among_all(most):
    door, taken = broadcaster(most=most, wrong=777)
    with publisher(door) as sending, pytest.raises(Refused, match="wrong") as raised:
        sending.send_all({"n": n} for n in range(1_000))
    assert (raised.value.status, raised.value.index, raised.value.field) == (422, 777, "n")
    assert taken == list(range(len(taken)))
    assert 777 - most < len(taken) <= 777


def test_an_event_that_is_too_large_by_itself_is_refused():
    door, _ = broadcaster(most=0)
    with publisher(door) as sending, pytest.raises(Refused) as raised:
        sending.send_all([{"n": 1}, {"n": 2}])
    assert (raised.value.status, raised.value.index) == (413, 0)


def test_events_are_read_as_they_are_sent():
    door, taken = broadcaster()
    with publisher(door) as sending:
        read = 0

        def events() -> Iterator[dict[str, int]]:
            nonlocal read
            for n in range(2_000):
                read += 1
                assert read - len(taken) <= 501
                yield {"n": n}

        assert sending.send_all(events()) == 2_000


def test_one_event_needs_no_list():
    door = Door(accepted("k"), accepted("k"))
    with publisher(door) as sending:
        assert sending.send({"type": "a"}) == sending.send(b'{"type": "a"}') == ["k"]
    assert door.bodies == [[{"type": "a"}]] * 2


def test_long_requests_go_packed_and_are_repeated_as_they_were():
    door = Door(problem(503, "full"), accepted("k"), accepted("k"))
    with publisher(door, compress=True) as sending:
        sending.send({"type": "a", "data": "x" * 10_000})
        sending.send({"type": "a"})
    first, again, short = door.requests
    assert (first.headers["Content-Encoding"], len(first.content) < 500) == ("gzip", True)
    assert first.content == again.content
    assert json.loads(gzip.decompress(first.content)) == [{"type": "a", "data": "x" * 10_000}]
    assert "Content-Encoding" not in short.headers


def test_the_limit_of_a_client_is_met_by_waiting():
    door = Door(httpx.Response(429, headers={"Retry-After": "3"}, json={"detail": "too fast"}), accepted("k"))
    pauses: list[float] = []
    with publisher(door, pauses=pauses) as sending:
        sending.send({})
    assert pauses == [3.0]
    door = Door(httpx.Response(429, headers={"Retry-After": "3600"}, json={"detail": "too fast"}))
    with publisher(door, pauses=pauses) as sending, pytest.raises(NotTaken, match="too fast"):
        sending.send({})
