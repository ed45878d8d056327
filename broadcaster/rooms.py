"""Who hears which events on the namespace ``/``: rooms by event type.

| client says | argument | answer |
|---|---|---|
| ``subscribe`` | a type, a pattern such as ``flight.*``, or several, as a list or as several arguments | ``{"ok": true, "types": […]}`` |
| ``unsubscribe`` | the same; without an argument everything | the same |

``types`` is what the client hears from now on. A refusal is ``{"ok": false, "status": 422, "detail": "…"}`` and changes nothing.

A client that never subscribed hears every event, as if it had subscribed to ``*``. Its first ``subscribe`` narrows that to what it
names; later ones add. ``unsubscribe`` takes away again; with nothing left it hears nothing, until it subscribes again or
reconnects. A connection begins anew, so subscribe in the client's ``connect`` handler, or name the types in ``auth``
(``{"types": ["flight.*"]}``), which leaves no moment in which everything is heard.

``*`` stands for any run of characters, as in the policy file. Guarantees: an event goes once to each client that hears its type,
however many of its patterns match; what clients subscribe to is bounded. Not guaranteed: delivery; see :mod:`broadcaster.emitter`.
"""

from typing import Any

from app.errors import InvalidEvent
from app.events.attributes import check_text
from app.events.patterns import matches
from broadcaster.sockets import SocketServer

NAMESPACE = "/"
MAX_TYPES = 100
"""So many types and patterns one client may name."""
MAX_PATTERNS = 500
"""So many different patterns all clients together may name: each is tried for each type of a bulk."""

_EVERYTHING = "all"
_PREFIX = "type:"


class Rooms:
    """The rooms of one server. Belongs to its event loop."""

    def __init__(self, server: SocketServer) -> None:
        self._server = server
        self._patterns: set[str] = set()
        server.on("subscribe", self._subscribe, namespace=NAMESPACE)
        server.on("unsubscribe", self._unsubscribe, namespace=NAMESPACE)

    def welcome(self, sid: str, auth: Any) -> None:
        """Put a new client into its first rooms.

        Raises:
            InvalidEvent: its ``auth`` names types that cannot be.
        """
        named = auth.get("types") if isinstance(auth, dict) else None
        if named is None:
            self._enter(sid, _EVERYTHING)
        else:
            self._add(sid, _types_in([named]))

    def audience(self, kind: str) -> list[str]:
        """Engine ids of the clients that hear events of a type."""
        rooms = self._server.manager.rooms.get(NAMESPACE, {})
        hearing = [_EVERYTHING, _PREFIX + kind]
        for pattern in list(self._patterns):
            if _PREFIX + pattern not in rooms:
                self._patterns.discard(pattern)  # its last client has gone
            elif matches(pattern, kind):
                hearing.append(_PREFIX + pattern)
        return self._server.members(NAMESPACE, hearing)

    async def _subscribe(self, sid: str, *named: Any) -> dict[str, Any]:
        try:
            types = _types_in(list(named))
            if not types:
                return _refusal(InvalidEvent("name a type, or a pattern such as flight.*"))
            if self._server.manager.is_connected(sid, NAMESPACE):  # it may have gone while its message waited
                self._add(sid, types)
                self._leave(sid, _EVERYTHING)
        except InvalidEvent as error:
            return _refusal(error)
        return self._answer(sid)

    async def _unsubscribe(self, sid: str, *named: Any) -> dict[str, Any]:
        try:
            types = _types_in(list(named))
        except InvalidEvent as error:
            return _refusal(error)
        for kind in types or self._heard_by(sid):
            self._leave(sid, _PREFIX + kind)
            if kind == "*":
                self._leave(sid, _EVERYTHING)
        return self._answer(sid)

    def _add(self, sid: str, types: list[str]) -> None:
        heard = set(self._heard_by(sid))
        if len(heard.union(types)) > MAX_TYPES:
            raise InvalidEvent(f"a client may name {MAX_TYPES} types and patterns", field="types")
        fresh = {kind for kind in types if "*" in kind and kind not in self._patterns}
        if len(self._patterns) + len(fresh) > MAX_PATTERNS:
            raise InvalidEvent(f"all clients together may name {MAX_PATTERNS} patterns; name types instead", field="types")
        self._patterns |= fresh
        for kind in types:
            self._enter(sid, _PREFIX + kind)

    def _heard_by(self, sid: str) -> list[str]:
        rooms = self._server.manager.get_rooms(sid, NAMESPACE)
        return sorted("*" if room == _EVERYTHING else room.removeprefix(_PREFIX) for room in rooms if room != sid)

    def _answer(self, sid: str) -> dict[str, Any]:
        return {"ok": True, "types": self._heard_by(sid)}

    def _enter(self, sid: str, room: str) -> None:
        self._server.manager.basic_enter_room(sid, NAMESPACE, room)

    def _leave(self, sid: str, room: str) -> None:
        self._server.manager.basic_leave_room(sid, NAMESPACE, room)


def _refusal(error: InvalidEvent) -> dict[str, Any]:
    return {"ok": False, "status": error.status, "detail": str(error)}


def _types_in(named: list[Any]) -> list[str]:
    """The types that a client names: strings, or lists of them."""
    flat = [part for one in named for part in (one if isinstance(one, list) else [one])]
    if len(flat) > MAX_TYPES:
        raise InvalidEvent(f"a client may name {MAX_TYPES} types and patterns", field="types")
    if not all(isinstance(kind, str) for kind in flat):
        raise InvalidEvent("a type or pattern must be a string", field="types")
    return list(dict.fromkeys(check_text(kind, "type") for kind in flat))
