"""The command line without servers: help, errors, exit codes, and its parts."""

import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import pytest

from app.cli import demo
from app.cli.edge import Interrupted, Signals, json_text, plain
from app.cli.main import exit_code
from app.cli.publish import Sending, _sum_up, batches
from app.cli.up import elsewhere
from app.cli.usage import summary
from app.feeds import BadLine
from app.naming import key_in
from app.publisher import Refused

COMMANDS = ("up", "demo", "publish", "status", "inspect", "audit", "servers", "servers start", "servers stop", "servers status")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Each test runs in a folder of its own, without any DEDUP_ variable."""
    for name in [name for name in os.environ if name.startswith("DEDUP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------- help, errors, exit codes


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_fits_sixty_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert exit_code([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Usage: dedup {command} [OPTIONS]")
    assert max(len(line) for line in said.splitlines()) <= 60
    assert "\x1b" not in said


@pytest.mark.parametrize("group", ["", "failures", "listeners", "servers"])
def test_no_summary_is_cut_off_in_mid_sentence_on_eighty_columns(group, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert exit_code([*group.split(), "--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert len(commands) >= 2
    assert not [line for line in commands if line.endswith("...") or not line.startswith("  ") or line.startswith("   ")]


@pytest.mark.parametrize(
    "limit, said",
    [
        (50, "Park events of a type, all of them; others go on."),
        (40, "Park events of a type, all of them"),
        (30, "Park events of a type"),
        (9, ""),
    ],
)
def test_a_summary_ends_with_a_clause(limit, said):
    assert summary("Park events of a type, all of\nthem; others go on. More.\n\nAnd more.", limit) == said


def test_a_heading_alone_is_no_summary():
    assert summary("Conflicts: let the first one stand, and refuse this one.", 40) == "Conflicts: let the first one stand"


@pytest.mark.parametrize(
    "command, usage",
    [("publish", "FILE"), ("inspect", "KEY"), ("failures retry", "[KEY]"), ("reprocess", "KEY..."), ("listeners forget", "NAME...")],
)
def test_usage_names_arguments_as_they_are(command, usage, capsys):
    assert exit_code([*command.split(), "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"Usage: dedup {command} [OPTIONS] {usage}"


@pytest.mark.parametrize("program", ["broadcaster", "broadcaster.bridge"])
@pytest.mark.parametrize("arguments, code", [(["--help"], 0), (["--port", "5000"], 2)])
def test_programs_without_arguments_pass_over_none(program, arguments, code, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    with pytest.raises(SystemExit) as ended:
        import_module(f"{program}.__main__").main()
    assert ended.value.code == code
    said = capsys.readouterr()
    if code:
        assert said.err == f"dedup: python -m {program} takes no arguments, and '--port' is one: see --help\n"
    else:
        assert said.out.startswith(f"Usage: python -m {program}\n")
        assert "DEDUP_" in said.out


def test_the_broadcaster_says_who_speaks_when_it_cannot_start():
    done = subprocess.run([sys.executable, "-m", "broadcaster"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dedup: no servers: ")


@pytest.mark.parametrize(
    "home, said", [(".dedup", ""), ("other", "DEDUP_HOME=other "), ("a b", "DEDUP_HOME='a b' "), ("/srv/x", "DEDUP_HOME=/srv/x ")]
)
def test_hints_for_another_home_name_it(home, said, tmp_path):
    assert elsewhere(tmp_path / home) == said


def test_hints_need_no_home_that_is_set_anyway(tmp_path, monkeypatch):
    monkeypatch.setenv("DEDUP_HOME", "other")
    assert elsewhere(tmp_path / "other") == ""
    assert elsewhere(tmp_path / ".dedup") == "DEDUP_HOME=.dedup "


def test_a_foreign_server_needs_the_name_of_its_event(capsys):
    assert exit_code(["bridge", "--from", "http://feed.example", "--key", "n"]) == 2
    assert "--from http://feed.example needs --event NAME" in " ".join(capsys.readouterr().err.split())


def test_version(capsys):
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dedup ")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["publish"], ["demo", "--events", "0"], ["up", "--listeners", "-1"], ["publish", "x.csv"], ["publish", "x.dat"],
     ["publish", "x.jsonl", "--type", "a"]],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2_and_says_what(arguments, capsys):
    assert exit_code(arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "Error: " in captured.err


@pytest.mark.parametrize("arguments", [["status"], ["audit"], ["inspect", "k"], ["status", "--json"]])
def test_without_servers_one_sentence_says_what_to_do(arguments, capsys):
    assert exit_code(arguments) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("dedup: no servers: start them with 'dedup up'")


@pytest.mark.parametrize("arguments", [["up"], ["status"], ["audit"]])
def test_half_a_set_of_urls_is_refused(arguments, capsys, monkeypatch):
    monkeypatch.setenv("DEDUP_MONGO_URL", "mongodb://127.0.0.1:1/dedup")
    assert exit_code(arguments) == 1
    assert "missing: set all three server URLs" in capsys.readouterr().err


def test_settings_are_checked_before_anything_starts(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DEDUP_LEASE_MS", "long")
    assert exit_code(["up"]) == 1
    assert "DEDUP_LEASE_MS must be a whole number" in capsys.readouterr().err
    assert not (tmp_path / ".dedup").exists()


def test_no_servers_to_stop_or_to_show(capsys):
    assert exit_code(["servers", "stop"]) == 0
    assert "no servers run" in capsys.readouterr().err
    assert exit_code(["servers", "status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["running"] is False


def test_publish_says_which_line_is_bad_before_it_sends_any(capsys, tmp_path):
    (tmp_path / "e.jsonl").write_text('{"type": "a"}\n{bad\n')
    assert exit_code(["publish", "e.jsonl", "--url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("dedup: line 2: not JSON")


def nobody() -> str:
    """A URL at which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def test_publish_with_no_broadcaster_says_so_once_and_what_to_do(capsys, tmp_path):
    (tmp_path / "e.jsonl").write_text('{"type": "a", "id": "1"}\n')
    url = nobody()
    assert exit_code(["publish", "e.jsonl", "--url", url, "--patience", "1"]) == 1
    waiting, end = capsys.readouterr().err.splitlines()
    assert waiting == f"waiting for {url}, for up to 1 s: nothing answers there"
    assert end.startswith(
        f"dedup: nothing answers at {url}: start a broadcaster with 'dedup up', or name one with --url or DEDUP_BROADCASTER_URL"
    )


def test_publish_refuses_a_token_that_no_header_holds(capsys, monkeypatch, tmp_path):
    (tmp_path / "e.jsonl").write_text('{"type": "a", "id": "1"}\n')
    monkeypatch.setenv("DEDUP_TOKEN", "gehéim")
    assert exit_code(["publish", "e.jsonl", "--url", nobody()]) == 1
    assert capsys.readouterr().err.startswith("dedup: the token must be printable ASCII")


@pytest.mark.parametrize("text", ['[{"type": "a", "id": "1"}]\n', '[\n{"type": "a"}\n]\n', "7\n"])
def test_publish_says_of_an_array_what_is_wanted(text, capsys, tmp_path):
    (tmp_path / "e.json").write_text(text)
    assert exit_code(["publish", "e.json", "--url", nobody()]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dedup: line 1: not ")
    assert said.endswith("; a file of JSON lines has one event, a JSON object, on each line\n")


def test_a_file_that_is_not_there(capsys):
    assert exit_code(["publish", "none.jsonl"]) == 1
    assert capsys.readouterr().err == "dedup: none.jsonl cannot be read: No such file or directory\n"


def test_a_reader_that_goes_away_is_no_error_of_ours():
    command = f"{sys.executable} -c 'from app.cli.main import run; run()' demo --help | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout == "U"
    assert not done.stderr


# ------------------------------------------------------------------------------------------------------------------ publish


class Door:
    """Takes events but those of ``bad``, as a broadcaster does: a request whole or not at all."""

    def __init__(self, bad: tuple[bytes, ...] = (), most: int = 500) -> None:
        self.bad = bad
        self.most = most
        self.taken: list[bytes] = []

    def send(self, events: list[bytes]) -> list[str]:
        if len(events) > self.most:
            raise Refused("too many", status=413)
        for index, event in enumerate(events):
            if event in self.bad:
                raise Refused("no good", status=422, index=index, field="type")
        self.taken += events
        return [event.decode() for event in events]


def lines(text: str) -> list[tuple[int, bytes]]:
    return [(number, letter.encode()) for number, letter in enumerate(text, 10)]


def test_batches_are_bounded_by_number_and_size():
    assert [len(group) for group in batches(lines("abcde"), 2)] == [2, 2, 1]
    large = [(n, b"x" * 3_000_000) for n in range(3)]
    assert [len(group) for group in batches(large, 500)] == [1, 1, 1]


def test_the_first_bad_line_ends_it_with_its_number():
    door = Door(bad=(b"c",))
    with pytest.raises(BadLine, match=r"^line 12: no good \(type\)$"):
        Sending(door, keep_going=False, note=print).send(lines("abcd"))  # type: ignore[arg-type]
    assert door.taken == []


def test_bad_lines_are_reported_and_the_others_sent():
    told: list[str] = []
    door = Door(bad=(b"a", b"c"))
    sending = Sending(door, keep_going=True, note=told.append)  # type: ignore[arg-type]
    sending.send(lines("abcd"))
    assert door.taken == [b"b", b"d"]
    assert told == ["line 10: no good (type)", "line 12: no good (type)"]
    assert (sending.sent, sending.bad) == (2, 2)


@pytest.mark.parametrize(
    "sent, bad, said", [(1, 1, "1 event accepted by U, 1 line refused"), (1_000, 2, "1,000 events accepted by U, 2 lines refused")]
)
def test_numbers_and_their_nouns_agree(sent, bad, said, capsys):
    sending = Sending(Door(), keep_going=True, note=print)  # type: ignore[arg-type]
    sending.sent, sending.bad = sent, bad
    _sum_up(sending, "U", as_json=False)
    assert capsys.readouterr().out == said + "\n"


def test_a_request_that_is_too_large_goes_in_smaller_ones():
    door = Door(most=2)
    sending = Sending(door, keep_going=False, note=print)  # type: ignore[arg-type]
    sending.send(lines("abcdefg"))
    assert door.taken == [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]
    assert sending.sent == 7


# ---------------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    "given, key",
    [
        ("id~s~1", "id~s~1"),
        ("id~s~1%2F2", "id~s~1%2F2"),
        ("id~s~1/listener-1", "id~s~1"),
        ("id~s~1%252F2+249/listener-1", "id~s~1%2F2"),
        ("type~t~=1/recovery~2", "type~t~=1"),
    ],
)
def test_a_task_id_out_of_flower_names_its_key(given, key):
    assert key_in(given) == key


def test_hostile_text_cannot_command_the_terminal():
    assert plain("a\x1b[2Jb\x9bc\nd\u202ee") == "a\\u001b[2Jb\\u009bc\nd\\u202ee"
    assert json.loads(json_text({"k\x7f": "\x1b\x9b\u2028é", "at": datetime(2013, 1, 1, tzinfo=UTC)})) == {
        "k\x7f": "\x1b\x9b\u2028é",
        "at": "2013-01-01T00:00:00.000+00:00",
    }
    assert plain(json_text("\x1b\x9b\x7f")) == json_text("\x1b\x9b\x7f")


def test_the_first_signal_interrupts_and_later_ones_only_hurry():
    hurried: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    with Signals().caught() as signals:
        signals.hurry = lambda: hurried.append(True)
        with pytest.raises(Interrupted) as raised:
            signal.raise_signal(signal.SIGTERM)
        assert raised.value.signum == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        assert hurried == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_that_has_begun_is_not_broken_off():
    hurried: list[bool] = []
    with Signals().caught() as signals:
        signals.hurry = lambda: hurried.append(True)
        signals.ending()
        signal.raise_signal(signal.SIGHUP)
    assert hurried == [True]


def test_the_demo_uses_the_key_rule_that_the_project_shows():
    shown = tomllib.loads(Path(__file__).parents[2].joinpath("policies.toml").read_text())
    assert tomllib.loads(demo.POLICIES.read_text())["types"]["flight.departed"]["key"] == shown["types"]["flight.departed"]["key"]


def test_nothing_of_the_environment_gets_into_the_demo(monkeypatch, tmp_path):
    monkeypatch.setenv("DEDUP_HANDLERS", "mine")
    monkeypatch.setenv("DEDUP_MONGO_URL", "mongodb://elsewhere/precious")
    settings = demo._settings(tmp_path, handler=False)
    assert settings.handlers == ()
    assert "elsewhere" not in settings.mongo_url
