"""Running the users' handlers for one event."""

from typing import Any

from pymongo.errors import PyMongoError

from app.stores.records import event_of
from workers.handlers import Context, Handler, checked_result
from workers.run import Run, Work


class HandlerRaised(Exception):
    """A handler raised; ``error`` is what it raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def run_at_least_once(run: Run, work: Work) -> None:
    """Run the handlers that stand outside the transaction, before the commit.

    Raises:
        HandlerRaised: one of them failed.
    """
    ours = [h for h in work.handlers if h.at_least_once]
    if ours:
        work.results = _call(run, work, ours)


def run_transactional(run: Run, work: Work) -> Any:
    """Run the transactional handlers; the caller has a transaction open and its session bound.

    Returns:
        What the ledger is to keep of all results of the event's handlers, or None.

    Raises:
        HandlerRaised: one of them failed.
        PyMongoError: the transaction is over for a reason that is not the handler's (a write conflict, say).
    """
    returned = _call(run, work, [h for h in work.handlers if not h.at_least_once])
    try:
        return checked_result([*work.results, *returned])
    except Exception as error:
        raise HandlerRaised(error) from error


def _call(run: Run, work: Work, handlers: list[Handler]) -> list[Any]:
    event = event_of(work.entry)
    context = Context(
        db=run.runtime.db,
        key=work.entry.key,
        fencing_token=work.token,
        attempt=work.attempts + 1,
        listener=run.listener,
    )
    with run.runtime.renewal.running(work.entry.key, work.policy.max_handler_s):
        try:
            return [handler.function(event, context) for handler in handlers]
        except PyMongoError as error:
            if error.has_error_label("TransientTransactionError"):
                raise
            raise HandlerRaised(error) from error
        except Exception as error:  # users' code may raise anything: this is the edge
            raise HandlerRaised(error) from error
