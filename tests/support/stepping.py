"""Listeners that stop before every call to a store, until a scheduler lets them take one step.

A listener is a thread that runs ``workers.pipeline.process``. What its stores, its transactions and its handlers do goes through
:meth:`Stepper.call`. There the scheduler lets it go on, or loses the reply, or lets the server be away, or crashes it: from then
on none of its calls does anything, those of ``finally`` blocks neither, and the transaction that it had open stays open.
"""

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from pymongo.errors import AutoReconnect
from pymongo.synchronous.client_session import ClientSession, _TxnState

from app.claims.store import ClaimStore
from app.errors import RedisUnavailable, StoreUnavailable
from app.messages import Delivery
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.pauses import Pauses
from workers.handlers import Context, Handler, Registry
from workers.pace import Pace
from workers.pipeline import process
from workers.renewal import Renewal
from workers.runtime import Runtime
from workers.tally import Tally

T = TypeVar("T")

STEP_S = 30.0
"""A step that takes longer hangs: that is a failure of its own."""

_CLAIMS = ("claim", "complete", "release", "forget_done", "forget_lapsed", "inspect")
_MONGO: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("inbox", ("fetch", "remove")),
    ("ledger", ("look", "insert", "recommit", "reject")),
    ("failures", ("of_keys", "fetch", "record_attempt", "record_start", "end_start", "record_final", "remove")),
)


class Crashed(SystemExit):
    """This listener's process is dead: it ends as a child of the pool does on a signal."""

    def __init__(self) -> None:
        super().__init__(-(256 - signal.SIGTERM))


class Stepper:
    """One life of a listener's process."""

    def __init__(self, base: Runtime, deployment: str, handler: Callable[["Stepper", Any, Context], Any], pattern: str) -> None:
        """Nothing runs yet.

        Args:
            base: clients and settings, shared with the listener's other lives.
            deployment: whose claims.
            handler: called with this object, an event and its context.
            pattern: types that it handles.
        """
        self.name = base.listener
        self.crashed = False
        self.sessions: list[ClientSession] = []
        self.error: BaseException | None = None
        self.tally: Tally | None = None
        self.doing: Delivery | None = None
        self._turn = threading.Condition()
        self._at: str | None = None
        self._command: str | None = None
        self._thread: threading.Thread | None = None
        registry = Registry()
        registry.add(Handler(name="handler", pattern=pattern, function=lambda event, context: handler(self, event, context)))
        self.runtime = self._live(base, deployment, registry)

    # ----------------------------------------------------------------------------------------------------- the scheduler's side

    @property
    def at(self) -> str | None:
        """Before which call it waits; None while it has nothing to do."""
        return self._at

    def begin(self, delivery: Delivery) -> None:
        """Start on a delivery, up to its first call."""
        assert self._thread is None
        self.doing = delivery
        self._thread = threading.Thread(target=self._run, args=(delivery,), name=self.name, daemon=True)
        self._thread.start()
        self._await_turn()

    def step(self, command: str = "go") -> None:
        """Let it do the call that it waits before, and go on to the next: ``go``, ``lose`` (the reply), ``away``, ``crash``."""
        with self._turn:
            assert self._at is not None
            self._at = None
            self._command = command
            self._turn.notify_all()
        self._await_turn()

    def renew(self) -> None:
        """What its renewal thread does every third of a lease."""
        if not self.crashed:
            self.runtime.renewal._renew_all()

    def close(self) -> None:
        """The end of this life: nothing of it may be in the way of the next test."""
        if self._at is not None:
            self.step("crash")
        self.runtime.renewal.close()

    def _await_turn(self) -> None:
        with self._turn:
            assert self._turn.wait_for(lambda: self._at is not None or self._thread is None, STEP_S), f"{self.name} hangs"
        if self.error is not None:
            raise AssertionError(f"process() of {self.name} raised") from self.error

    # ------------------------------------------------------------------------------------------------------ the listener's side

    def _run(self, delivery: Delivery) -> None:
        try:
            self.tally = process(self.runtime, delivery)
        except Crashed:
            pass
        except BaseException as error:  # noqa: BLE001  it is raised again in the scheduler
            self.error = error
        with self._turn:
            self._thread = None
            self.doing = None
            self._turn.notify_all()

    def call(self, name: str, function: Callable[[], T], outage: Callable[[], BaseException]) -> T:
        """Wait for the scheduler, then do a call, or suffer what it decided."""
        if self.crashed:
            raise Crashed
        if threading.current_thread() is not self._thread:
            return function()  # the scheduler itself, in the part of the renewal thread
        with self._turn:
            self._at = name
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._command is not None, 10 * STEP_S), "the scheduler forgot this listener"
            command, self._command = self._command, None
        if command == "crash":
            self.crashed = True
            raise Crashed
        if command == "away":
            raise outage()
        result = function()
        if command == "lose":
            raise outage()
        return result

    # ------------------------------------------------------------------------------------------------------------- its stores

    def _live(self, base: Runtime, deployment: str, registry: Registry) -> Runtime:
        db = base.db
        claims = ClaimStore.of(base.settings, base.redis, deployment)
        claims.memory_is_short = lambda: False  # type: ignore[method-assign]
        self._gate(claims, "claims", _CLAIMS, lambda: RedisUnavailable("as the scheduler wants"))
        runtime = replace(
            base,
            db=_Database(db, self),  # type: ignore[arg-type]
            inbox=Inbox(db),
            ledger=Ledger(db),
            failures=Failures(db),
            pauses=Pauses(db, clock=lambda: 0.0),
            handlers=registry,
            renewal=Renewal(base.settings.renew_ms),
            pace=_Pace(),
            unended=[],
            alone=threading.Lock(),
            _claims={deployment: claims},
        )
        runtime.pauses._known_at = 0.0  # known, and never asked for again
        for store, methods in _MONGO:
            self._gate(getattr(runtime, store), store, methods, lambda: StoreUnavailable("as the scheduler wants"))
        return runtime

    def _gate(self, store: object, name: str, methods: tuple[str, ...], outage: Callable[[], BaseException]) -> None:
        for method in methods:
            setattr(store, method, self._gated(getattr(store, method), f"{name}.{method}", outage))

    def _gated(self, method: Callable[..., T], name: str, outage: Callable[[], BaseException]) -> Callable[..., T]:
        def gated(*args: Any, **kwargs: Any) -> T:
            in_transaction = kwargs.get("session") is not None
            return self.call(
                f"{name} in transaction" if in_transaction else name,
                lambda: method(*args, **kwargs),
                (lambda: labelled("TransientTransactionError")) if in_transaction else outage,
            )

        return gated


class _Pace(Pace):
    """Slices of two, whatever was measured."""

    def __init__(self) -> None:
        super().__init__(250)

    def events_per_slice(self, type: str, *, at_once: int = 1, waited_ms: float = 0.0) -> int:
        return 2


class _Database:
    """A database whose client's own calls, and whose sessions, wait for the scheduler."""

    def __init__(self, db: Any, stepper: Stepper) -> None:
        self._db = db
        self._stepper = stepper
        self.client = self
        self.admin = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def command(self, command: Any, *args: Any) -> Any:
        """``db.client.admin.command``"""
        return self._stepper.call(f"mongo.{command}", lambda: self._db.client.admin.command(command, *args), lambda: AutoReconnect("away"))

    def start_session(self) -> ClientSession:
        """``db.client.start_session``"""
        stepper = self._stepper
        if stepper.crashed:
            raise Crashed
        session: ClientSession = self._db.client.start_session()
        stepper.sessions.append(session)
        commit, abort, end = session.commit_transaction, session.abort_transaction, session.end_session

        def over(state: Any, label: str) -> BaseException:
            session._transaction.state = state  # as the driver has it when no answer came
            return labelled(label)

        def end_session() -> None:
            if stepper.crashed:
                raise Crashed
            end()

        session.commit_transaction = lambda: stepper.call(  # type: ignore[method-assign]
            "transaction.commit", commit, lambda: over(_TxnState.COMMITTED, "UnknownTransactionCommitResult")
        )
        session.abort_transaction = lambda: stepper.call(  # type: ignore[method-assign]
            "transaction.abort", abort, lambda: over(_TxnState.ABORTED, "none")
        )
        session.end_session = end_session  # type: ignore[method-assign]
        return session


def labelled(label: str) -> AutoReconnect:
    """What the driver raises when the connection breaks."""
    error = AutoReconnect("as the scheduler wants")
    error._add_error_label(label)
    return error
