"""Settings: where they come from, what they refuse, and the laws between them."""

import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from app.errors import SettingsError
from app.settings import LIMITS, PREFIX, Settings, database_of, load_settings, without_user

URLS = {
    "DEDUP_REDIS_URL": "redis://127.0.0.1:1/0",
    "DEDUP_BROKER_URL": "redis://127.0.0.1:1/1",
    "DEDUP_MONGO_URL": "mongodb://127.0.0.1:1/dedup?replicaSet=rs0",
}


def load(folder: Path, **env: str) -> Settings:
    return load_settings(URLS | env, folder=folder)


def test_defaults_hold_all_laws(tmp_path):
    settings = load(tmp_path)
    assert (settings.port, settings.flower_port, settings.lease_ms, settings.retention_s) == (4000, 5555, 10_000, 0)
    assert settings.loopback


def test_renewal_is_a_third_of_the_lease_and_a_claim_s_key_lives_far_longer(tmp_path):
    settings = load(tmp_path, DEDUP_LEASE_MS="9000")
    assert settings.renew_ms * 3 <= settings.lease_ms
    assert settings.claim_px_ms >= 60 * settings.lease_ms


def test_values_are_read_with_their_types(tmp_path):
    settings = load(tmp_path, DEDUP_PORT="0", DEDUP_MAX_HANDLER_S="2.5", DEDUP_HANDLERS=" a.b , c ,", DEDUP_HOST="0.0.0.0", DEDUP_TOKEN="x")
    assert (settings.port, settings.max_handler_s, settings.handlers, settings.host) == (0, 2.5, ("a.b", "c"), "0.0.0.0")
    assert not settings.loopback


def test_an_empty_variable_is_no_variable(tmp_path):
    assert load(tmp_path, DEDUP_PORT="").port == 4000


def test_overrides_win_over_the_environment(tmp_path):
    assert load_settings(URLS | {"DEDUP_PORT": "1"}, folder=tmp_path, port=2).port == 2


def test_the_environment_wins_over_the_env_file(tmp_path, monkeypatch):
    lines = [f"{name}={value}" for name, value in URLS.items()]
    (tmp_path / ".env").write_text("\n".join([*lines, "DEDUP_PORT=1", "DEDUP_LEASE_MS=5000"]))
    for name in URLS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEDUP_PORT", "2")

    settings = load_settings(folder=tmp_path)

    assert (settings.port, settings.lease_ms) == (2, 5000)


def test_the_policy_file_of_the_folder_is_found(tmp_path):
    assert load(tmp_path).policies is None
    (tmp_path / "policies.toml").touch()
    assert load(tmp_path).policies == tmp_path / "policies.toml"
    assert load(tmp_path, DEDUP_POLICIES="/other.toml").policies == Path("/other.toml")


@pytest.mark.parametrize("missing", URLS)
def test_half_a_set_of_urls_is_refused_and_the_rest_named(tmp_path, missing):
    with pytest.raises(SettingsError, match=f"{missing} is missing"):
        load_settings({name: value for name, value in URLS.items() if name != missing}, folder=tmp_path)


def test_without_servers_one_sentence_says_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match=r"no servers: start them with 'dedup up'.*or set DEDUP_REDIS_URL"):
        load_settings({}, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "many"), ("LEASE_MS", "1.5"), ("MAX_HANDLER_S", "long"), ("PORT", "4,000")], ids=lambda v: v
)
def test_a_malformed_number_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(SettingsError, match=f"{PREFIX}{name} must be a (whole )?number, not"):
        load(tmp_path, **{PREFIX + name: value})


@pytest.mark.parametrize(
    ("law", "env"),
    [
        ("lease_ms < visibility_timeout_s", {"DEDUP_LEASE_MS": "300000", "DEDUP_VISIBILITY_TIMEOUT_S": "300"}),
        ("max_handler_s < transaction_lifetime_s", {"DEDUP_MAX_HANDLER_S": "10"}),
        ("heartbeat_ms × 2 < listener_grace_s", {"DEDUP_HEARTBEAT_MS": "5000"}),
        ("listener_grace_s < listener_retire_s", {"DEDUP_LISTENER_RETIRE_S": "10"}),
    ],
)
def test_a_broken_law_names_itself(tmp_path, law, env):
    with pytest.raises(SettingsError, match=f"break the law {law}"):
        load(tmp_path, **env)


def test_every_number_has_limits():
    numbers = {spec.name for spec in fields(Settings) if spec.type in (int, float)}
    assert numbers == set(LIMITS)


@pytest.mark.parametrize("name", LIMITS)
def test_a_number_outside_its_limits_is_refused(tmp_path, name):
    low, high = LIMITS[name]
    for value, limit in ((low - 1, f"at least {low:g}"), (high + 1, f"at most {high:,}")):
        with pytest.raises(SettingsError, match=f"{PREFIX}{name.upper()} must be {re.escape(limit)}, not"):
            load(tmp_path, **{PREFIX + name.upper(): str(int(value))})


@pytest.mark.parametrize("name", ["max_handler_s", "client_events_per_s", "done_memory_fraction"])
def test_a_number_is_a_number(tmp_path, name):
    with pytest.raises(SettingsError, match=f"{PREFIX}{name.upper()} must be at least .* not nan"):
        load(tmp_path, **{PREFIX + name.upper(): "nan"})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REDIS_URL", "http://x", "must be a URL that begins with redis:// or rediss:// or unix://"),
        ("REDIS_URL", "redis://x:port/0", "has the port 'port'"),
        ("BROKER_URL", "127.0.0.1", "must be a URL that begins with amqp://"),
        ("MONGO_URL", "foo", "must be a URL that begins with mongodb://"),
        ("MONGO_URL", "mongodb://127.0.0.1:x/d", "has the port 'x'"),
        ("MONGO_URL", "mongodb://a:1,b:70000/d", "has the port '70000'"),
        ("TOKEN", "geheim…", "must be printable ASCII"),
        ("TOKEN", "two words", "must be printable ASCII"),
        ("FLOWER_AUTH", "nocolon", "must be a user and a password"),
    ],
)
def test_what_no_client_could_use_is_refused_at_once(tmp_path, name, value, says):
    with pytest.raises(SettingsError, match=f"{PREFIX}{name} {re.escape(says)}"):
        load(tmp_path, **{PREFIX + name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "rediss://user:pa:ss@redis.example:6380/1"),
        ("REDIS_URL", "unix:///run/redis.sock?db=1"),
        ("REDIS_URL", "redis://[::1]:6379/0"),
        ("BROKER_URL", "amqp://guest:guest@127.0.0.1:5672//"),
        ("BROKER_URL", "sqs://"),
        ("MONGO_URL", "mongodb+srv://user:p%40ss@cluster.example/dedup?w=majority"),
        ("MONGO_URL", "mongodb://a:1,b:2,[::1]:3/dedup?replicaSet=rs0"),
    ],
)
def test_urls_of_all_kinds_are_taken(tmp_path, name, value):
    assert getattr(load(tmp_path, **{PREFIX + name: value}), name.lower()) == value


@pytest.mark.parametrize("url", ["mongodb://127.0.0.1:1", "mongodb://127.0.0.1:1/", "mongodb://127.0.0.1:1/?replicaSet=rs0"])
def test_a_mongo_url_without_a_database_is_refused(tmp_path, url):
    with pytest.raises(SettingsError, match="must name the database"):
        load(tmp_path, DEDUP_MONGO_URL=url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:pa:ss@h:1/0?x=a@b", "redis://h:1/0?x=a@b"),
        ("mongodb://u:p%40ss@a:1,b:2,[::1]:3/d?authSource=admin", "mongodb://a:1,b:2,[::1]:3/d?authSource=admin"),
        ("ws://h/socket.io/?EIO=4", "ws://h/socket.io/?EIO=4"),
        ("redis://:pa/ss@h/0", "redis://h/0"),
    ],
)
def test_a_url_without_its_user(url, shown):
    assert without_user(url) == shown


def test_database_of():
    assert database_of("mongodb://a:1,b:2/orders?replicaSet=rs0") == "orders"


def test_secrets_are_not_shown(tmp_path):
    shown = repr(load(tmp_path, DEDUP_TOKEN="hidden-1", DEDUP_FLOWER_AUTH="user:hidden-2"))
    assert "hidden" not in shown


def test_settings_do_not_change(tmp_path):
    with pytest.raises(FrozenInstanceError):
        load(tmp_path).port = 1  # type: ignore[misc]


def test_bridges_find_broadcasters(tmp_path):
    assert load(tmp_path).bridge_sources == ("http://127.0.0.1:4000",)
    assert load(tmp_path, DEDUP_BROADCASTER_URL="http://a:1, http://b:2").bridge_sources == ("http://a:1", "http://b:2")


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("10.0.0.1", False)])
def test_loopback(tmp_path, host, loopback):
    assert load_settings(URLS, folder=tmp_path, host=host).loopback is loopback


def test_every_field_has_a_variable_of_its_name(tmp_path):
    """A field whose type the reader does not know would be read as text."""
    for spec in fields(Settings):
        assert spec.type in {int, float, str, Path, Path | None, tuple[str, ...]}, spec.name
