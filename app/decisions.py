"""What operators decide about failures: inserts and compare-and-sets on the ledger, never deletes.

So a late duplicate, or a listener that commits at the same moment, meets the decision at the ledger's unique key, and an
operator whose decision came second is told so. In every function ``key`` and ``digest`` name one failure.

| decision | of | the ledger | the failure |
|---|---|---|---|
| retry | ``retrying``, ``dead``, ``stale``, ``conflict`` without a commit | | ``retrying``, due now, counts at 0, its retention begins anew |
| discard | any | a tombstone (``discarded: true``) where nothing is committed; else, or where one is, the digest joins ``rejected`` | removed |
| discard | of a key that is to be processed again | the former commit stands, see :mod:`app.reprocessing` | removed |
| keep old | ``conflict`` beside a commit | the digest joins ``rejected`` | removed |
| accept new | ``conflict`` beside a commit | the body is exchanged, the old digest joins ``superseded``, the new one leaves it and ``rejected`` | removed |

A tombstone is no commit. It refuses the contents that were discarded, whenever they come, and makes content that comes anew a conflict; but
content of its key that waits for its retry in ``failures``, or is retried now, is processed and takes its place
(:meth:`app.stores.ledger.Ledger.recommit`). What was refused stays so.

Accepting new content exchanges what the ledger shows. It does not run handlers again: what the old content did stands.

Who decided what and when stands in ``decisions`` of the document that stays: the ledger's, or the failure's for *retry*.

A ``malformed`` failure is a payload of a foreign feed, and no event: it has neither id nor data that a handler could expect. So it can be
discarded, and not be tried again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from app.errors import PermanentError
from app.events.policies import Policies
from app.naming import MESSAGE_VERSION
from app.reprocessing import withdraw
from app.stores.failures import Failures, failure_id
from app.stores.ledger import Committed, Ledger, expiry
from app.stores.mongo import RAW, Document, translated
from app.stores.records import utc_now

OPERATOR = "operator"
"""Stands as listener in ledger documents that a decision made."""


class DecisionRefused(PermanentError):
    """The decision does not fit what MongoDB holds now; the sentence says what that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """Decisions on the failures of one deployment. Every write is at majority and safe to repeat.

    Attributes:
        by: who decides, for the events' stories.
        policies: say how long a tombstone is kept, counted from the decision; None: for ever.
    """

    db: Database[Document]
    ledger: Ledger
    failures: Failures
    by: str = OPERATOR
    policies: Policies | None = None

    @classmethod
    def on(cls, db: Database[Document], *, by: str = OPERATOR, policies: Policies | None = None) -> "Decisions":
        """For this database."""
        return cls(db=db, ledger=Ledger(db), failures=Failures(db), by=by, policies=policies)

    def by_name(self) -> dict[str, Callable[[str, str], str]]:
        """The decisions by the names under which tools offer them."""
        return {"retry": self.retry, "discard": self.discard, "accept-new": self.accept_new, "keep-old": self.keep_old}

    def retry(self, key: str, digest: str) -> str:
        """Try a failed event again, as if for the first time; its retention counts from now.

        Returns:
            What was done, in a few words.

        Raises:
            DecisionRefused: there is no such failure, or the key is committed with other content.
            StoreUnavailable: MongoDB is away.
        """
        if self._must_exist(key, digest)["state"] == "malformed":
            raise DecisionRefused(
                f"{key} is a payload that is no event, so handlers cannot have it: mend the feed's rules, publish what it means as an event of "
                "your own ('dedup failures export' shows the payload), and discard it"
            )
        committed = self._committed(key, digest)
        if committed is not None:
            if digest in committed.digests:
                self.failures.remove([(key, digest)])
                return "it has been discarded meanwhile" if committed.discarded else "it has been processed meanwhile"
            if not committed.discarded:
                raise DecisionRefused(f"{key} is committed with other content: decide with accept-new, keep-old or discard")
        now = self.failures.now()
        again = {"state": "retrying", "attempts": 0, "starts": 0, "due_at": now, "sent_until": None, "updated_at": now, "retried_at": now}
        me = failure_id(key, digest)
        with translated("retrying a failure"):
            others = {"key": key, "_id": {"$ne": me}, "v": MESSAGE_VERSION}
            self.failures.collection.update_many(others, {"$unset": {"preferred": ""}})
            self.failures.collection.update_one(
                {"_id": me},
                {
                    "$set": again | {"preferred": True},
                    "$unset": {"solo": ""},  # a solo run that is under way: its start is not among these counts, nor is its end
                    "$push": {"decisions": self._noted("retry", digest)},
                },
            )
        return "will be tried again"

    def discard(self, key: str, digest: str) -> str:
        """Give an event up for good. Where nothing is committed, a tombstone in the ledger keeps later copies of it out."""
        failure = self._must_exist(key, digest)
        if (generation := failure.get("generation", 0)) and withdraw(self.db, key, generation, self._noted("discard", digest)):
            self.failures.remove([(key, digest)], {key: generation})
            return "it is not processed again; the former processing stands"
        kept = self._kept(failure)
        tombstone = self._document(failure) | {"discarded": True, "decisions": [self._noted("discard", digest)]} | kept
        with translated("discarding an event"):
            try:
                self.ledger.collection.insert_one(tombstone)
            except DuplicateKeyError:
                self.ledger.keep_tombstone(key, kept)
                return self._refuse_content(key, digest, "discard")
        self.failures.remove([(key, digest)], {key: generation})
        return "discarded"

    def keep_old(self, key: str, digest: str) -> str:
        """Let the committed content stand, and refuse this one whenever it comes again."""
        self._must_be_conflict(key, digest)
        if self._standing(key, digest) is None:
            raise DecisionRefused(f"nothing is committed for {key} yet: wait until it is, or discard or retry this content")
        return self._refuse_content(key, digest, "keep-old")

    def accept_new(self, key: str, digest: str) -> str:
        """Let this content stand in place of the committed one; the old digest is kept as superseded."""
        failure = self._must_be_conflict(key, digest)
        committed = self._standing(key, digest)
        if committed is None:
            raise DecisionRefused(f"nothing is committed for {key} yet: retry this content, or wait for the other one")
        if digest == committed.digest:
            self.failures.remove([(key, digest)])
            return "it stands already"
        changed = {"digest": digest, "type": failure["type"], "body": failure["body"]}
        if not self.ledger.supersede(key, committed.digest, **changed, decision=self._noted("accept-new", digest)):
            raise DecisionRefused(f"{key} was changed by somebody else at this moment: look at it again")
        self.failures.remove([(key, digest)])
        return "accepted in place of the old content"

    def _refuse_content(self, key: str, digest: str, decision: str) -> str:
        committed = self._committed(key, digest)
        discarded = committed is not None and committed.discarded
        if committed is not None and discarded and digest in committed.digests:
            self.failures.remove([(key, digest)])
            return "discarded"
        if committed is not None and committed.digest == digest:
            self.failures.remove([(key, digest)])
            raise DecisionRefused(f"a commit came first: {key} has been processed with this very content by {committed.listener}")
        if not self.ledger.reject(key, digest, decision=self._noted(decision, digest)):
            raise DecisionRefused(f"{key} was changed by somebody else at this moment: look at it again")
        self.failures.remove([(key, digest)])
        return "discarded" if discarded else "refused; the committed content stands"

    def _standing(self, key: str, digest: str) -> Committed | None:
        """What is committed; a tombstone is not."""
        found = self._committed(key, digest)
        return None if found is not None and found.discarded else found

    def _committed(self, key: str, digest: str) -> Committed | None:
        found = self.ledger.look([key]).get(key)
        if found is not None and not found.known:
            raise DecisionRefused(
                f"{key} was committed by another version of this software, which this one does not know: upgrade it first"
            )
        if found is not None and found.reopened:
            if digest != found.digest:
                raise DecisionRefused(f"{key} is being processed again with other content: decide when that is done, or discard that first")
            return None
        return found

    def _noted(self, decision: str, digest: str) -> Document:
        return {"at": utc_now(), "by": self.by, "what": decision, "digest": digest}

    def _must_exist(self, key: str, digest: str) -> Any:
        raw = self.failures.collection.with_options(codec_options=RAW)
        with translated("reading a failure"):
            found: RawBSONDocument | None = raw.find_one({"_id": failure_id(key, digest)})
        if found is None:
            raise DecisionRefused(f"there is no failure of {key} with digest {digest}")
        if found["v"] != MESSAGE_VERSION:
            raise DecisionRefused(f"the failure of {key} has version {found['v']}, this software knows {MESSAGE_VERSION}: upgrade it first")
        return found

    def _must_be_conflict(self, key: str, digest: str) -> Any:
        failure = self._must_exist(key, digest)
        if failure["state"] != "conflict":
            raise DecisionRefused(f"{key} is {failure['state']}, not in conflict: retry or discard it")
        return failure

    def _kept(self, failure: Any) -> Document:
        """How long a tombstone of this event is kept: what is sent again for longer than that after the decision counts as new."""
        return {} if self.policies is None else expiry(utc_now(), self.policies.of(failure["type"]).retention_s)

    @staticmethod
    def _document(failure: Any) -> Document:
        return {
            "_id": failure["key"],
            "v": MESSAGE_VERSION,
            "digest": failure["digest"],
            "type": failure["type"],
            "body": failure["body"],
            "listener": OPERATOR,
            "claim_id": OPERATOR,
            "token": 0,
            "attempt": failure["attempts"],
            "batch": failure["batch"],
            "accepted_at": failure["accepted_at"],
            "processed_at": utc_now(),
        }
