"""``dedup reprocess``: process events again that a wrong handler has processed."""

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.edge import plain, put, put_json, say
from app.errors import TransientError
from app.naming import key_in
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from pymongo.database import Database

    from app.reprocessing import Former


def reprocess(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="The events' keys, or task ids out of Flower.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the events' stories.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")] = False,
) -> None:
    """Process events again that a wrong handler has processed: its effects stay, and the handlers' are applied once more.

    For events in the ledger only; 'dedup failures retry' is for those that failed. Who asked for it, when, why, and what the
    former processing was, stands in the event's story ('dedup inspect'). 'dedup failures discard KEY' takes it back until it
    is committed. Exit code 1 when an event cannot be processed again; the others are.
    """
    from app.reprocessing import MAX_REASON, ReprocessingRefused, look, operator
    from app.reprocessing import reprocess as reopen
    from app.stores import mongo

    if not reason.strip() or len(reason) > MAX_REASON:
        raise typer.BadParameter(f"--reason has 1 to {MAX_REASON} characters")
    if not all(keys):
        raise typer.BadParameter("a KEY is not empty")
    settings = load_settings()
    db = mongo.connect(settings, role="reprocess")
    refused = 0
    with closing(db.client):
        reopened: list[Former] = []
        for key in dict.fromkeys(key_in(key) for key in keys):
            try:
                former = look(db, key) if dry_run else reopen(db, key, by=operator(), reason=reason.strip())
            except ReprocessingRefused as error:
                refused += 1
                say(f"dedup: {plain(str(error))}")
                continue
            reopened.append(former)
            _tell(former, dry_run=dry_run, as_json=as_json)
        if reopened and not dry_run:
            _forget_marks(db, settings, reopened)
    if refused:
        raise typer.Exit(1)


def _tell(former: "Former", *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {name: getattr(former, name) for name in former.__slots__}
        put_json({"key": former.key, "reopened": not dry_run, "former": facts})
        return
    attempt = f", in attempt {former.attempt}" if former.attempt > 1 else ""
    will = "would be" if dry_run else "will be"
    put(f"{plain(former.key)}: {will} processed again; was by {former.listener} at {former.processed_at:%Y-%m-%d %H:%M:%S} (UTC){attempt}")


def _forget_marks(db: "Database[dict[str, Any]]", settings: Settings, reopened: "list[Former]") -> None:
    """Delete marks of done, which the ledger refutes now, so that the events need not wait for the sweeper to do so."""
    from app import redis_client
    from app.claims.store import ClaimStore
    from app.stores.meta import deployment_id

    with closing(redis_client.connect(settings)) as client:
        try:
            store = ClaimStore.of(settings, client, deployment_id(db))
            store.forget_done([former.key for former in reopened], [former.digest for former in reopened])
        except TransientError as error:
            say(f"dedup: {error}; the events are processed again once it serves")
