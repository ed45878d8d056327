"""Those who send, each run in a process of its own by :class:`bench.rig.Aside`: what is timed is sending, not making the bytes.

Clocks: ``time.monotonic()``, which all processes of a machine share.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvloop
from websockets.asyncio.client import connect

from bench.load import Load, bodies
from bench.wire import Connection, request

CONNECTIONS = 4
_REFUSED_PAUSE_S = 0.05
_UNDER_WAY = 30
"""Of one Socket.IO client; the broadcaster takes 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a producer did.

    Attributes:
        began, ended: first byte out and last answer in, by the monotonic clock.
        refused: answers 429 and 503, after which the same request was sent again.
    """

    began: float
    ended: float
    refused: int


def over_http(url: str, load: Load, connections: int = CONNECTIONS) -> Sent:
    """Send a load in bulk requests as fast as they are accepted."""
    return uvloop.run(_over_http(url, [request(body) for body in bodies(load)], connections))


async def _over_http(url: str, messages: list[bytes], connections: int) -> Sent:
    waiting = iter(messages)
    open_ones = [await Connection.to(url) for _ in range(connections)]
    began = time.monotonic()
    refused = await asyncio.gather(*(_post_all(connection, waiting) for connection in open_ones))
    ended = time.monotonic()
    for connection in open_ones:
        connection.close()
    return Sent(began=began, ended=ended, refused=sum(refused))


async def _post_all(connection: Connection, messages: Iterator[bytes]) -> int:
    refused = 0
    for message in messages:
        while (answer := await connection.post(message))[0] in (429, 503):
            refused += 1
            await asyncio.sleep(_REFUSED_PAUSE_S)
        if answer[0] != 202:
            raise ValueError(f"the door answered {answer[0]}: {answer[1][:300]!r}")
    return refused


def over_socketio(url: str, load: Load, clients: int = CONNECTIONS) -> Sent:
    """Send a load by Socket.IO ``publish``; a request of one event is sent as a single event, a larger one as a list.

    The packets are written here, so that the client costs little. Each client hears only a type that nobody sends.
    """
    parts = [body if load.per_request > 1 else body[1:-1] for body in bodies(load)]
    return uvloop.run(_over_socketio(url.replace("http", "ws", 1), parts, clients))


async def _over_socketio(url: str, parts: list[bytes], clients: int) -> Sent:
    waiting = iter(parts)
    ready = asyncio.Barrier(clients)
    spans = await asyncio.gather(*(_publish_all(url, waiting, ready) for _ in range(clients)))
    return Sent(
        began=min(span.began for span in spans), ended=max(span.ended for span in spans), refused=sum(span.refused for span in spans)
    )


async def _publish_all(url: str, waiting: Iterator[bytes], ready: asyncio.Barrier) -> Sent:
    async with connect(f"{url}/socket.io/?EIO=4&transport=websocket", max_size=None, compression=None) as socket:
        await socket.recv()
        await socket.send('40{"types":["bench.nothing"]}')
        await socket.recv()
        await ready.wait()
        began = time.monotonic()
        under_way: dict[int, str] = {}
        refused = number = 0
        exhausted = False
        while not exhausted or under_way:
            while not exhausted and len(under_way) < _UNDER_WAY:
                part = next(waiting, None)
                if part is None:
                    exhausted = True
                    break
                packet = f'42{number}["publish",{part.decode()}]'
                under_way[number] = packet
                number += 1
                await socket.send(packet)
            if not under_way:
                break
            message = await socket.recv(decode=True)
            if message == "2":
                await socket.send("3")
            elif message.startswith("43"):
                ack, _, rest = message[2:].partition("[")
                if not rest.startswith('{"error"'):
                    del under_way[int(ack)]
                elif '"status":429' in rest or '"status":503' in rest:
                    refused += 1
                    await asyncio.sleep(_REFUSED_PAUSE_S)
                    await socket.send(under_way[int(ack)])
                else:
                    raise ValueError(f"publish was answered {rest[:300]}")
        return Sent(began=began, ended=time.monotonic(), refused=refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """What an open-loop producer did, request by request, by the monotonic clock.

    Attributes:
        due: when each was to be sent.
        accepted: when its 202 was received.
    """

    due: list[float]
    accepted: list[float]


_PACED_CONNECTIONS = 64
_HEAD_START_S = 0.2


def at_a_pace(url: str, load: Load, requests_per_s: float) -> Paced:
    """Send a load over HTTP, each request at its time, whatever has become of those before (open loop).

    A request that finds no connection free is sent later; it counts from when it was due all the same.
    """
    return uvloop.run(_at_a_pace(url, [request(body) for body in bodies(load)], requests_per_s))


async def _at_a_pace(url: str, messages: list[bytes], requests_per_s: float) -> Paced:
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for _ in range(min(_PACED_CONNECTIONS, len(messages))):
        free.put_nowait(await Connection.to(url))
    began = time.monotonic() + _HEAD_START_S
    due = [began + number / requests_per_s for number in range(len(messages))]
    accepted = [0.0] * len(messages)

    async def send(number: int) -> None:
        connection = await free.get()
        if connection.closed:
            connection = await Connection.to(url)
        await _post_all(connection, iter([messages[number]]))
        accepted[number] = time.monotonic()
        free.put_nowait(connection)

    async with asyncio.TaskGroup() as group:
        for number, at in enumerate(due):
            if (ahead_s := at - time.monotonic()) > 0:
                await asyncio.sleep(ahead_s)
            group.create_task(send(number))
    while not free.empty():
        free.get_nowait().close()
    return Paced(due=due, accepted=accepted)
