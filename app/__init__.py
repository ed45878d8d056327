"""What every process of the system shares: settings, events, claims, stores.

This package imports neither ``workers`` nor ``broadcaster``; both import it. What producers use is here by name, and imported when
it is first asked for: ``from app import Publisher, accept``.
"""

TYPE_CHECKING = False
"""As in ``typing``, without its import: ``import app`` costs nothing."""
if TYPE_CHECKING:
    from app.outbox import accept, accept_async
    from app.publisher import Publisher

__version__ = "0.1.0"
__all__ = ["Publisher", "accept", "accept_async"]

_HOMES = {"Publisher": "app.publisher", "accept": "app.outbox", "accept_async": "app.outbox"}


def __getattr__(name: str) -> object:
    """Import what producers use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
