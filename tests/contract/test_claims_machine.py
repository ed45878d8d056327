"""The claim store against a model of a few lines, in histories that Hypothesis makes up: on Valkey 9 and on Redis 7.0.

Held after every step:
* what is stored is what the model says;
* at most one holder of a key believes in a running lease, unless Redis was lost or rolled back since it won;
* no call changes a claim but by its claim id, by takeover of one whose lease is over, or by a mark's very digest;
* the tokens of a key grow while Redis remembers it, clock jumps included.
"""

import itertools
from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis

from app.claims.store import Answer, ClaimStore, Held, new_claim_id
from app.events.digests import digest_of
from tests.contract.conftest import Bench, claim_store
from tests.support.profiles import THOROUGH, machine_settings

KEYS = ("a", "b", "c")
DIGESTS = ("d1", digest_of("t", 1), digest_of("t", 2))
"""One whose marks are long, and two whose marks are short."""
LEASE_MS = 600_000
JUMP_MS = 3_600_000

_numbers = itertools.count(1)

some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True)
digests = st.sampled_from(DIGESTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One task execution: a claim id of its own; two listeners have two each."""

    owner: str
    session: str
    claim_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The model of a stored claim; ``claim_id`` empty: done."""

    digest: str
    owner: str
    claim_id: str = ""
    token: int = 0
    session: str = ""
    previous: str = ""
    previous_session: str = ""
    moved_ms: int = 0
    """How far its deadline was moved since it was set, by time that passed or a clock that jumped."""

    @property
    def done(self) -> bool:
        return not self.claim_id

    @property
    def live(self) -> bool:
        return -LEASE_MS < self.moved_ms <= 0


class Claims(RuleBasedStateMachine):
    """Histories of one deployment's claims."""

    def __init__(self, claims: ClaimStore, redis: Redis) -> None:
        super().__init__()
        self.claims = claims
        self.redis = redis
        self.executions = [
            Execution(owner=f"listener-{1 + i % 2}", session=f"{i:04x}" if i % 3 else "", claim_id=new_claim_id()) for i in range(4)
        ]
        self.model: dict[str, Claim] = {}
        self.held: dict[tuple[int, str], Held] = {}
        """What each execution was told that it won."""
        self.believers: dict[str, set[int]] = {key: set() for key in KEYS}
        """Who won and has neither finished, nor seen its lease pass, nor lived through a loss of Redis."""
        self.dump: tuple[dict[str, str], dict[str, Claim]] | None = None

    def name(self, key: str) -> str:
        return f"dedup:{{{self.claims.deployment}}}:{key}"

    def raw(self) -> dict[str, str]:
        values = self.redis.mget([self.name(key) for key in KEYS])
        return {key: value for key, value in zip(KEYS, values, strict=True) if value is not None}

    executions_ = st.integers(0, 3)

    @rule(who=executions_, keys=some_keys, digest=digests)
    def claim(self, who, keys, digest):
        one = self.executions[who]
        before = self.raw()
        answers = self.claims.claim(
            keys, [digest] * len(keys), claim_id=one.claim_id, owner=one.owner, lease_ms=LEASE_MS, sessions=[one.session] * len(keys)
        )
        after = self.raw()
        for key, answer in zip(keys, answers, strict=True):
            found = self.model.get(key)
            self._check_claim(one, digest, found, answer)
            if answer.outcome == "won":
                if found is None or found.claim_id != one.claim_id:
                    previous = {"previous": found.owner, "previous_session": found.session} if found is not None else {}
                    self.model[key] = Claim(
                        digest=digest, owner=one.owner, claim_id=one.claim_id, token=answer.token, session=one.session, **previous
                    )
                    if found is not None:
                        self.believers[key].clear()  # nobody's lease was running, or the model would not have let it win
                if self.model[key].live:
                    self.believers[key].add(who)
                self.held[who, key] = Held(
                    key=key,
                    digest=digest,
                    claim_id=one.claim_id,
                    token=answer.token,
                    lease_ms=LEASE_MS,
                    owner=one.owner,
                    session=one.session,
                    previous_owner=answer.owner,
                )
            else:
                assert after.get(key) == before.get(key), "who did not win changed something"
        assert {k: v for k, v in after.items() if k not in keys} == {k: v for k, v in before.items() if k not in keys}

    @staticmethod
    def _check_claim(one: Execution, digest: str, found: Claim | None, answer: Answer) -> None:
        if found is None:
            assert answer == Answer("won", token=answer.token)
        elif found.digest != digest:
            assert answer == Answer("conflict", owner=found.owner, digest=found.digest)
        elif found.done:
            assert answer == Answer("done", owner=found.owner)
        elif found.claim_id == one.claim_id:
            assert answer == Answer("won", token=found.token, owner=found.previous, session=found.previous_session)
        elif found.live:
            assert answer == Answer("busy", owner=found.owner)
        else:
            assert answer == Answer("won", token=answer.token, owner=found.owner, session=found.session)
            assert answer.token > found.token, "tokens grow"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def renew(self, data):
        who = data.draw(st.sampled_from(sorted({who for who, _ in self.held})))
        mine = {key: claim for (w, key), claim in self.held.items() if w == who}
        before = self.raw()
        for key, kept in zip(mine, self.claims.renew(list(mine.values())), strict=True):
            claim, found = mine[key], self.model.get(key)
            assert kept == (found is None or found.claim_id == claim.claim_id)
            if not kept:
                assert self.raw().get(key) == before.get(key)
                self.believers[key].discard(who)
                del self.held[who, key]
                continue
            self.model[key] = Claim(
                digest=claim.digest,
                owner=claim.owner,
                claim_id=claim.claim_id,
                token=claim.token,
                session=claim.session,
                previous=claim.previous_owner,
            )
            self.believers[key].add(who)

    @rule(who=executions_, keys=some_keys, digest=digests)
    def complete(self, who, keys, digest):
        one = self.executions[who]
        before = self.raw()
        wanted = [self.held[who, key].digest if (who, key) in self.held else digest for key in keys]
        ours = [key for key in keys if (found := self.model.get(key)) is None or found.claim_id == one.claim_id]
        assert self.claims.complete(keys, wanted, claim_id=one.claim_id, owner=one.owner) == len(ours)
        for key, mark in zip(keys, wanted, strict=True):
            if key in ours:
                self.model[key] = Claim(digest=mark, owner=one.owner)
        self._forget_holder(who, keys)
        self._only_changed(before, ours)

    @rule(who=executions_, keys=some_keys)
    def release(self, who, keys):
        one = self.executions[who]
        before = self.raw()
        ours = [key for key in keys if (found := self.model.get(key)) is not None and found.claim_id == one.claim_id]
        assert self.claims.release(keys, claim_id=one.claim_id) == len(ours)
        for key in ours:
            del self.model[key]
        self._forget_holder(who, keys)
        self._only_changed(before, ours)

    @rule(keys=some_keys, digest=digests)
    def forget_done(self, keys, digest):
        before = self.raw()
        marks = [key for key in keys if (found := self.model.get(key)) is not None and found.done and found.digest == digest]
        assert self.claims.forget_done(keys, [digest] * len(keys)) == len(marks)
        for key in marks:
            del self.model[key]
        self._only_changed(before, marks)

    @rule(keys=some_keys, digest=digests)
    def forget_lapsed(self, keys, digest):
        before = self.raw()
        over = [key for key in keys if (c := self.model.get(key)) is not None and not c.done and not c.live and c.digest == digest]
        assert self.claims.forget_lapsed(keys, [digest] * len(keys)) == len(over)
        for key in over:
            del self.model[key]
        self._only_changed(before, over)

    def _forget_holder(self, who: int, keys: list[str]) -> None:
        for key in keys:
            self.held.pop((who, key), None)
            self.believers[key].discard(who)

    def _only_changed(self, before: dict[str, str], allowed: list[str]) -> None:
        after = self.raw()
        assert {k for k in KEYS if before.get(k) != after.get(k)} <= set(allowed)

    # ------------------------------------------------------------------------------------------------- what befalls Redis

    @rule()
    def lose_everything(self):
        self.redis.delete(*(self.name(key) for key in KEYS))
        self.model.clear()
        self._lost()

    @rule()
    def take_a_dump(self):
        self.dump = (self.raw(), dict(self.model))

    @precondition(lambda self: self.dump is not None)
    @rule()
    def roll_back(self):
        assert self.dump is not None
        values, model = self.dump
        self.redis.delete(*(self.name(key) for key in KEYS))
        for key, value in values.items():
            self.redis.set(self.name(key), value.encode("latin-1"))
        self.model = dict(model)
        self._lost()

    def _lost(self) -> None:
        for believers in self.believers.values():
            believers.clear()

    @rule(key=st.sampled_from(KEYS))
    def a_mark_is_of_an_earlier_release(self, key):
        if (claim := self.model.get(key)) is not None and claim.done:
            self.redis.set(self.name(key), f"D|{claim.digest}|{claim.owner}")

    @rule(key=st.sampled_from(KEYS))
    def let_a_lease_run_out(self, key):
        if key in self.model and not self.model[key].done:
            self._shift(key, -2 * LEASE_MS)
            self.believers[key].clear()

    @rule()
    def clock_jumps_ahead(self):
        for key in KEYS:
            self.let_a_lease_run_out(key)

    @rule()
    def clock_jumps_back(self):
        """Seen from the clock after the jump, all that was stored before lies in the future."""
        self.dump = None  # its tokens belong to the other time
        for key, claim in self.model.items():
            if not claim.done:
                self._shift(key, JUMP_MS, token_us=JUMP_MS * 1000)
            self.believers[key].clear()
        for held, claim in self.held.items():
            self.held[held] = Held(**{f: getattr(claim, f) for f in claim.__struct_fields__} | {"token": claim.token + JUMP_MS * 1000})

    def _shift(self, key: str, deadline_ms: int, *, token_us: int = 0) -> None:
        claim = self.model[key]
        self.model[key] = replace(claim, token=claim.token + token_us, moved_ms=claim.moved_ms + deadline_ms)
        fields = self.redis.get(self.name(key)).split("|")
        fields[3] = str(int(fields[3]) + token_us)
        fields[4] = str(int(fields[4]) + deadline_ms)
        self.redis.set(self.name(key), "|".join(fields), keepttl=True)

    # --------------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def what_is_stored_is_what_the_model_says(self):
        for key, found in zip(KEYS, self.claims.inspect(KEYS), strict=True):
            claim = self.model.get(key)
            if claim is None or found is None:
                assert (claim, found) == (None, None)
                continue
            assert (found.state, found.digest, found.owner) == ("done" if claim.done else "processing", claim.digest, claim.owner)
            if not claim.done:
                assert (found.claim_id, found.token, found.previous_owner, found.live) == (
                    claim.claim_id,
                    claim.token,
                    claim.previous,
                    claim.live,
                )

    @invariant()
    def at_most_one_believes_in_its_lease(self):
        for key, believers in self.believers.items():
            assert len(believers) <= 1, f"{key} is held by {believers}"

    def teardown(self):
        self.redis.delete(*(self.name(key) for key in KEYS))


@pytest.mark.timeout(3600 if THOROUGH else 300)
def test_histories_of_claims(claim_server, bench: Bench):
    with Redis.from_url(claim_server.url(0)) as client:
        claims = claim_store(client, "machine")

        def fresh() -> Claims:
            claims.deployment = f"machine-{next(_numbers)}"
            claims._prefix = f"dedup:{{{claims.deployment}}}:"
            return Claims(claims, bench.redis)

        run_state_machine_as_test(fresh, settings=machine_settings(examples=60, steps=40))
