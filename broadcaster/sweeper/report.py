"""What one sweep did, in numbers."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Report:
    """What one sweep did.

    Attributes:
        listeners: how many live.
        waiting: batches in the inbox, as far as it was looked through.
        parked: those of them whose unfinished events are all of paused types.
        removed: finished batches removed.
        recovered: batches sent again (or for the first time, where fan-out did not).
        recovered_events: their unfinished events.
        forgotten: marks of done deleted because MongoDB refutes them.
        retried: failed events sent for another try.
        refuted: failures removed because the ledger has their (key, digest).
        retired: listeners whose queues were removed.
        more: the sweep ended at a limit, and the next one may come sooner.
    """

    listeners: int = 0
    waiting: int = 0
    parked: int = 0
    removed: int = 0
    recovered: int = 0
    recovered_events: int = 0
    forgotten: int = 0
    retried: int = 0
    refuted: int = 0
    retired: int = 0
    more: bool = False
