"""Webhooks: the policy file's tables, how a request becomes an event, and whose it is."""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from app.errors import InvalidEvent, PolicyError
from app.events.event import Event
from app.events.hooks import GITHUB, STANDARD, Hook, Signature
from app.events.parsing import EventParser
from app.events.policies import Policies
from app.events.policy_file import read_hooks, read_policies
from app.settings import Settings
from broadcaster.signatures import TOLERANCE_S, Verifier
from tests.support.hooks import GITHUB_HOOK

SETTINGS = Settings(redis_url="redis://x", broker_url="redis://x", mongo_url="mongodb://x/d", max_event_bytes=2_000)
PARSER = EventParser(Policies.load(None, SETTINGS), SETTINGS)
HEADERS = {"x-github-event": "push", "x-github-delivery": "72d3162e", "content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
BODY = {"repository": {"full_name": "octo/hello"}, "ref": "refs/heads/main"}


def hooks(tmp_path: Path, text: str) -> dict[str, Hook]:
    file = tmp_path / "policies.toml"
    file.write_text(text)
    read_policies(file, SETTINGS)  # every process checks the hooks, though only the broadcaster uses them
    return read_hooks(file)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        hooks(tmp_path, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- the file


def test_the_fields_of_a_hook(tmp_path: Path):
    found = hooks(tmp_path, GITHUB_HOOK)["github"]
    assert (found.signature, found.secret_env, found.data) == (GITHUB, ("GITHUB_SECRET",), "body")
    plain = hooks(tmp_path, "[hooks.plain]\ntype = \"'a'\"")["plain"]
    assert (plain.signature, plain.secret_env) == (None, ())
    table = (
        '[hooks.x]\ntype = "body.t"\nsecret_env = ["NEW", "OLD"]\nsignature = {header = "X-Sig", algorithm = "sha1", encoding = "base64"}'
    )
    assert hooks(tmp_path, table)["x"].signature == Signature(header="x-sig", algorithm="sha1", encoding="base64")
    assert hooks(tmp_path, table)["x"].secret_env == ("NEW", "OLD")
    assert read_hooks(None) == {}


@pytest.mark.parametrize(
    "text, words",
    [
        ("hooks = 5", "hooks must be a table"),
        ("[hooks]\ngithub = 5", "github must be a table"),
        ("[hooks.x]", "has no type"),
        ("[hooks.X]\ntype = 'body.t'", "lower-case"),
        ("[hooks.'a/b']\ntype = 'body.t'", "lower-case"),
        ("[hooks.x]\ntype = 'body.t'\nsecret = 'abc'", "secret is no field"),
        ("[hooks.x]\ntype = 5", "type must be a JMESPath"),
        ("[hooks.x]\ntype = ''", "type must be a JMESPath"),
        ("[hooks.x]\ntype = 'body.['", "type: 'body.['"),
        ("[hooks.x]\ntype = '`5`'", "constant"),
        ("[hooks.x]\ntype = 'body.t'\nid = ['body.a']", "id must be a JMESPath"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = 'github'", "no secret_env"),
        ("[hooks.x]\ntype = 'body.t'\nsecret_env = 'A'", "no signature"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = 'gitlab'\nsecret_env = 'A'", "signature must be"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = 5\nsecret_env = 'A'", "signature must be"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = {}\nsecret_env = 'A'", "needs the name of a header"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = {header = 'a b'}\nsecret_env = 'A'", "needs the name of a header"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = {header = 'a', algorithm = 'md5'}\nsecret_env = 'A'", "one of sha1"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = {header = 'a', encoding = ['hex']}\nsecret_env = 'A'", "one of hex"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = {header = 'a', prefix = 'é'}\nsecret_env = 'A'", "ASCII"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = {header = 'a', key = 'b'}\nsecret_env = 'A'", "key is no field of a signature"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = 'github'\nsecret_env = 'whsec_abc=='", "the secret itself stays out"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = 'github'\nsecret_env = []", "secret_env must be"),
        ("[hooks.x]\ntype = 'body.t'\nsignature = 'github'\nsecret_env = [5]", "secret_env must be"),
    ],
)
def test_what_cannot_hold_is_said(tmp_path: Path, text: str, words: str):
    assert words in refusal(tmp_path, text)
    assert "policies.toml: hooks" in refusal(tmp_path, text)


# ------------------------------------------------------------------------------------------------------------ the event


def read(hook: Hook, body: Any = BODY, headers: dict[str, str] = HEADERS, **more: Any) -> Event:
    (event,) = PARSER.webhook(hook, headers, body if isinstance(body, bytes) else json.dumps(body).encode(), **more)
    return event


def refused(hook: Hook, body: Any = BODY, headers: dict[str, str] = HEADERS) -> tuple[int, str | None]:
    with pytest.raises(InvalidEvent) as caught:
        read(hook, body, headers)
    return caught.value.status, caught.value.field


def test_a_request_of_github_becomes_an_event(tmp_path: Path):
    event = read(hooks(tmp_path, GITHUB_HOOK)["github"])
    assert (event.type, event.source, event.id, event.data) == ("github.push", "octo/hello", "72d3162e", BODY)
    assert event.key == "id~octo%2Fhello~72d3162e"


def test_the_example_in_the_documents_is_right(tmp_path: Path):
    document = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    shown = hooks(tmp_path, document.partition("```toml\n")[2].partition("```")[0])["github"]
    assert shown.secret_env == ("GITHUB_WEBHOOK_SECRET",)
    assert shown.signature == GITHUB
    push = read(shown)
    assert (push.type, push.source, push.id) == ("github.push", "octo/hello", "72d3162e")
    ping = read(shown, {"zen": "Design for failure."}, HEADERS | {"x-github-event": "ping"})
    assert (ping.type, ping.source) == ("github.ping", "github")


def test_expressions_over_headers_and_body():
    hook = Hook(name="shop", type="body.kind", id="body.number", time="headers.date", data='{n: body.number, agent: headers."user-agent"}')
    event = read(hook, {"kind": "paid", "number": 42}, {"date": "2020-01-01T00:00:00Z", "user-agent": "x"})
    assert (event.type, event.source, event.id, event.time) == ("paid", "shop", "42", "2020-01-01T00:00:00Z")
    assert event.data == {"n": 42, "agent": "x"}
    assert read(hook, {"kind": "paid", "number": "42"}, {}).time is None
    assert read(Hook(name="shop", type="'paid'", source="'eu'"), {}, {}, idempotency_key="k").key == "id~eu~k"


@pytest.mark.parametrize(
    "body, headers, status, field",
    [
        (b"", {}, 400, None),
        (b"{", {}, 400, None),
        (b"\xff", {}, 400, None),
        (b"kind=paid", FORM, 422, "Content-Type"),
        (b"payload=%7B%7D&payload=%7B%7D", FORM, 422, "Content-Type"),
        (b"payload=%7B%7D&x=1", FORM, 422, "Content-Type"),
        (b"payload", FORM, 422, "Content-Type"),
        (b'{"kind": "paid"}', FORM, 422, "Content-Type"),
        (b"payload=%ff", FORM, 422, "Content-Type"),
        (b"payload=\xff", FORM, 422, "Content-Type"),
        (b"&".join([b"payload=1"] * 1_000), FORM, 422, "Content-Type"),
        (b"payload=", FORM, 400, None),
        (b"payload=%7B", FORM, 400, None),
        (b"payload=%7B%22kind%22%3A%22paid%22%2C%22kind%22%3A%22lost%22%7D", FORM, 422, "body.kind"),
        (b"payload=%22" + b"%78" * 2_000 + b"%22", FORM, 413, None),
        (b"{}", {"content-type": "application/json; charset=latin1"}, 400, "Content-Type"),
        ({}, {}, 422, "type"),
        (5, {}, 422, "type"),
        ({"kind": 5, "number": 1}, {}, 422, "type"),
        ({"kind": "paid"}, {}, 422, "id"),
        ({"kind": "paid", "number": 1.5}, {}, 422, "id"),
        ({"kind": "paid", "number": {}}, {}, 422, "id"),
        ({"kind": "paid", "number": 1, "at": "yesterday"}, {}, 422, "time"),
        ({"kind": "paid", "number": 2**63}, {}, 422, "body.number"),
        (b'{"kind": "paid", "number": 1, "number": 2}', {}, 422, "body.number"),
        (b'{"kind": "paid", "number": 1, "x": NaN}', {}, 422, "body.x"),
        ({"kind": "paid", "number": 1, "x": "y" * 2_000}, {}, 413, None),
        (b'{"kind": "paid", "x": ' + b"[" * 100 + b"]" * 100 + b"}", {}, 422, None),
    ],
)
def test_what_is_no_event_is_refused(body: Any, headers: dict[str, str], status: int, field: str | None):
    found = refused(Hook(name="shop", type="body.kind", id="body.number", time="body.at"), body, headers)
    assert found[0] == status
    assert field is None or found[1] == field


def test_a_form_with_a_payload_is_the_event_of_its_json():
    hook = Hook(name="shop", type="'paid'", id="body.number")
    body = {"number": 1, "text": "a b+c&d=e;ü%"}
    for form in (urlencode({"payload": json.dumps(body)}), "payload=" + quote(json.dumps(body, ensure_ascii=False))):
        for media in ("application/x-www-form-urlencoded", "Application/X-WWW-Form-Urlencoded; charset=utf-8"):
            assert read(hook, form.encode(), {"content-type": media}) == read(hook, body, {})


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(max_size=5) | st.floats(), st.lists).map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_an_event_or_refused(body: bytes):
    hook = Hook(name="shop", type="'t'", id="join('~', [body.a, headers.b])", data="body.items[*].{x: y}")
    try:
        status = 202 if read(hook, body, {"b": "1"}).id else None
    except InvalidEvent as error:
        status = error.status
    assert status in (202, 400, 413, 422)


# -------------------------------------------------------------------------------------------------------- the signature

NOW = 1_700_000_000
SECRET = base64.b64encode(b"k" * 32).decode()


def verifier(signature: Signature, *secrets: str) -> Verifier:
    names = tuple(f"S{n}" for n in range(len(secrets)))
    hook = Hook(name="h", type="'t'", signature=signature, secret_env=names)
    return Verifier(hook, dict(zip(names, secrets, strict=True)), clock=lambda: NOW)


def passes(checks: Verifier, headers: dict[str, str], body: bytes = b"{}") -> bool:
    try:
        checks.check(headers, body)
    except HTTPException as error:
        refused = error
    else:
        return True
    assert refused.status_code == 401
    assert refused.headers
    return False


def test_github_s_own_example():
    """Source: https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries#testing-the-webhook-payload-validation"""
    mac = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    checks = verifier(GITHUB, "It's a Secret to Everybody")
    assert passes(checks, {"x-hub-signature-256": mac}, b"Hello, World!")
    assert passes(checks, {"x-hub-signature-256": mac.replace("757107ea", "757107EA")}, b"Hello, World!")
    for wrong in ("", mac[:-1], mac[:-1] + "8", mac[7:], "sha1=" + mac[7:], mac + " ", "é", mac + ", " + mac):
        assert passes(checks, {"x-hub-signature-256": wrong}, b"Hello, World!") is (wrong.strip() == mac)
    assert not passes(checks, {"x-hub-signature-256": mac}, b"Hello, World")
    assert not passes(checks, {}, b"Hello, World!")


def test_the_example_of_standard_webhooks():
    """Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md, and its libraries' tests"""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    sent_at = 1614265330
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": str(sent_at),
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    hook = Hook(name="h", type="'t'", signature=STANDARD, secret_env=("S",))

    def at(now: int) -> Verifier:
        return Verifier(hook, {"S": secret}, clock=lambda: now)

    assert passes(at(sent_at), headers, body)
    assert passes(at(sent_at + TOLERANCE_S), headers, body)
    assert passes(at(sent_at - TOLERANCE_S), headers, body)
    assert not passes(at(sent_at + TOLERANCE_S + 1), headers, body)
    assert not passes(at(sent_at - TOLERANCE_S - 1), headers, body)
    others = "v1,bm9ldHUjKzFob2VudXRob2VodWUzMjRvdWVvdW9ldQo= v1a,xyz " + headers["webhook-signature"]
    assert passes(at(sent_at), headers | {"webhook-signature": others}, body)
    for change in (
        {"webhook-id": "msg_other"},
        {"webhook-timestamp": str(sent_at + 1)},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": "9" * 5_000},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": ""},
        {"webhook-id": ""},
        {"webhook-signature": ""},
        {"webhook-signature": headers["webhook-signature"][3:]},
        {"webhook-signature": headers["webhook-signature"].replace("v1,", "v2,")},
    ):
        assert not passes(at(sent_at), headers | change, body)
    for name in headers:
        assert not passes(at(sent_at), {n: v for n, v in headers.items() if n != name}, body)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
@pytest.mark.parametrize("prefix", ["", "t="])
def test_a_plain_mac(algorithm, encoding, prefix):
    mac = hmac.new(b"secret", b"{}", getattr(hashlib, algorithm)).digest()
    text = prefix + (mac.hex() if encoding == "hex" else base64.b64encode(mac).decode())
    checks = verifier(Signature(header="x-sig", algorithm=algorithm, encoding=encoding, prefix=prefix), "secret")
    assert passes(checks, {"x-sig": text})
    assert not passes(checks, {"x-sig": text}, b"{} ")
    assert not passes(checks, {"x-sig": text[1:]})
    assert not passes(checks, {"x-other": text})


def test_one_secret_replaces_another():
    checks = verifier(GITHUB, "new", "old")
    for secret, right in (("new", True), ("old", True), ("older", False)):
        mac = hmac.new(secret.encode(), b"{}", hashlib.sha256).hexdigest()
        assert passes(checks, {"x-hub-signature-256": f"sha256={mac}"}) is right


@pytest.mark.parametrize("signature, secret, words", [(GITHUB, " ", "not set"), (STANDARD, "whsec_!", "base64"), (STANDARD, "é", "base64")])
def test_a_secret_that_cannot_be_one_is_said_at_start(signature, secret, words):
    with pytest.raises(PolicyError, match=words) as caught:
        verifier(signature, secret)
    assert secret.strip() not in str(caught.value) or not secret.strip()


@given(
    st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "x-hub-signature-256"]), st.text(max_size=30))
)
def test_nothing_made_up_passes(headers: dict[str, str]):
    latin = {name: value.encode("utf-8").decode("latin-1") for name, value in headers.items()}
    assert not passes(verifier(GITHUB, "secret"), latin)
    assert not passes(verifier(STANDARD, SECRET), latin)
