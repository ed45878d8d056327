"""MongoDB: version, replica set, majority, how long a transaction may live, default write concern, clock, who may come in."""

import time
from collections.abc import Callable
from typing import Any

import pymongo
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from app.doctor.findings import Findings, skew
from app.doctor.local import Declared
from app.doctor.redis_server import is_loopback
from app.errors import StoreUnavailable
from app.settings import Settings, without_user
from app.stores.mongo import Document, first_line, translated
from app.stores.records import utc_now

OLDEST = (6, 0)
_REFUSED = frozenset({8000, 13, 31})
"""Codes of a user who may not (8000: as a rented cluster says it)."""
_NO_SUCH = frozenset({26, 59, 72, 115})
"""Codes of a command or parameter that this server does not have."""
_NO_REPLICA_SET = 76
_UP = (1, 2)
"""States of members that hold data and follow: primary, secondary."""
_WRITE_WAIT_MS = 3_000


def examine(findings: Findings, db: Database[Document], settings: Settings, declared: Declared) -> bool:
    """Check the server.

    Returns:
        Whether it serves.
    """
    try:
        with translated("saying hello"):
            before = time.time()
            hello = db.client.admin.command("hello")
            after = time.time()
    except StoreUnavailable as error:
        findings.problem(
            "mongo",
            str(error),
            f"start it, or correct its URL ({_shown(settings.mongo_url)}) and its user's rights; a replica set needs a primary",
        )
        return False
    try:
        with translated("being examined"):
            _version(findings, db)
            replicated = _replica_set(findings, hello, declared)
            if replicated:
                _majority(findings, db, hello)
                _lifetime(findings, db, settings, declared)
                _default_concern(findings, db)
    except StoreUnavailable as error:
        findings.problem("mongo", str(error), "look at its log")
    skew(
        findings,
        "mongo.clock",
        "the clock of MongoDB",
        hello["localTime"].timestamp() - (before + after) / 2,
        uncertain_s=(after - before) / 2 + 0.001,
    )
    _access(findings, db, settings)
    return True


def allowed(call: Callable[[], Any]) -> Any:
    """What a call returns; None when this user may not make it, or this server does not know it."""
    try:
        return call()
    except OperationFailure as error:
        if error.code in _REFUSED | _NO_SUCH:
            return None
        raise


def _version(findings: Findings, db: Database[Document]) -> None:
    info = allowed(lambda: db.client.admin.command("buildInfo"))
    if info is None:
        findings.hidden("mongo.version", "buildInfo", "MongoDB is 6.0 or newer")
    elif tuple(info["versionArray"][:2]) >= OLDEST:
        findings.ok("mongo.version", f"MongoDB is {info['version']}")
    else:
        findings.problem(
            "mongo.version", f"MongoDB is {info['version']}", f"upgrade it to {OLDEST[0]}.{OLDEST[1]} or newer: older ones are not tested"
        )


def _replica_set(findings: Findings, hello: Document, declared: Declared) -> bool:
    if hello.get("msg") == "isdbgrid":
        findings.ok("mongo.replica_set", "a sharded cluster; its shards are to be checked one by one")
        return True
    if hello.get("setName"):
        findings.ok("mongo.replica_set", f"replica set {hello['setName']}, {len(hello.get('hosts', ()))} members with data")
        return True
    remedy = "start it with --replSet and run rs.initiate(); one member will do"
    seen = "MongoDB is standalone: it has no transactions"
    if declared.transactional:
        findings.problem("mongo.replica_set", f"{seen}, and listeners with transactional handlers do not start", remedy)
    else:
        findings.warn("mongo.replica_set", f"{seen}; events can be stored, and not be processed again ('dedup reprocess')", remedy)
    return False


def _majority(findings: Findings, db: Database[Document], hello: Document) -> None:
    """By a small write, for that is what counts; and by how many members could go."""
    try:
        probe = db["meta"].with_options(write_concern=WriteConcern("majority", wtimeout=_WRITE_WAIT_MS))
        with pymongo.timeout(_WRITE_WAIT_MS / 1000 + 1):
            probe.update_one({"_id": "doctor"}, {"$set": {"examined_at": utc_now()}}, upsert=True)
    except PyMongoError as error:
        if getattr(error, "code", None) in _REFUSED:
            findings.problem(
                "mongo.majority", f"this user may not write: {first_line(error)}", "give it the role readWrite on the deployment's database"
            )
            return
        findings.problem(
            "mongo.majority",
            f"a write was not confirmed by a majority: {first_line(error)}",
            "bring members that hold data back: until then nothing is accepted and nothing is committed; arbiters confirm nothing",
        )
        return
    status = allowed(lambda: db.client.admin.command("replSetGetStatus"))
    if hello.get("msg") == "isdbgrid":
        findings.ok("mongo.majority", "a write was confirmed by a majority")
    elif status is None:
        findings.ok("mongo.majority", "a write was confirmed by a majority")
        findings.hidden("mongo.members", "replSetGetStatus", "rs.status() shows every member as PRIMARY or SECONDARY")
    else:
        findings.ok("mongo.majority", "a write was confirmed by a majority")
        _members(findings, status)


def _members(findings: Findings, status: Document) -> None:
    members = status["members"]
    up = [member for member in members if member.get("health") == 1 and member["state"] in _UP]
    needed = int(status.get("writeMajorityCount", len(members) // 2 + 1))
    away = [str(member["name"]) for member in members if member not in up and member["state"] != 7]
    seen = f"{len(up)} of {len(members)} members hold data and follow; a majority is {needed}"
    if away:
        findings.warn("mongo.members", f"{seen}; not {', '.join(away)}", "bring them back before another one fails")
    elif len(up) <= needed:
        findings.warn(
            "mongo.members",
            f"{seen}: none may fail",
            "add members: three that hold data survive the loss of one. To try things out, one will do",
        )
    else:
        findings.ok("mongo.members", seen)


def _lifetime(findings: Findings, db: Database[Document], settings: Settings, declared: Declared) -> None:
    name = "transactionLifetimeLimitSeconds"
    found = allowed(lambda: db.client.admin.command({"getParameter": 1, name: 1}))
    lease_s, longest_s = settings.lease_ms / 1000, declared.longest_transaction_s
    if found is None:
        findings.hidden(
            "mongo.transaction_lifetime", "getParameter", f"{name} is more than {longest_s:g} and about {lease_s:g} (on every member)"
        )
        return
    limit_s = float(found[name])
    seen = f"{name} is {limit_s:g}; longest handler {longest_s:g} s, lease {lease_s:g} s"
    set_it = f"mongod --setParameter {name}=N, on every member"
    if limit_s <= longest_s:
        findings.problem(
            "mongo.transaction_lifetime",
            seen,
            f"raise it above {longest_s:g} ({set_it}): MongoDB ends such handlers' transactions before they are done",
        )
    elif limit_s < settings.transaction_lifetime_s:
        findings.warn(
            "mongo.transaction_lifetime",
            f"{seen}; DEDUP_TRANSACTION_LIFETIME_S says {settings.transaction_lifetime_s:g}",
            "let the two be the same",
        )
    elif limit_s > max(2 * lease_s, settings.transaction_lifetime_s):
        findings.warn(
            "mongo.transaction_lifetime",
            seen,
            f"lower it to {max(lease_s, settings.transaction_lifetime_s):g} ({set_it}): where a dead listener's session cannot be killed, "
            "its open transaction keeps others from its events for so long",
        )
    else:
        findings.ok("mongo.transaction_lifetime", seen)


def _default_concern(findings: Findings, db: Database[Document]) -> None:
    found = allowed(lambda: db.client.admin.command("getDefaultRWConcern"))
    if found is None:
        return  # not known to this server, or not shown to this user; only producers' own transactions depend on it
    level = (found.get("defaultWriteConcern") or {}).get("w", 1)
    if level == "majority":
        findings.ok("mongo.default_write_concern", "majority")
    else:
        findings.warn(
            "mongo.default_write_concern",
            f"w: {level!r}",
            "set it to majority (setDefaultRWConcern), or have producers that accept events in their own transactions name it",
        )


# ------------------------------------------------------------------------------------------------------------ who may come in


def _access(findings: Findings, db: Database[Document], settings: Settings) -> None:
    hosts = [host for host, _ in db.client.nodes]
    elsewhere = sorted({host for host in hosts if not is_loopback(host)})
    remedy = "turn access control on (security.authorization), make a user, and put it into the URL; let MongoDB listen where only these processes reach it"
    if not _answers_anybody(settings):
        findings.ok("mongo.access", "MongoDB asks for a user")
    elif elsewhere:
        findings.problem("mongo.access", f"MongoDB at {', '.join(elsewhere)} answers anybody without a password", remedy)
    elif (options := allowed(lambda: db.client.admin.command("getCmdLineOpts"))) is None:
        findings.hidden("mongo.access", "getCmdLineOpts", "MongoDB has no access control: net.bindIp names loopback addresses alone")
    else:
        net = options.get("parsed", {}).get("net", {})
        bound = "*" if net.get("bindIpAll") else str(net.get("bindIp", "localhost"))
        wide = [address for address in bound.split(",") if not is_loopback(address.strip())]
        if wide:
            findings.problem("mongo.access", f"MongoDB has no access control and listens on {bound}", remedy)
        else:
            findings.ok("mongo.access", "MongoDB has no access control, and listens on this machine alone")


def _answers_anybody(settings: Settings) -> bool:
    client: MongoClient[Document] = MongoClient(
        _bare(settings.mongo_url),
        appname="dedup-doctor",
        serverSelectionTimeoutMS=settings.mongo_timeout_ms,
        timeoutMS=settings.mongo_timeout_ms,
    )
    try:
        client.admin.command("listDatabases", nameOnly=True, authorizedDatabases=False)
    except PyMongoError:
        return False
    finally:
        client.close()
    return True


def _bare(url: str) -> str:
    """The URL without its user and what belongs to that."""
    query = url.partition("?")[2]
    options = [option for option in query.split("&") if option and not option.lower().startswith("auth")]
    return _shown(url) + ("?" + "&".join(options) if options else "")


def _shown(url: str) -> str:
    """The URL without user and options."""
    return without_user(url).partition("?")[0]
