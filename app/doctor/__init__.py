"""What the environment may have broken: checks of a deployment's servers, settings and processes, each finding with its remedy.

Guaranteed: a store that is away is one finding, and every check that can do without it is made. Where a user may not look, that is
said, with what to check by hand. Nothing is changed, but for one small document in ``meta`` that shows whether a majority confirms
writes. Not guaranteed: that what was not looked at is well; the settings are those of the place where this runs.
"""

from contextlib import closing
from urllib.parse import urlsplit

from app.broker import is_redis
from app.doctor import flow, local, mongo_server, redis_server
from app.doctor.findings import Finding, Findings
from app.errors import TransientError
from app.settings import Settings
from app.stores import mongo

__all__ = ["Finding", "Findings", "examine"]


def examine(settings: Settings) -> Findings:
    """Check everything; takes some seconds, longer where a server is away."""
    findings = Findings()
    declared = local.examine(findings, settings)
    redis_serves = _redis(findings, settings)
    db = mongo.connect(settings, role="doctor")
    with closing(db.client):
        if mongo_server.examine(findings, db, settings, declared):
            try:
                deployment = flow.examine_mongo(findings, db, settings)
                if redis_serves:
                    flow.examine_deployment(findings, deployment, settings)
                    flow.examine_listeners(findings, db, deployment, settings)
            except TransientError as error:
                findings.problem("flow", str(error), "a server went away meanwhile, or refuses this user: look again")
    return findings


def _redis(findings: Findings, settings: Settings) -> bool:
    """The server of the claims, and the broker's where that is Redis and another one; whether the claims' serves."""
    claims, broker = urlsplit(settings.redis_url), urlsplit(settings.broker_url)
    if claims.netloc == broker.netloc and claims.scheme == broker.scheme:
        return redis_server.examine(findings, settings.redis_url, settings, role="claims and broker")
    serves = redis_server.examine(findings, settings.redis_url, settings, role="claims")
    if is_redis(settings.broker_url):
        redis_server.examine(findings, settings.broker_url, settings, role="broker")
    else:
        findings.ok("broker", f"Celery's transport is {broker.scheme}: its server's own settings are not looked at")
    return serves
