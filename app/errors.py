"""The errors of this project: one root, a thin tree.

Two kinds are told apart by type. ``PermanentError``: the same call fails again, so say what is wrong. ``TransientError``:
the same call may work later, so wait or leave it to the sweeper. Driver errors are wrapped in the adapters (``app.stores``,
``app.redis_client``, ``app.broker``) and stay in ``__cause__``. A duplicate is an outcome, never an error.
"""


class DedupError(Exception):
    """Root of every error that this project raises on purpose; its text is one plain sentence."""


class PermanentError(DedupError):
    """The same call will fail again: the input, the settings or the code must change."""


class TransientError(DedupError):
    """The same call may work later: a server or the network is away.

    Attributes:
        retry_after_s: when to try again, in whole seconds from now; the word that every door has for it.
    """

    retry_after_s: int = 2


class SettingsError(PermanentError):
    """The settings are missing, half given, or contradict each other."""


class PolicyError(PermanentError):
    """The policy file is unreadable or says something that cannot hold."""


class HandlerSetupError(PermanentError):
    """A handler module does not import, or a handler is declared in a way that cannot hold."""


class ServerStartError(PermanentError):
    """An embedded server could not be started; the text names the remedy."""


class StoreUnavailable(TransientError):
    """MongoDB did not answer in time, or answered that it is not able to serve now."""


class CommitUnknown(TransientError):
    """MongoDB did not say whether a write will last (a write-concern error or a lost reply); never taken for done."""


class RedisUnavailable(TransientError):
    """Redis did not answer in time, or answered that it is not able to serve now."""


class BrokerUnavailable(TransientError):
    """The broker did not answer, or refused; what was being sent may or may not have arrived."""


class InboxFull(TransientError):
    """The deployment takes no more for now; producers are told to come back after a while: it takes the listeners time to make room."""

    retry_after_s = 10


class RateLimited(TransientError):
    """A producer sends more than it may; it is told when to come back.

    Attributes:
        retry_after_s: when, in whole seconds from now.
    """

    def __init__(self, detail: str, *, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class InvalidEvent(PermanentError):
    """An event that the door refuses.

    Attributes:
        status: the HTTP status that says so: 400, 409, 413 or 422.
        index: position of the event in its request, from 0, or None when the request as a whole is refused.
        field: dotted name of the offending field, or None.
    """

    def __init__(self, detail: str, *, status: int = 422, index: int | None = None, field: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.index = index
        self.field = field
