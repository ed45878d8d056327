"""A foreign Socket.IO server for tests, as a process: ``python -m tests.support.foreign_server PORT [TOKEN]``.

``POST /emit`` with ``{"event", "namespace"?, "payloads": […]}`` emits each payload (a list with ``"several": true`` as several arguments);
``POST /ask`` with ``{"event", "payload", "patience_s"}`` emits it to one client and says whether that acknowledged it in time;
``POST /raw`` sends a text to every client as it is; ``GET /clients`` counts them.
"""

import sys
from typing import Any

import socketio
import socketio.exceptions
import uvicorn
from fastapi import FastAPI, Request

sockets = socketio.AsyncServer(async_mode="asgi", namespaces=["/", "/flights"])
api = FastAPI()
TOKEN = sys.argv[2] if len(sys.argv) > 2 else ""


async def _connect(_sid: str, _environ: dict[str, Any], auth: Any) -> bool:
    return not TOKEN or auth == {"token": TOKEN}


for _namespace in ("/", "/flights"):
    sockets.on("connect", _connect, namespace=_namespace)


@api.post("/emit")
async def emit(request: Request) -> dict[str, bool]:
    order = await request.json()
    for payload in order["payloads"]:
        data = tuple(payload) if order.get("several") else {"blob": b"\x00\xff"} if payload == "binary" else payload
        await sockets.emit(order["event"], data, namespace=order.get("namespace", "/"))
    return {"ok": True}


@api.post("/ask")
async def ask(request: Request) -> bool:
    order = await request.json()
    sid = next((sid for sid, _ in sockets.manager.get_participants("/", None)), None)
    if sid is None:
        return False
    try:
        await sockets.call(order["event"], order["payload"], to=sid, timeout=order["patience_s"])
    except socketio.exceptions.TimeoutError:
        return False
    return True


@api.post("/raw")
async def raw(request: Request) -> dict[str, bool]:
    from engineio import packet

    text = (await request.body()).decode()
    for client in list(sockets.eio.sockets.values()):
        await client.send(packet.Packet(packet.MESSAGE, data=text))
    return {"ok": True}


@api.get("/clients")
async def clients() -> int:
    return sum(1 for ns in ("/", "/flights") for _ in sockets.manager.get_participants(ns, None))


if __name__ == "__main__":
    uvicorn.run(socketio.ASGIApp(sockets, other_asgi_app=api), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
