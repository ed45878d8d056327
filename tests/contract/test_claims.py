"""The contract of the claim store: the design's table of claims row by row, on Valkey 9 and on Redis 7.0."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.claims.store import Answer, Held, new_claim_id
from app.embedded.ports import HOST, free_port
from app.embedded.valkey import ValkeyServer
from app.errors import RedisUnavailable
from app.events.digests import digest_of
from app.redis_client import connect
from app.settings import Settings
from tests.contract.conftest import DONE_TTL_MS, PX_MS, Bench, claim_store
from tests.support.servers import require_servers


def held(bench: Bench, owner: str, token: int, *, key: str = "k", digest: str = "d1", previous: str = "") -> Held:
    return Held(
        key=key, digest=digest, claim_id=bench.id_of(owner), token=token, lease_ms=bench.lease_ms, owner=owner, previous_owner=previous
    )


def test_the_servers_are_what_they_are_said_to_be(claim_server, request):
    with claim_server.client() as redis:
        info = redis.info("server")
    assert {"valkey-9": info.get("valkey_version", "").startswith("9."), "redis-7": info["redis_version"].startswith("7.")}[
        request.node.callspec.params["claim_server"]
    ]


class TestTheTableOfClaims:
    def test_none_is_won(self, bench):
        answer = bench.claim("listener-1", session="ab12")

        assert answer.outcome == "won"
        assert not answer.taken_over
        state, digest, claim_id, token, deadline, lease, owner, session, *_ = bench.fields()
        assert [state, digest, claim_id, token, lease, owner, session] == [
            "P",
            "d1",
            bench.id_of("listener-1"),
            str(answer.token),
            "60000",
            "listener-1",
            "ab12",
        ]
        seconds, micros = bench.redis.time()
        assert 0 < int(deadline) - (seconds * 1000 + micros // 1000) <= 60_000
        assert abs(answer.token - seconds * 1_000_000) < 10_000_000, "the token is the server's time in microseconds"

    def test_the_key_lives_far_longer_than_the_lease(self, bench):
        bench.claim("listener-1")

        assert bench.lease_ms < PX_MS - 5_000 < bench.pttl() <= PX_MS

    def test_processing_by_the_same_claim_id_is_won_again_unchanged(self, bench):
        first = bench.claim("listener-1")
        before = bench.stored()

        assert bench.claim("listener-1") == first
        assert bench.stored() == before

    def test_processing_with_a_running_lease_is_busy(self, bench):
        bench.claim("listener-1")
        before = bench.stored()

        assert bench.claim("listener-2") == Answer("busy", owner="listener-1")
        assert bench.stored() == before

    def test_another_claim_of_the_same_listener_is_busy_too(self, bench):
        bench.claim("listener-1")

        assert bench.claim("listener-1", claim_id=new_claim_id()).outcome == "busy"

    @pytest.mark.parametrize("ms_from_now", [-1, -3_000_000], ids=["just", "long-ago"])
    def test_processing_whose_lease_ran_out_is_taken_over(self, bench, ms_from_now):
        first = bench.claim("listener-1", session="ab12")
        bench.set_deadline(ms_from_now)

        second = bench.claim("listener-2", session="cd34")

        assert second.outcome == "won"
        assert second.taken_over
        assert (second.owner, second.session) == ("listener-1", "ab12")
        assert second.token > first.token
        found = bench.claims.inspect(["k"])[0]
        assert found is not None
        assert (found.owner, found.claim_id, found.previous_owner, found.live) == (
            "listener-2",
            bench.id_of("listener-2"),
            "listener-1",
            True,
        )

    def test_a_deadline_later_than_now_and_lease_means_that_the_clock_moved_and_is_taken_over(self, bench):
        bench.claim("listener-1")
        bench.set_deadline(bench.lease_ms + 5_000)

        assert bench.claim("listener-2").taken_over

    def test_a_deadline_within_now_and_lease_is_busy(self, bench):
        bench.claim("listener-1")
        bench.set_deadline(bench.lease_ms - 5_000)

        assert bench.claim("listener-2").outcome == "busy"

    def test_a_deadline_is_judged_by_the_lease_that_its_holder_asked_for(self, bench):
        bench.lease_ms = 600_000
        bench.claim("listener-1")
        bench.lease_ms = 1_000

        assert bench.claim("listener-2").outcome == "busy"

    def test_done_is_skipped_and_says_by_whom(self, bench):
        bench.claim("listener-1")
        bench.complete("listener-1")
        before = bench.stored()

        assert bench.claim("listener-2") == Answer("done", owner="listener-1")
        assert bench.claim("listener-1") == Answer("done", owner="listener-1"), "the holder's own repeated call too"
        assert bench.stored() == before

    def test_processing_with_another_digest_is_a_conflict(self, bench):
        bench.claim("listener-1", digest="d1")
        before = bench.stored()

        assert bench.claim("listener-2", digest="d2") == Answer("conflict", owner="listener-1", digest="d1")
        assert bench.stored() == before

    def test_run_out_with_another_digest_is_a_conflict_not_a_takeover(self, bench):
        bench.claim("listener-1", digest="d1")
        bench.set_deadline(-1)
        before = bench.stored()

        assert bench.claim("listener-2", digest="d2").outcome == "conflict"
        assert bench.stored() == before

    def test_the_same_claim_id_with_another_digest_is_a_conflict(self, bench):
        bench.claim("listener-1", digest="d1")

        assert bench.claim("listener-1", digest="d2").outcome == "conflict"

    def test_done_with_another_digest_is_a_conflict(self, bench):
        bench.claim("listener-1", digest="d1")
        bench.complete("listener-1", digest="d1")
        before = bench.stored()

        assert bench.claim("listener-2", digest="d2") == Answer("conflict", owner="listener-1", digest="d1")
        assert bench.stored() == before

    def test_one_call_answers_for_many_keys_in_their_order(self, bench):
        bench.claim("listener-2", "busy")
        bench.claim("listener-2", "done")
        bench.complete("listener-2", "done")
        bench.claim("listener-2", "other", "d9")
        bench.claim("listener-2", "late")
        bench.set_deadline(-1, "late")

        answers = bench.claims.claim(
            ["free", "busy", "late", "done", "other", "free too"],
            ["d1"] * 6,
            claim_id=bench.id_of("listener-1"),
            owner="listener-1",
            lease_ms=60_000,
        )

        assert [a.outcome for a in answers] == ["won", "busy", "won", "done", "conflict", "won"]
        assert [a.taken_over for a in answers] == [False, False, True, False, False, False]

    def test_each_key_keeps_its_own_session(self, bench):
        claim = {"digests": ["d1", "d1"], "lease_ms": 60_000}
        bench.claims.claim(["a", "b"], claim_id=bench.id_of("listener-1"), owner="listener-1", sessions=["aa", "bb"], **claim)
        bench.set_deadline(-1, "a")
        bench.set_deadline(-1, "b")

        answers = bench.claims.claim(["b", "a"], claim_id=bench.id_of("listener-2"), owner="listener-2", **claim)

        assert [a.session for a in answers] == ["bb", "aa"]

    def test_five_hundred_keys_go_in_one_call(self, bench):
        keys, digests = [f"key-{i}" for i in range(500)], [f"d{i}" for i in range(500)]
        claim_id = bench.id_of("listener-1")

        answers = bench.claims.claim(keys, digests, claim_id=claim_id, owner="listener-1", lease_ms=60_000)

        assert [a.outcome for a in answers] == ["won"] * 500
        claims = [held(bench, "listener-1", a.token, key=k, digest=d) for a, k, d in zip(answers, keys, digests, strict=True)]
        assert bench.claims.renew(claims) == [True] * 500
        assert bench.claims.complete(keys, digests, claim_id=claim_id, owner="listener-1") == 500
        assert [f and (f.state, f.digest) for f in bench.claims.inspect(keys)] == [("done", d) for d in digests]

    def test_keys_of_any_text_stay_apart(self, bench):
        keys = ["a", "a~b", "{x}", "%7E", "é", "ключ", "a|b", "*"]

        answers = [bench.claim("listener-1", key) for key in keys]

        assert {a.outcome for a in answers} == {"won"}
        assert {bench.claim("listener-2", key).outcome for key in keys} == {"busy"}

    def test_deployments_do_not_see_each_other(self, bench, claim_server):
        bench.claim("listener-1")
        with Redis.from_url(claim_server.url(0)) as client:
            other = claim_store(client, bench.claims.deployment + "x")

            assert other.claim(["k"], ["d2"], claim_id=new_claim_id(), owner="listener-2", lease_ms=60_000)[0].outcome == "won"


class TestTokens:
    def test_each_takeover_has_a_higher_token(self, bench):
        tokens = []
        for i in range(5):
            tokens.append(bench.claim(f"listener-{i}").token)
            bench.set_deadline(-1)

        assert tokens == sorted(set(tokens))

    def test_a_token_grows_even_when_the_server_s_clock_went_back(self, bench):
        token = bench.claim("listener-1").token
        ahead = token + 86_400_000_000
        bench.store(bench.stored().replace(f"|{token}|", f"|{ahead}|"))
        bench.set_deadline(-1)

        assert bench.claim("listener-2").token == ahead + 1

    def test_renewal_keeps_the_token(self, bench):
        token = bench.claim("listener-1").token

        bench.claims.renew([held(bench, "listener-1", token)])

        assert bench.fields()[3] == str(token)
        assert bench.claim("listener-1").token == token


class TestLostReplies:
    """A repeated call with the same arguments is answered, and leaves things, as the first."""

    def test_of_a_claim(self, bench):
        assert bench.claim("listener-1", session="ab12") == bench.claim("listener-1", session="ab12")

    def test_of_a_takeover_which_still_names_the_session_to_end(self, bench):
        bench.claim("listener-1", session="ab12")
        bench.set_deadline(-1)
        first = bench.claim("listener-2", session="cd34")

        assert first.taken_over
        assert bench.claim("listener-2", session="cd34") == first

    def test_of_a_takeover_from_nobody_known(self, bench):
        bench.store("a value of another program")
        first = bench.claim("listener-2")

        assert first.taken_over
        assert bench.claim("listener-2") == first

    def test_of_a_renewal(self, bench):
        claim = held(bench, "listener-1", bench.claim("listener-1").token)

        assert bench.claims.renew([claim]) == bench.claims.renew([claim]) == [True]

    def test_of_a_completion(self, bench):
        bench.claim("listener-1")
        bench.complete("listener-1")
        before = bench.stored()

        bench.complete("listener-1")

        assert bench.stored() == before

    def test_of_a_release_even_when_another_has_won_in_between(self, bench):
        bench.claim("listener-1")
        bench.claims.release(["k"], claim_id=bench.id_of("listener-1"))
        bench.claim("listener-2")
        before = bench.stored()

        assert bench.claims.release(["k"], claim_id=bench.id_of("listener-1")) == 0
        assert bench.stored() == before

    def test_of_forgetting_even_when_another_has_won_in_between(self, bench):
        bench.claim("listener-1")
        bench.complete("listener-1")
        assert bench.claims.forget_done(["k"], ["d1"]) == 1
        bench.claim("listener-2")
        before = bench.stored()

        assert bench.claims.forget_done(["k"], ["d1"]) == 0
        assert bench.stored() == before


class TestRenew:
    def test_starts_the_lease_anew(self, bench):
        answer = bench.claim("listener-1")
        bench.set_deadline(500)

        assert bench.claims.renew([held(bench, "listener-1", answer.token)]) == [True]

        seconds, micros = bench.redis.time()
        assert int(bench.fields()[4]) - (seconds * 1000 + micros // 1000) > bench.lease_ms - 5_000
        assert bench.pttl() > PX_MS - 5_000

    def test_holds_a_lease_that_ran_out_when_nobody_took_it(self, bench):
        answer = bench.claim("listener-1")
        bench.set_deadline(-5_000)

        assert bench.claims.renew([held(bench, "listener-1", answer.token)]) == [True]
        assert bench.claim("listener-2").outcome == "busy"

    def test_makes_a_forgotten_claim_again(self, bench):
        answer = bench.claim("listener-1", session="ab12")
        bench.redis.delete(bench.name())

        kept = held(bench, "listener-1", answer.token)
        assert bench.claims.renew([kept]) == [True]

        assert bench.claim("listener-2") == Answer("busy", owner="listener-1")
        assert bench.claim("listener-1").token == answer.token

    def test_a_claim_made_again_can_be_taken_over_like_any_other(self, bench):
        answer = bench.claim("listener-1")
        bench.redis.delete(bench.name())
        bench.claims.renew([msgspec.structs.replace(held(bench, "listener-1", answer.token), session="ab12")])
        bench.set_deadline(-1)

        second = bench.claim("listener-2")

        assert (second.owner, second.session, second.token > answer.token) == ("listener-1", "ab12", True)

    def test_loses_against_another_claim_id(self, bench):
        answer = bench.claim("listener-1")
        bench.set_deadline(-1)
        bench.claim("listener-2")
        before = bench.stored()

        assert bench.claims.renew([held(bench, "listener-1", answer.token)]) == [False]
        assert bench.stored() == before

    def test_loses_against_another_claim_id_of_the_same_listener(self, bench):
        answer = bench.claim("listener-1")
        bench.set_deadline(-1)
        bench.claim("listener-1", claim_id=new_claim_id())

        assert bench.claims.renew([held(bench, "listener-1", answer.token)]) == [False]

    def test_loses_against_done(self, bench):
        answer = bench.claim("listener-1")
        bench.complete("listener-1")
        before = bench.stored()

        assert bench.claims.renew([held(bench, "listener-1", answer.token)]) == [False]
        assert bench.stored() == before

    def test_answers_each_claim_by_itself(self, bench):
        mine = held(bench, "listener-1", bench.claim("listener-1", "a").token, key="a")
        forgotten = held(bench, "listener-1", 7, key="b")
        bench.claim("listener-2", "c")
        lost = held(bench, "listener-1", 7, key="c")

        assert bench.claims.renew([lost, mine, forgotten]) == [False, True, True]

    def test_of_nothing_asks_nobody(self, bench):
        assert bench.claims.renew([]) == []


class TestComplete:
    def test_marks_and_remembers_for_a_while(self, bench):
        bench.claim("listener-1")

        assert bench.complete("listener-1") == 1

        assert bench.stored() == "D|d1|listener-1"
        assert DONE_TTL_MS - 5_000 < bench.pttl() <= DONE_TTL_MS

    def test_of_a_forgotten_claim_marks_too(self, bench):
        assert bench.complete("listener-1") == 1
        assert bench.claim("listener-2").outcome == "done"

    def test_leaves_another_claim_id_s_claim_alone(self, bench):
        bench.claim("listener-1")
        bench.set_deadline(-1)
        bench.claim("listener-2")
        before = bench.stored()

        assert bench.complete("listener-1") == 0
        assert bench.stored() == before

    def test_leaves_what_is_done_alone(self, bench):
        bench.claim("listener-1", digest="d1")
        bench.complete("listener-1", digest="d1")

        assert bench.complete("listener-2", digest="d2") == 0
        assert bench.stored() == "D|d1|listener-1"

    def test_takes_each_key_by_itself(self, bench):
        bench.claim("listener-1", "a")
        bench.claim("listener-2", "b")

        done = bench.claims.complete(["a", "b", "c"], ["d1", "d1", "d1"], claim_id=bench.id_of("listener-1"), owner="listener-1")

        assert done == 2
        assert [f and f.state for f in bench.claims.inspect(["a", "b", "c"])] == ["done", "processing", "done"]

    def test_of_nothing_asks_nobody(self, away):
        assert away.complete([], [], claim_id="c", owner="listener-1") == 0
        assert away.release([], claim_id="c") == 0
        assert away.forget_done([], []) == 0
        assert away.forget_lapsed([], []) == 0
        assert away.inspect([]) == []
        assert away.renew([]) == []


ONE, OTHER = digest_of("t", 1), digest_of("t", 2)


class TestShortMarks:
    """What :mod:`app.events.digests` makes is marked in 17 bytes and the owner's name."""

    def test_hold_digest_and_owner(self, bench):
        bench.claim("listener-1", digest=ONE)
        bench.complete("listener-1", digest=ONE)

        assert len(bench.stored()) == 17 + len("listener-1")
        [found] = bench.claims.inspect(["k"])
        assert (found.state, found.digest, found.owner) == ("done", ONE, "listener-1")

    def test_skip_the_same_content_and_tell_any_other_apart(self, bench):
        """G6: no part of the digest is left out."""
        bench.complete("listener-1", digest=ONE)
        before = bench.stored()

        assert bench.claim("listener-2", digest=ONE) == Answer("done", owner="listener-1")
        for digest in (OTHER, "d1", "2" + ONE[1:], *_off_by_one(ONE)):
            assert bench.claim("listener-2", digest=digest) == Answer("conflict", owner="listener-1", digest=ONE), digest
        assert bench.stored() == before

    def test_of_many_keys_are_told_apart_key_by_key(self, bench):
        bench.complete("listener-1", "a", ONE)
        bench.complete("listener-2", "b", ONE)
        bench.complete("listener-2", "c", OTHER)
        bench.claim("listener-3", "d", ONE)
        bench.store(f"D|{ONE}|listener-9", "e")

        answers = bench.claims.claim([*"abcdef"], [ONE] * 6, claim_id=new_claim_id(), owner="listener-4", lease_ms=60_000)

        assert [(a.outcome, a.owner) for a in answers] == [
            ("done", "listener-1"),
            ("done", "listener-2"),
            ("conflict", "listener-2"),
            ("busy", "listener-3"),
            ("done", "listener-9"),
            ("won", ""),
        ]

    def test_take_less_memory_than_the_long_form(self, bench):
        bench.complete("listener-1", "id~nycflights13~run-100000-899999", ONE)
        bench.store(f"D|{ONE}|listener-1", "id~nycflights13~run-100000-899998")
        bench.redis.pexpire(bench.name("id~nycflights13~run-100000-899998"), DONE_TTL_MS)

        short, long = (bench.redis.memory_usage(bench.name(f"id~nycflights13~run-100000-89999{n}")) for n in "98")

        assert short < long

    def test_of_an_earlier_release_are_read_as_before(self, bench):
        bench.store(f"D|{ONE}|listener-1")

        assert bench.claim("listener-2", digest=ONE) == Answer("done", owner="listener-1")
        assert bench.claim("listener-2", digest=OTHER) == Answer("conflict", owner="listener-1", digest=ONE)
        assert bench.claims.forget_done(["k"], [OTHER]) == 0
        assert bench.claims.forget_done(["k"], [ONE]) == 1

    def test_are_forgotten_by_their_very_digest(self, bench):
        bench.complete("listener-1", digest=ONE)

        assert bench.claims.forget_done(["k"], [OTHER]) == 0
        assert bench.claims.forget_done(["k"], [ONE]) == 1
        assert bench.stored() is None

    def test_may_hold_any_byte(self, bench):
        """Digests with the bytes that end a text or part its fields: NUL, bar, line feed, and those that are no UTF-8."""
        for number in (0, ord("|"), ord("\n"), 0xFF):
            digest = "1" + urlsafe_b64encode(bytes([number] * 16))[:-2].decode()
            key = f"of-{number}"
            bench.complete("listener-1", key, digest)

            assert bench.claim("listener-2", key, digest) == Answer("done", owner="listener-1")
            assert bench.claim("listener-2", key, OTHER).digest == digest


def _off_by_one(digest: str) -> list[str]:
    """Digests that differ from this one in a single bit, wherever it stands."""
    hashed = int.from_bytes(urlsafe_b64decode(digest[1:] + "=="))
    return ["1" + urlsafe_b64encode((hashed ^ 1 << bit).to_bytes(16))[:-2].decode() for bit in range(128)]


class TestMemoryMark:
    @pytest.fixture
    def tight(self, bench, claim_server):
        """A store on a server that is above its memory mark."""
        used = bench.redis.info("memory")["used_memory"]
        before = bench.redis.config_get("maxmemory")["maxmemory"]
        bench.redis.config_set("maxmemory", int(used * 1.2))
        with Redis.from_url(claim_server.url(0)) as client:
            yield claim_store(client, bench.claims.deployment, memory_fraction=0.5)
        bench.redis.config_set("maxmemory", before)

    def test_above_it_a_finished_key_is_deleted_instead_of_marked(self, bench, tight):
        bench.claim("listener-1")

        assert tight.memory_is_short()
        assert tight.complete(["k"], ["d1"], claim_id=bench.id_of("listener-1"), owner="listener-1") == 1

        assert bench.stored() is None

    def test_above_it_others_claims_and_marks_stay(self, bench, tight):
        bench.claim("listener-2", "theirs")
        bench.store("D|d1|listener-1", "done")

        assert tight.complete(["theirs", "done"], ["d1", "d1"], claim_id=bench.id_of("listener-1"), owner="listener-1") == 0
        assert [f and f.state for f in bench.claims.inspect(["theirs", "done"])] == ["processing", "done"]

    def test_without_a_limit_memory_is_never_short(self, bench, claim_server):
        before = bench.redis.config_get("maxmemory")["maxmemory"]
        bench.redis.config_set("maxmemory", 0)
        with Redis.from_url(claim_server.url(0)) as client:
            short = claim_store(client, bench.claims.deployment, memory_fraction=0.0).memory_is_short()
        bench.redis.config_set("maxmemory", before)

        assert not short

    def test_a_full_server_is_an_outage_but_lets_go_of_what_is_finished(self, bench, claim_server):
        bench.claim("listener-1")
        before = bench.redis.config_get("maxmemory")["maxmemory"]
        bench.redis.config_set("maxmemory", 1)
        try:
            with Redis.from_url(claim_server.url(0)) as client:
                full = claim_store(client, bench.claims.deployment)
                with pytest.raises(RedisUnavailable):
                    full.claim(["other"], ["d1"], claim_id=new_claim_id(), owner="listener-2", lease_ms=60_000)
                assert full.complete(["k"], ["d1"], claim_id=bench.id_of("listener-1"), owner="listener-1") == 1
        finally:
            bench.redis.config_set("maxmemory", before)

        assert bench.stored() is None


class TestRelease:
    def test_gives_back_for_anybody_to_claim(self, bench):
        bench.claim("listener-1")

        assert bench.claims.release(["k"], claim_id=bench.id_of("listener-1")) == 1

        answer = bench.claim("listener-2")
        assert (answer.outcome, answer.taken_over) == ("won", False)

    def test_leaves_another_claim_id_s_claim_alone(self, bench):
        """G3: an old owner does not release its successor's claim."""
        bench.claim("listener-1")
        bench.set_deadline(-1)
        bench.claim("listener-2")
        before = bench.stored()

        assert bench.claims.release(["k"], claim_id=bench.id_of("listener-1")) == 0
        assert bench.stored() == before

    def test_leaves_done_alone(self, bench):
        bench.claim("listener-1")
        bench.complete("listener-1")

        assert bench.claims.release(["k"], claim_id=bench.id_of("listener-1")) == 0
        assert bench.claim("listener-2").outcome == "done"


class TestForgetDone:
    def test_deletes_the_very_mark(self, bench):
        bench.complete("listener-1", "a")
        bench.complete("listener-1", "b", "d2")
        bench.claim("listener-1", "c")

        assert bench.claims.forget_done(["a", "b", "c", "none"], ["d1"] * 4) == 1

        assert [f and f.state for f in bench.claims.inspect(["a", "b", "c", "none"])] == [None, "done", "processing", None]


class TestForgetLapsed:
    def test_deletes_claims_for_the_very_digest_whose_leases_are_over(self, bench):
        for key, digest, ms in (("late", "d1", -1), ("moved", "d1", bench.lease_ms + 5_000), ("other", "d2", -1)):
            bench.claim("listener-1", key, digest)
            bench.set_deadline(ms, key)
        bench.claim("listener-1", "running")
        bench.complete("listener-1", "done")
        bench.store("a value of another program", "foreign")
        keys = ["late", "moved", "other", "running", "done", "foreign", "none"]

        assert bench.claims.forget_lapsed(keys, ["d1"] * 7) == 2

        assert [key for key in keys if bench.stored(key) is None] == ["late", "moved", "none"]
        assert bench.claims.forget_lapsed(keys, ["d1"] * 7) == 0


class TestInspect:
    def test_tells_what_is_stored_and_changes_nothing(self, bench):
        token = bench.claim("listener-1", "running", session="ab12").token
        bench.claim("listener-1", "late")
        bench.set_deadline(-1, "late")
        bench.claim("listener-1", "moved")
        bench.set_deadline(bench.lease_ms + 5_000, "moved")
        bench.complete("listener-2", "done", "d7")
        before = [bench.stored(k) for k in ("running", "late", "moved", "done")]

        running, late, moved, done, none = bench.claims.inspect(["running", "late", "moved", "done", "none"])

        assert running is not None
        assert late is not None
        assert moved is not None
        assert done is not None
        assert none is None
        assert (running.state, running.live, running.owner, running.claim_id, running.token, running.digest) == (
            "processing",
            True,
            "listener-1",
            bench.id_of("listener-1"),
            token,
            "d1",
        )
        assert (late.state, late.live) == ("processing", False)
        assert (moved.state, moved.live) == ("processing", False)
        assert (done.state, done.owner, done.digest) == ("done", "listener-2", "d7")
        assert [bench.stored(k) for k in ("running", "late", "moved", "done")] == before


GARBAGE = {
    "empty": b"",
    "other program": b"lock:42",
    "not UTF-8": b"\xff\xfe\x00|\x80",
    "processing, cut": b"P|d1|someone",
    "processing, no numbers": b"P|d1|someone|x|y|z|listener-9|ab|c|d",
    "processing, owner not UTF-8": b"P|d1|someone|5|1|1|\xff\xfe|ab12|||",
    "processing, negative": b"P|d1|someone|-5|-1|-1|listener-9|ab12||",
    "done, cut": b"D|d1",
    "done, short, cut": b"d" + bytes(16),
    "unknown state": b"X|d1|listener-9",
}


class TestForeignValues:
    """What is none of ours is taken over, so that a key that somebody meddled with does not stop for ever."""

    @pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE.keys())
    def test_is_taken_over(self, bench, value):
        bench.store(value)

        answer = bench.claim("listener-1")

        assert answer.outcome == "won"
        assert answer.taken_over
        assert bench.claim("listener-2").outcome == "busy"
        assert bench.complete("listener-1") == 1

    @pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE.keys())
    def test_is_no_claim_to_whoever_looks(self, bench, value):
        bench.store(value)

        [found] = bench.claims.inspect(["k"])

        assert found is None or not found.live

    @pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE.keys())
    def test_is_nobody_s_to_renew_complete_release_or_forget(self, bench, value):
        bench.store(value)

        assert bench.claims.renew([held(bench, "listener-1", 7)]) == [False]
        assert bench.complete("listener-1") == 0
        assert bench.claims.release(["k"], claim_id=bench.id_of("listener-1")) == 0
        assert bench.claims.forget_done(["k"], ["d1"]) == 0
        forgotten = bench.claims.forget_lapsed(["k"], ["d1"])
        assert forgotten == (0 if bench.redis.exists(bench.name()) else 1)

    def test_a_value_of_another_kind_harms_only_its_own_key(self, bench):
        bench.redis.rpush(bench.name("b"), "x")
        claim_id = bench.id_of("listener-1")

        answers = bench.claims.claim(["a", "b", "c"], ["d1"] * 3, claim_id=claim_id, owner="listener-1", lease_ms=60_000)

        assert [a.outcome for a in answers] == ["won"] * 3
        assert bench.claims.complete(["a", "b", "c"], ["d1"] * 3, claim_id=claim_id, owner="listener-1") == 3

    def test_a_value_of_another_kind_stops_no_other_call(self, bench):
        token = bench.claim("listener-1", "a").token
        bench.redis.rpush(bench.name("b"), "x")
        claim_id = bench.id_of("listener-1")
        both = [held(bench, "listener-1", token, key="b"), held(bench, "listener-1", token, key="a")]

        assert bench.claims.renew(both) == [False, True]
        assert [f and f.owner for f in bench.claims.inspect(["b", "a"])] == [None, "listener-1"]
        assert bench.claims.forget_done(["b", "a"], ["d1", "d1"]) == 0
        assert bench.claims.release(["b", "a"], claim_id=claim_id) == 1


class TestScripts:
    def test_are_loaded_again_after_a_flush(self, bench):
        token = bench.claim("listener-1").token
        for call in (
            lambda: bench.claims.renew([held(bench, "listener-1", token)]),
            lambda: bench.claim("listener-2"),
            lambda: bench.complete("listener-1"),
            lambda: bench.claims.forget_done(["k"], ["d1"]),
            lambda: bench.claims.forget_lapsed(["k"], ["d1"]),
            lambda: bench.claims.release(["k"], claim_id="c"),
        ):
            bench.redis.script_flush()

            call()

    def test_each_call_is_one_round_trip(self, bench, claim_server):
        keys = [f"k{i}" for i in range(50)]
        claim_id = bench.id_of("listener-1")
        bench.claims.memory_is_short()

        def calls() -> int:
            stats = bench.redis.info("commandstats")
            return sum(c["calls"] for name, c in stats.items() if name in {"cmdstat_evalsha", "cmdstat_eval"})

        def claimed():
            return bench.claims.claim(keys, ["d1"] * 50, claim_id=claim_id, owner="listener-1", lease_ms=60_000)

        answers = claimed()  # loads the script
        before = calls()
        claimed()
        assert calls() - before == 1
        claims = [held(bench, "listener-1", a.token, key=k) for a, k in zip(answers, keys, strict=True)]
        bench.claims.renew(claims)
        before = calls()
        bench.claims.renew(claims)
        assert calls() - before == 1


@pytest.fixture
def away():
    """A store whose server is not there."""
    client = Redis(host=HOST, port=free_port(), socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0))
    yield claim_store(client, "away")
    client.close()


class TestAnAbsentServer:
    @pytest.mark.parametrize(
        "call",
        [
            lambda s: s.claim(["k"], ["d"], claim_id="c", owner="o", lease_ms=1),
            lambda s: s.renew([Held(key="k", digest="d", claim_id="c", token=1, lease_ms=1, owner="o")]),
            lambda s: s.complete(["k"], ["d"], claim_id="c", owner="o"),
            lambda s: s.release(["k"], claim_id="c"),
            lambda s: s.forget_done(["k"], ["d"]),
            lambda s: s.forget_lapsed(["k"], ["d"]),
            lambda s: s.inspect(["k"]),
            lambda s: s.memory_is_short(),
        ],
        ids=["claim", "renew", "complete", "release", "forget_done", "forget_lapsed", "inspect", "memory_is_short"],
    )
    def test_is_said_in_our_words(self, away, call):
        with pytest.raises(RedisUnavailable) as caught:
            call(away)

        assert caught.value.__cause__ is not None

    def test_a_server_that_comes_back_serves_again(self, tmp_path):
        require_servers()
        server = ValkeyServer(tmp_path / "valkey").start()
        client = connect(_settings(server.url(0)))
        store = claim_store(client, "back")
        try:
            assert store.claim(["k"], ["d1"], claim_id="c1", owner="listener-1", lease_ms=60_000)[0].outcome == "won"
            server.stop()
            with pytest.raises(RedisUnavailable):
                store.claim(["k"], ["d1"], claim_id="c2", owner="listener-2", lease_ms=60_000)
            server.start()

            assert store.claim(["k"], ["d1"], claim_id="c2", owner="listener-2", lease_ms=60_000)[0].outcome == "busy", "from its file"
        finally:
            client.close()
            server.kill()

    def test_a_server_that_hangs_is_away_within_its_time(self, tmp_path):
        require_servers()
        server = ValkeyServer(tmp_path / "valkey").start()
        client = connect(_settings(server.url(0), redis_timeout_ms=100))
        store = claim_store(client, "hung")
        try:
            store.claim(["k"], ["d1"], claim_id="c1", owner="listener-1", lease_ms=60_000)
            server.pause()
            with pytest.raises(RedisUnavailable):
                store.claim(["j"], ["d1"], claim_id="c1", owner="listener-1", lease_ms=60_000)
            server.resume()

            answers = store.claim(["j", "k"], ["d1", "d1"], claim_id="c1", owner="listener-1", lease_ms=60_000)
            assert [(a.outcome, a.taken_over) for a in answers] == [("won", False)] * 2
        finally:
            server.resume()
            client.close()
            server.kill()


def _settings(redis_url: str, **more: int) -> Settings:
    return Settings(redis_url=redis_url, broker_url=redis_url, mongo_url=f"mongodb://{HOST}/none", **more)
