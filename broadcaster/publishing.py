"""Publishing over Socket.IO, on the namespace ``/``.

| client says | argument | acknowledgement |
|---|---|---|
| ``publish`` | one event, or a list of 1 to 500; plain or CloudEvents, as at ``POST /events`` | ``{accepted, keys, batch}`` after the majority write |
| | | or ``{error: {status, detail, index?, field?, retry_after_s?}}``, in the words of HTTP |

Guarantees: whatever a client sends, it gets an acknowledgement and never an exception; at most ``MAX_UNDER_WAY`` of one client are under
way, and their bytes count like those of HTTP bodies; a client that goes away has published all the same. Not guaranteed: that a client
that sends one name twice in an object of a short packet is told so, as it is at the other doors: the last one counts.
"""

from collections import Counter
from typing import Any

import structlog

from app.errors import DedupError, InvalidEvent, RateLimited
from app.events.event import Event
from app.events.parsing import WRONG_ARGUMENTS, EventParser
from broadcaster.answers import receipt_view
from broadcaster.problems import words_of
from broadcaster.reception import Reception
from broadcaster.refusals import Refusals
from broadcaster.sockets import SocketServer, Unread, packet_bytes

NAMESPACE = "/"
EVENT = "publish"
MAX_UNDER_WAY = 32

log = structlog.get_logger(__name__)


class Publishing:
    """The Socket.IO door. Belongs to one event loop.

    Args:
        server: where it is heard.
        reception: shared with the other doors.
        parser: shared too.
        refusals: counts.
    """

    def __init__(self, server: SocketServer, reception: Reception, parser: EventParser, refusals: Refusals) -> None:
        self._server = server
        self._reception = reception
        self._parser = parser
        self._refusals = refusals
        self._under_way: Counter[str] = Counter()
        server.on(EVENT, self._publish, namespace=NAMESPACE)

    async def _publish(self, sid: str, *arguments: Any) -> dict[str, Any]:
        client = self._server.client_of(sid, NAMESPACE)
        try:
            return await self._accept(sid, client, arguments)
        except DedupError as error:
            return self._refusal(client, words_of(error))
        except Exception as error:
            log.error("publish.failed", exc_info=error)
            return self._refusal(client, {"status": 500, "detail": "an unexpected error, which the broadcaster has logged"})

    async def _accept(self, sid: str, client: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
        self._reception.enter(client)
        if self._under_way[sid] >= MAX_UNDER_WAY:
            raise RateLimited(f"{MAX_UNDER_WAY} publishes of this client are under way: wait for their answers", retry_after_s=1)
        size = packet_bytes.get()
        self._under_way[sid] += 1
        try:
            with self._reception.budget.share(client) as share:
                share.take(size)
                receipt = await self._reception.accept(lambda: self._read(arguments), size, client=client, door="socketio")
        finally:
            self._under_way[sid] -= 1
            if not self._under_way[sid]:
                del self._under_way[sid]
        return receipt_view(receipt)

    def _read(self, arguments: tuple[Any, ...]) -> list[Event]:
        if len(arguments) == 1 and isinstance(arguments[0], Unread):
            return self._parser.argument(arguments[0].text.encode("utf-8", "surrogatepass"))
        if len(arguments) != 1 or not isinstance(arguments[0], dict | list):
            raise InvalidEvent(WRONG_ARGUMENTS)
        return self._parser.values(arguments[0] if isinstance(arguments[0], list) else [arguments[0]])

    def _refusal(self, client: str, words: dict[str, Any]) -> dict[str, Any]:
        self._refusals.note("publish", str(words["status"]), client=client)  # what the client is told may quote its event
        return {"error": words}
