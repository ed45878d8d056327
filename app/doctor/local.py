"""What this process can check alone: settings against each other, bindings, the policy file, the handler modules."""

import difflib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from app.doctor.findings import Findings
from app.embedded.serverinfo import recorded_servers
from app.errors import PolicyError
from app.events.policies import Policies
from app.events.policy import Policy
from app.settings import PREFIX, Settings, variables

_LOAD_S = 60.0
_SHORT_TOKEN = 16
_OTHERS = (f"{PREFIX}CI_", f"{PREFIX}TEST_", f"{PREFIX}BENCH_", f"{PREFIX}HYPOTHESIS", f"{PREFIX}IMAGE", f"{PREFIX}FLIGHTS_IMAGE")
"""Variables that are no settings: those of tests, benchmarks and docker-compose.yml."""
_LOAD = """
import json, sys
from app.errors import DedupError
from workers.handlers import load_handlers, registry
try:
    load_handlers(sys.argv[1:])
except DedupError as error:
    sys.exit(f"dedup: {error}")
print(json.dumps([[h.name, h.pattern, h.at_least_once] for h in registry]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the deployment's own files declare.

    Attributes:
        longest_transaction_s: the longest ``max_handler_s`` of types with transactional handlers, or of any type where that could not be seen.
        transactional: whether any handler runs inside transactions; None when that could not be seen.
    """

    longest_transaction_s: float
    transactional: bool | None


def examine(findings: Findings, settings: Settings) -> Declared:
    """Check what needs no server."""
    embedded = recorded_servers(settings.home)
    if embedded is not None and embedded.mongo_url == settings.mongo_url:
        findings.ok("servers", f"embedded ones in {settings.home}, started by process {embedded.owner.pid}: for trying out and for tests")
    _names(findings, variables())
    policies = _policies(findings, settings)
    patterns = _handlers(findings, settings)
    every = list(policies or ())
    _timeouts(findings, settings, _longest_s(every, settings))
    _bindings(findings, settings)
    inside = every
    if policies is not None and patterns is not None:
        inside = [policy for pattern in patterns for policy in policies.that_may_hold(pattern)]
    return Declared(longest_transaction_s=_longest_s(inside, settings), transactional=None if patterns is None else bool(patterns))


def _longest_s(policies: Iterable[Policy], settings: Settings) -> float:
    return max((policy.max_handler_s for policy in policies), default=settings.max_handler_s)


def _names(findings: Findings, env: Mapping[str, str]) -> None:
    """A variable that nobody reads is a typing error, and the default holds where its user thinks otherwise."""
    known = {PREFIX + spec.name.upper() for spec in fields(Settings)}
    for name in sorted(name for name in env if name.startswith(PREFIX) and name not in known and not name.startswith(_OTHERS)):
        near = difflib.get_close_matches(name, known, n=1)
        findings.warn(
            "settings", f"{name} is no setting", f"is {near[0]} meant? It has no effect" if near else "it has no effect: remove it"
        )


def _policies(findings: Findings, settings: Settings) -> Policies | None:
    try:
        policies = Policies.load(settings.policies, settings)
    except PolicyError as error:
        findings.problem("policies", str(error), "mend that: neither broadcaster nor listeners start with it")
        return None
    findings.ok("policies", f"{settings.policies} can be read" if settings.policies else "no policy file: the defaults hold for every type")
    return policies


def _handlers(findings: Findings, settings: Settings) -> list[str] | None:
    """Import them in a process of their own, for they may do anything; what the transactional ones take, None where that cannot be seen."""
    if not settings.handlers:
        findings.ok("handlers", "no handler modules: events are stored, and nothing else is done")
        return []
    if importlib.util.find_spec("workers") is None:
        findings.warn("handlers", "the listeners' package is not installed here", "run the doctor where the listeners run")
        return None
    remedy = "mend the module, or DEDUP_HANDLERS: listeners do not start with it"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, *settings.handlers], capture_output=True, text=True, timeout=_LOAD_S, check=False
        )
        if done.returncode == 0:
            declared = json.loads(done.stdout.splitlines()[-1])
            findings.ok("handlers", f"{', '.join(settings.handlers)} can be imported; handlers: {len(declared)}")
            return [pattern for _, pattern, at_least_once in declared if not at_least_once]
    except subprocess.TimeoutExpired:
        findings.problem("handlers", f"importing {', '.join(settings.handlers)} takes longer than {_LOAD_S:.0f} s", remedy)
        return None
    except (OSError, ValueError, LookupError):
        pass  # a module that writes to standard output at its end, or no process to be had
    why = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1].removeprefix("dedup: ")
    findings.problem("handlers", why[:500], remedy)
    return None


def _timeouts(findings: Findings, settings: Settings, longest_s: float) -> None:
    if settings.visibility_timeout_s == 0:
        findings.ok(
            "celery.visibility", "none: Redis keeps no delivery that a listener has read; what is not finished comes again by the sweeper"
        )
        return
    lease_s = settings.lease_ms / 1000
    needed_s = max(longest_s, lease_s) + lease_s
    seen = f"visibility timeout {settings.visibility_timeout_s} s; lease {lease_s:g} s, longest handler {longest_s:g} s"
    if settings.visibility_timeout_s < needed_s:
        findings.warn(
            "celery.visibility",
            seen,
            f"set DEDUP_VISIBILITY_TIMEOUT_S to {needed_s:.0f} or more: below it, deliveries in hand come again, and only the claims skip them",
        )
    else:
        findings.ok("celery.visibility", seen)


def _bindings(findings: Findings, settings: Settings) -> None:
    if settings.loopback:
        findings.ok("binding", f"broadcaster and Flower are to bind {settings.host}, this machine alone")
        return
    for check, what, secret, variable in (
        ("binding.broadcaster", "the broadcaster's doors and its live page", settings.token, "DEDUP_TOKEN"),
        ("binding.flower", "Flower", settings.flower_auth, "DEDUP_FLOWER_AUTH"),
    ):
        if not secret:
            findings.problem(check, f"{what} would be open on {settings.host}: they do not start so", f"set {variable}, or bind 127.0.0.1")
        elif len(secret) < _SHORT_TOKEN:
            findings.warn(
                check,
                f"the secret of {what} has only {len(secret)} characters",
                f"give {variable} a random secret of {_SHORT_TOKEN} or more",
            )
        else:
            findings.ok(check, f"{what} ask for a secret on {settings.host}; TLS is a proxy's")
