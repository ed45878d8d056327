"""The publisher against a broadcaster that is a function."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from app.errors import PermanentError
from app.publisher import NotTaken, Publisher, Refused

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


def test_a_url_that_is_none_is_said():
    with Publisher("localhost:4000") as sending, pytest.raises(PermanentError, match="no URL of a broadcaster"):
        sending.send([b"{}"])
