"""Somebody else's Socket.IO server, for a feed: it emits single events, and asks for no acknowledgement.

Written on bare WebSocket, so that it costs little; it knows just enough of the protocol for one client that begins with WebSocket. A bridge
gives up what exceeds its buffer of 10,000 payloads, so the server keeps at most ``WINDOW`` events under way: it looks into the ledger.
"""

import asyncio
import time
from pathlib import Path
from typing import Any, Self

import msgspec
import uvloop
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from websockets.asyncio.server import ServerConnection, serve

from app.settings import database_of
from bench.load import Load, events

EVENT = "departure"
FEED = ("--event", EVENT, "--type", "'flight.departed'", "--key", "id")
"""Arguments of ``dedup bridge`` that make events of the payloads."""
WINDOW = 8_000
_PORTION = 200
_LOOK_EVERY_S = 0.005


class Begin(msgspec.Struct, frozen=True):
    """Says that the server may emit: where the ledger is, and how many documents it holds before."""

    mongo_url: str
    before: int

    def say(self, path: Path) -> None:
        """Put it where the server looks for it."""
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(msgspec.json.encode(self))
        unfinished.rename(path)

    @classmethod
    def heard(cls, path: Path) -> Self:
        """Wait for it."""
        while not path.exists():
            time.sleep(_LOOK_EVERY_S)
        return msgspec.json.decode(path.read_bytes(), type=cls)


def serve_events(port: int, load: Load, begin: Path) -> float:
    """Wait for a bridge and for a word to begin, and emit a load, one event at a time.

    Args:
        port: to listen on.
        load: its departures, each with its id in the payload.
        begin: where :meth:`Begin.say` puts that word.

    Returns:
        When the first event was emitted, by the monotonic clock.
    """
    packets = [f"42{msgspec.json.encode([EVENT, event['data'] | {'id': event['id']}]).decode()}" for event in events(load)]
    return uvloop.run(_serve(port, packets, begin))


async def _serve(port: int, packets: list[str], begin: Path) -> float:
    began: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    finished = asyncio.Event()

    async def feed(socket: ServerConnection) -> None:
        await socket.send('0{"sid":"bench","upgrades":[],"pingInterval":300000,"pingTimeout":200000,"maxPayload":1000000}')
        await socket.recv()
        await socket.send('40{"sid":"bench"}')
        word = await asyncio.to_thread(Begin.heard, begin)
        began.set_result(time.monotonic())
        await _emit(socket, packets, word.mongo_url, word.before)
        finished.set()
        await socket.wait_closed()

    server = await serve(feed, "127.0.0.1", port, compression=None)
    await finished.wait()
    server.close(close_connections=True)
    return began.result()


async def _emit(socket: ServerConnection, packets: list[str], mongo_url: str, before: int) -> None:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_url)
    async with client:
        ledger = client[database_of(mongo_url)]["events"]
        emitted = 0
        while True:
            try:
                done = await ledger.estimated_document_count() - before
            except PyMongoError as error:
                raise ValueError(f"the ledger cannot be read: {error}") from error
            if done >= len(packets):
                return
            for packet in packets[emitted : min(emitted + _PORTION, done + WINDOW)]:
                await socket.send(packet)
                emitted += 1
            if emitted >= min(len(packets), done + WINDOW):
                await asyncio.sleep(_LOOK_EVERY_S)
