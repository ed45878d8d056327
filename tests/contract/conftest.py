"""Two servers for the contract of claims: the embedded Valkey 9, and Redis 7.0 as Debian 12 has it.

``DEDUP_TEST_REDIS7`` names another Redis 7 program. These servers belong to these tests: scripts are flushed, memory limits set.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.claims.store import Answer, ClaimStore, new_claim_id
from app.embedded.valkey import ValkeyServer
from tests.support.servers import require_servers

DEBIAN_REDIS = "/usr/bin/redis-server"

_numbers = itertools.count(1)


def redis7_binary() -> Path:
    """The Redis 7 program to test with; ends the test where there is none."""
    named = os.environ.get("DEDUP_TEST_REDIS7") or DEBIAN_REDIS
    found = shutil.which(named)
    if found is None:
        pytest.skip(f"no Redis 7 at {named}: install Debian's redis-server, or name one in DEDUP_TEST_REDIS7")
    return Path(found)


@pytest.fixture(scope="session", params=["valkey-9", "redis-7"])
def claim_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A server for claims alone; each test has its own deployment on it."""
    require_servers()
    binary = redis7_binary() if request.param == "redis-7" else None
    server = ValkeyServer(tmp_path_factory.mktemp(request.param), binary=binary).start()
    yield server
    server.kill()


@dataclass(slots=True, kw_only=True)
class Bench:
    """A claim store, and hands that reach behind it.

    Attributes:
        claims: the store under test.
        redis: a client of its own on the same database, each byte of a value one character.
    """

    claims: ClaimStore
    redis: Redis
    lease_ms: int = 60_000
    ids: dict[str, str] = field(default_factory=dict)

    def id_of(self, owner: str) -> str:
        """The claim id of an owner's (only) task execution."""
        return self.ids.setdefault(owner, new_claim_id())

    def claim(self, owner: str, key: str = "k", digest: str = "d1", *, session: str = "", claim_id: str = "") -> Answer:
        """Claim one key."""
        claim_id = claim_id or self.id_of(owner)
        [answer] = self.claims.claim([key], [digest], claim_id=claim_id, owner=owner, lease_ms=self.lease_ms, sessions=[session])
        return answer

    def complete(self, owner: str, key: str = "k", digest: str = "d1") -> int:
        """Mark one key done."""
        return self.claims.complete([key], [digest], claim_id=self.id_of(owner), owner=owner)

    def name(self, key: str = "k") -> str:
        """The name of a claim's key in Redis."""
        return f"dedup:{{{self.claims.deployment}}}:{key}"

    def stored(self, key: str = "k") -> str | None:
        """The stored value of a claim."""
        return self.redis.get(self.name(key))

    def fields(self, key: str = "k") -> list[str]:
        """The stored value's fields."""
        value = self.stored(key)
        assert value is not None
        return value.split("|")

    def store(self, value: str | bytes, key: str = "k") -> None:
        """Put a value there by hand."""
        self.redis.set(self.name(key), value)

    def set_deadline(self, ms_from_now: int, key: str = "k") -> None:
        """Rewrite a claim's deadline, as if time had passed or the clock had moved."""
        fields = self.fields(key)
        seconds, micros = self.redis.time()
        fields[4] = str(seconds * 1000 + micros // 1000 + ms_from_now)
        self.redis.set(self.name(key), "|".join(fields), keepttl=True)

    def pttl(self, key: str = "k") -> int:
        """How long Redis keeps the claim, in ms."""
        return self.redis.pttl(self.name(key))


PX_MS = 3_600_000
DONE_TTL_MS = 1_800_000


def claim_store(client: Any, deployment: str, **options: Any) -> ClaimStore:
    """A store as the tests use it."""
    return ClaimStore(client, deployment, **({"px_ms": PX_MS, "done_ttl_ms": DONE_TTL_MS} | options))


@pytest.fixture
def bench(claim_server: ValkeyServer) -> Iterator[Bench]:
    """A fresh deployment on the server."""
    bytes_as_text = {"decode_responses": True, "encoding": "latin-1"}  # marks are no UTF-8
    with Redis.from_url(claim_server.url(0), socket_timeout=5.0) as client, Redis.from_url(claim_server.url(0), **bytes_as_text) as redis:
        yield Bench(claims=claim_store(client, f"t{next(_numbers)}"), redis=redis)
