"""The steps of an event's story, in the order of what happened, each in a sentence: for the command line, HTTP and the page alike.

Guaranteed: what the documents say is told, and told once. Not guaranteed: that the instants of different hosts' clocks agree; acceptance
comes first all the same. Instants of claims are Redis', out of the fencing token. Text of events and of errors is passed on as it is:
who shows it must escape it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

Document = Mapping[str, Any]
Step = dict[str, Any]
"""``what``: one word; ``at``: an instant, or None; ``text``: a sentence; ``more``: a traceback, where there is one."""

_RESULT_CHARACTERS = 2_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_TOKEN = 10**15
"""Tokens are microseconds since 1970, or one more than the one before; below this one (2001) they are no instant."""


def steps_of(*, inbox: Sequence[Document], failures: Sequence[Document], ledger: Document | None, claim: Document | None) -> list[Step]:
    """All that is known of an event, as steps.

    Args:
        inbox: the batches in which it waits, from :meth:`app.stores.inbox.Inbox.find_event`.
        failures: its documents in ``failures``, oldest first.
        ledger: its document in the ledger, or None.
        claim: its claim, None, or ``{"error": …}``.
    """
    arrived = list(_accepted(inbox, ledger or (failures[0] if failures else None)))
    rest = [
        *(_processings(ledger) if ledger is not None else ()),
        *(step for failure in failures for step in _failed(failure)),
        *(_decided(ledger) if ledger is not None else ()),
        *(_claimed(claim) if claim else ()),
    ]
    return arrived + _in_order(rest)


def _step(what: str, at: datetime | None, text: str, more: str | None = None) -> Step:
    return {"what": what, "at": at, "text": text} | ({"more": more} if more else {})


def _in_order(steps: list[Step]) -> list[Step]:
    """By time; a step without an instant stays behind the one that it belongs to."""
    last = _EPOCH
    keyed = []
    for step in steps:
        last = step["at"] or last
        keyed.append((last, step))
    return [step for _, step in sorted(keyed, key=lambda pair: pair[0])]


def _accepted(inbox: Sequence[Document], first: Document | None) -> Iterator[Step]:
    for batch in inbox:
        yield _step("accepted", batch["accepted_at"], f"accepted{_door(batch)} in batch {batch['batch']}, digest {batch['digest']}")
        yield _forwarded(batch) if batch.get("forwarded_at") else _step("waiting", None, "not yet forwarded")
    if not inbox and first is not None:
        where = f" in batch {first['batch']}" if first.get("batch") else ""
        digest = (first.get("superseded") or [first["digest"]])[0]  # an operator may have put other content in its place since
        yield _step("accepted", first["accepted_at"], f"accepted{_door(first)}{where}, digest {digest}")


def _door(document: Document) -> str:
    return f" ({document['door']})" if document.get("door") else ""


def _forwarded(document: Document) -> Step:
    forwards = document.get("forwards", 1)
    again = f", {forwards} times in all" if forwards > 1 else ""
    return _step("forwarded", document.get("forwarded_at"), f"forwarded to listeners{again}")


# ----------------------------------------------------------------------------------------------------------------- processed


def _processings(ledger: Document) -> Iterator[Step]:
    """Every processing, and between them why there was another one."""
    told: set[tuple[Any, Any]] = set()
    for again in ledger.get("reprocessed", ()):
        yield from _processing(again["former"], told)
        yield _step("reopened", again["at"], f"to be processed again, by {again['by']}: {again['reason']}")
        if again.get("withdrawn"):
            withdrawn = again["withdrawn"]
            yield _step(
                "withdrawn", withdrawn["at"], f"not to be processed again after all, by {withdrawn['by']}: the former processing stands"
            )
    if ledger.get("discarded"):
        yield _step("discarded", ledger["processed_at"], f"discarded by {ledger['listener']}, token {ledger['token']}")
    else:
        yield from _processing(ledger, told)


def _processing(run: Document, told: set[tuple[Any, Any]]) -> Iterator[Step]:
    me = (run.get("claim_id"), run.get("processed_at"))
    if me in told:
        return
    told.add(me)
    if run.get("forwards"):
        yield _forwarded(run)
    if failed := run.get("failed"):
        yield from _failed_before(failed)
    token = run.get("token", 0)
    if run.get("previous_owner") or token >= _FIRST_TOKEN:
        before = f", taken over from {run['previous_owner']}, whose lease had run out" if run.get("previous_owner") else ""
        yield _step("claimed", _instant(token), f"claimed by {run['listener']}{before} (claim {run.get('claim_id')})")
    attempt = f", in attempt {run['attempt']}" if run.get("attempt", 1) > 1 else ""
    yield _step("processed", run["processed_at"], f"processed by {run['listener']}{attempt}, token {token}")
    if "result" in run:
        yield _step("returned", None, f"its handler returned {_short(run['result'])}")


def _failed_before(failed: Document) -> Iterator[Step]:
    """Runs that failed before a commit, as the ledger keeps them."""
    yield _step("failed", failed.get("first_failed_at"), "first failed")
    counts = _attempts(failed.get("attempts", 0))
    who = f" ({failed['listener']})" if failed.get("listener") else ""
    yield _step("failed", failed.get("at"), f"failed after {counts}{who}: {_why(failed)}", _traceback(failed))
    yield from _decisions(failed)


def _instant(token: int) -> datetime | None:
    return _EPOCH + timedelta(microseconds=token) if _FIRST_TOKEN <= token < 4 * _FIRST_TOKEN else None


# -------------------------------------------------------------------------------------------------------- failed, and decided


def _failed(failure: Document) -> Iterator[Step]:
    state = failure["state"]
    if state != "conflict":
        yield _step("failed", failure["first_failed_at"], f"first failed, digest {failure['digest']}")
    yield from _decisions(failure)
    who = f" ({failure['listener']})" if failure.get("listener") else ""
    text = f"{state} after {_attempts(failure['attempts'])}{who}: {_why(failure)}"
    yield _step(state, failure["updated_at"], text, _traceback(failure))
    if failure.get("starts"):
        yield _step(state, None, f"runs alone that have not ended: {failure['starts']}")
    if failure.get("other_digest"):
        yield _step(state, None, f"the key is held with digest {failure['other_digest']}, this content has {failure['digest']}")
    if failure.get("sent_until"):
        yield _step(state, None, "sent to be tried again; unless something happens, again")
    if failure.get("due_at"):
        yield _step("due", failure["due_at"], "due to be tried again")


def _attempts(attempts: int) -> str:
    return "no attempt" if not attempts else f"{attempts} attempt{'' if attempts == 1 else 's'}"


def _why(document: Document) -> str:
    """The reason, with the exception where that says more."""
    reason, error = str(document.get("reason") or ""), document.get("error") or {}
    said = f"{error['type']}: {error.get('message', '')}"[:500] if error.get("type") else ""
    return reason if not said or said[:100] in reason else f"{reason}: {said}"


def _traceback(document: Document) -> str | None:
    error = document.get("error") or {}
    traceback: str | None = error.get("traceback")
    return traceback


def _decisions(document: Document) -> Iterator[Step]:
    for decision in document.get("decisions", ()):
        digest = f" about digest {decision['digest']}" if decision.get("digest") else ""
        yield _step("decided", decision["at"], f"{decision['by']} decided: {decision['what']}{digest}")


def _decided(ledger: Document) -> Iterator[Step]:
    yield from _decisions(ledger)
    for name in ("superseded", "rejected"):
        for digest in ledger.get(name, ()):
            yield _step(name, None, f"other content {name}: digest {digest}")


# ------------------------------------------------------------------------------------------------------------------- claimed


def _claimed(claim: Document) -> Iterator[Step]:
    if claim.get("error"):
        yield _step("claim", None, f"claim not known: {claim['error']}")
    elif claim["state"] == "done":
        yield _step("claim", None, f"Redis remembers it as done by {claim['owner']}")
    else:
        before = f", taken over from {claim['previous_owner']}" if claim.get("previous_owner") else ""
        lease = "its lease runs" if claim["live"] else "its lease has run out"
        text = f"claimed by {claim['owner']}{before}, token {claim['token']} (claim {claim['claim_id']}); {lease}"
        yield _step("claimed", _instant(claim["token"]), text)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _RESULT_CHARACTERS else f"{text[:_RESULT_CHARACTERS]}… ({len(text):,} characters)"
