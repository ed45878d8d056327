"""Facts about the deployment that must survive Redis: its id.

| ``_id`` | fields | meaning |
|---|---|---|
| ``deployment`` | ``id`` (8 characters), ``created_at`` | names this database's claims in Redis |

The deployment id comes from MongoDB, so that neither a dropped database nor a Redis shared by two systems can pass off
another deployment's claims as ours.
"""

import secrets

from pymongo import ReturnDocument
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from app.naming import MESSAGE_VERSION
from app.stores.mongo import Document, translated
from app.stores.records import utc_now

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def deployment_id(db: Database[Document]) -> str:
    """The deployment's id; made by whoever asks first.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    with translated("reading the deployment's id"):
        collection = db["meta"]
        if found := collection.find_one({"_id": "deployment"}):
            return str(found["id"])
        fresh = "".join(secrets.choice(_ALPHABET) for _ in range(8))
        on_insert = {"v": MESSAGE_VERSION, "id": fresh, "created_at": utc_now()}
        try:
            kept = collection.find_one_and_update(
                {"_id": "deployment"}, {"$setOnInsert": on_insert}, upsert=True, return_document=ReturnDocument.AFTER
            )
        except DuplicateKeyError:
            kept = collection.find_one({"_id": "deployment"})
    return str((kept or on_insert)["id"])
