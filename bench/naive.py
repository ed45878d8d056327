"""The usual way, to compare with: ``SETNX`` by hand in a Celery task per event and listener.

Written as its users write it, and no worse. Choices:

* **Three listeners, three queues, a task per event and listener**, so that whoever is free first takes the event: the same availability that
  this project gives. The sender calls ``apply_async(queue=…)`` for each, as ``delay`` does with a queue; Celery keeps its connection open.
* **Each worker as Celery starts it**: prefork with as many children as the machine has cores, prefetch of four per child, early
  acknowledgement, mingle and gossip on; task events on (``-E``), since Flower is to show them here as there. No result backend, which costs nothing.
* **``SETNX``, then ``EXPIRE``, then ``insert_one``**, by clients that are made once per child process; redis-py with hiredis; pymongo with its defaults,
  so MongoDB's own default of majority writes holds.
* **The same servers**: the same Valkey as broker and for the keys, the same mongod, on the same machine, with the same settings.

What it does not do: digests, conflicts, leases, takeover, retries, an inbox, an HTTP door. An event whose task dies between ``SETNX`` and ``insert_one``
is lost until the key expires. The events go straight from the sender's memory to the broker, so its rate has no door in it either.
"""

import os
import time
from functools import cache
from typing import Any

from celery import Celery
from pymongo import MongoClient
from redis import Redis

from bench.load import Load, events

DATABASE = "naive"
COLLECTION = "events"
LISTENERS = 3
EXPIRE_S = 3600

app = Celery("naive", broker=os.environ.get("NAIVE_BROKER_URL", "redis://127.0.0.1:1/0"))


@cache
def clients() -> tuple[Redis, Any]:
    """The clients of this child process: of the keys, and of the collection."""
    mongo: MongoClient[dict[str, Any]] = MongoClient(os.environ["NAIVE_MONGO_URL"])
    return Redis.from_url(os.environ["NAIVE_REDIS_URL"]), mongo[DATABASE][COLLECTION]


@app.task(ignore_result=True)
def process(event: dict[str, Any]) -> str:
    """Process an event, unless another listener has it."""
    redis, collection = clients()
    key = f"naive:{event['source']}:{event['id']}"
    if not redis.setnx(key, 1):
        return "skipped"
    redis.expire(key, EXPIRE_S)
    collection.insert_one(event)
    return "won"


def queue_of(listener: int) -> str:
    """The queue of a listener, from 1."""
    return f"naive-{listener}"


def send(broker_url: str, load: Load) -> float:
    """Send every event of a load to every listener's queue. Returns when it began, by the monotonic clock."""
    app.conf.update(broker_url=broker_url)
    waiting = list(events(load))
    began = time.monotonic()
    for event in waiting:
        for listener in range(1, LISTENERS + 1):
            process.apply_async((event,), queue=queue_of(listener))
    return began
