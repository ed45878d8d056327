"""A ledger with a past: documents of the very shape that listeners write, put there directly."""

import os
from datetime import UTC, datetime

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient, WriteConcern

from app.events.keys import id_key
from app.naming import MESSAGE_VERSION
from app.samples import SOURCE
from app.settings import database_of
from app.stores.records import new_batch_id
from bench.load import SYNTHETIC, Load, events

_AT_ONCE = 5_000


def fill(mongo_url: str, load: Load) -> None:
    """Put the documents of a load into the ledger, weakly acknowledged; the caller waits until all are there."""
    client: MongoClient[RawBSONDocument] = MongoClient(mongo_url, document_class=RawBSONDocument)
    with client:
        ledger = client[database_of(mongo_url)].get_collection("events", write_concern=WriteConcern(1))
        waiting: list[RawBSONDocument] = []
        for event in events(load):
            waiting.append(_document(event["id"], event["time"], event["data"]))
            if len(waiting) == _AT_ONCE:
                ledger.insert_many(waiting, ordered=False)
                waiting = []
        if waiting:
            ledger.insert_many(waiting, ordered=False)


def _document(id: str, time: str, data: object) -> RawBSONDocument:
    now = datetime.now(UTC)
    document = {
        "_id": id_key(SOURCE, id),
        "v": MESSAGE_VERSION,
        "digest": os.urandom(16).hex(),
        "type": SYNTHETIC,
        "body": {"source": SOURCE, "id": id, "time": time, "data": data},
        "listener": "listener-1",
        "claim_id": os.urandom(8).hex(),
        "token": 1,
        "attempt": 1,
        "batch": new_batch_id(),
        "accepted_at": now,
        "processed_at": now,
    }
    return RawBSONDocument(bson.encode(document))
