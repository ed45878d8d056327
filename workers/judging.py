"""Telling apart why a transaction did not go through, and what follows from that."""

import time

from pymongo.errors import PyMongoError

from app.errors import PermanentError, StoreUnavailable
from app.stores.mongo import CANNOT_HOLD, DUPLICATE_KEY, INTERRUPTED, answers, end_transactions, error_code, first_line
from workers.failing import record_failure
from workers.handling import HandlerRaised
from workers.run import Run, Work
from workers.storing import judge_taken
from workers.transaction import ClaimLost, CommitLost, KeyTaken, Unanswered

NOT_THROUGH = (HandlerRaised, ClaimLost, KeyTaken, CommitLost, Unanswered, PyMongoError)
"""What a transaction may raise; anything else is a mistake of ours."""
TRANSACTION_TOO_LARGE = 257
_CUT_SHORT = frozenset({50, INTERRUPTED})
"""Codes of a command that ran out of time, or was amid its work when its session was killed: a takeover kills what the driver may use again."""


class TookTooLong(PermanentError):
    """A handler's transaction outlived its limit while MongoDB was well: the handler's failure."""


def judge(run: Run, work: Work, error: BaseException, *, session_id: str, give_up_at: float) -> bool:
    """Note what follows for an event whose transaction did not go through; False when another try may.

    Args:
        run: the task's execution.
        work: the event.
        error: one of :data:`NOT_THROUGH`.
        session_id: of the transaction's session, in hex.
        give_up_at: until when tries may go on, by the monotonic clock.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    if isinstance(error, HandlerRaised):
        record_failure(run, work, error.error)
    elif isinstance(error, ClaimLost):
        run.release([work.entry.key])
    elif isinstance(error, KeyTaken):
        judge_taken(run, [work])
    elif isinstance(error, CommitLost):
        end_transactions(run.runtime.db, {session_id})  # then it is either committed or gone
        judge_taken(run, [work])
    else:
        return _judge_driver(run, work, error, give_up_at)
    return True


def _judge_driver(run: Run, work: Work, error: BaseException, give_up_at: float) -> bool:
    """Tell a taken key, an outage, a transaction that outlived its limit and a write conflict apart."""
    if error_code(error) == DUPLICATE_KEY:
        judge_taken(run, [work])
    elif not answers(run.runtime.db):
        raise StoreUnavailable(f"MongoDB did not answer while committing: {first_line(error)}") from error
    elif time.monotonic() > give_up_at and not work.handlers_began:
        run.log.info(
            "event.locked", key=work.entry.key, token=work.token, reason=named(error)
        )  # by somebody's open transaction: no attempt
        run.release([work.entry.key])
    elif time.monotonic() > give_up_at:
        limit = f"its transaction did not end within {work.policy.max_handler_s:g} s"
        record_failure(run, work, TookTooLong(f"{limit}: {first_line(error)}"))
    elif may_go_through(error):
        return False
    elif (code := error_code(error)) is None or code in CANNOT_HOLD or code == TRANSACTION_TOO_LARGE:
        record_failure(run, work, error)
    else:
        raise StoreUnavailable(f"MongoDB refused a commit: {first_line(error)}") from error  # the server's own trouble is nobody's attempt
    return True


def may_go_through(error: BaseException) -> bool:
    """Whether the same transaction may go through when it is tried again."""
    if isinstance(error, Unanswered):
        return True
    return isinstance(error, PyMongoError) and (error.has_error_label("TransientTransactionError") or error_code(error) in _CUT_SHORT)


def named(error: BaseException) -> str:
    """An error for the log: its type and the server's name for it, without its text, which may quote what a handler wrote."""
    code = error_code(error)
    return type(error).__name__ + (f" {code}" if code else "") + (f" {name}" if (name := _code_name(error)) else "")


def _code_name(error: BaseException) -> str:
    return str((getattr(error, "details", None) or {}).get("codeName", ""))
