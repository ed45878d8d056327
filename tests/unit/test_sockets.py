"""A client's packet queue, and the cutting of clients that take nothing."""

import asyncio

import pytest
from engineio import packet

from broadcaster.sockets import MAX_QUEUED_BYTES, MAX_QUEUED_PACKETS, POLL_PACKETS, CutStalledClients, PacketQueue


def message(size: int) -> packet.Packet:
    return packet.Packet(packet.MESSAGE, data="x" * size)


def test_a_queue_is_full_by_bytes_and_by_packets():
    by_bytes, by_packets = PacketQueue(), PacketQueue()
    for _ in range(4):
        assert not by_bytes.full_for_events
        by_bytes.put_nowait(message(MAX_QUEUED_BYTES // 4 + 1))
    for _ in range(MAX_QUEUED_PACKETS):
        assert not by_packets.full_for_events
        by_packets.put_nowait(message(1))
    assert by_bytes.full_for_events
    assert by_packets.full_for_events
    by_bytes.put_nowait(None)  # the protocol's own always fits
    by_bytes.get_nowait()
    assert not by_bytes.full_for_events


def test_one_poll_takes_no_more_packets_than_a_client_library_bears():
    async def scenario() -> list[int]:
        queue = PacketQueue()
        for _ in range(40):
            queue.put_nowait(message(1))
        polls = []
        while not queue.empty():
            await queue.get()
            taken = 1
            try:
                while True:
                    queue.get_nowait()
                    taken += 1
            except asyncio.QueueEmpty:
                polls.append(taken)
        assert queue.bytes == 0
        return polls

    assert asyncio.run(scenario()) == [POLL_PACKETS, POLL_PACKETS, 10]


class Transport:
    """As uvicorn's: ``send`` waits until it is aborted."""

    def __init__(self) -> None:
        self.transport = self
        self.gone = asyncio.Event()

    def abort(self) -> None:
        self.gone.set()

    async def send(self, _message: object) -> None:
        await self.gone.wait()
        raise OSError("the connection is gone")


def test_a_client_that_takes_nothing_is_cut():
    async def scenario() -> None:
        connection = Transport()

        async def app(_scope, _receive, send) -> None:
            await send({"type": "websocket.send", "text": "x"})

        async with asyncio.timeout(5):
            with pytest.raises(OSError, match="the connection is gone"):
                await CutStalledClients(app, timeout_s=0.05)({"type": "websocket"}, None, connection.send)  # type: ignore[arg-type]

    asyncio.run(scenario())
