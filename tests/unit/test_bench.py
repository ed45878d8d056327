"""The benchmarks' arithmetic and their record; what they measure is no test's business."""

import json

import pytest

from app.events.parsing import EventParser
from app.events.policies import Policies
from app.settings import load_settings
from app.stack import placeholder_urls
from bench import benchmarks, report
from bench.load import FLIGHT, SYNTHETIC, Load, bodies, id_of
from bench.measures import medians, quantile, shown, with_spread
from bench.rig import BenchError

RUNS = [
    [{"way": "a", "n": 2, "rate": 10.0}, {"way": "b", "n": 2, "rate": 1.0}],
    [{"way": "a", "n": 2, "rate": 30.0}, {"way": "b", "n": 2, "rate": 2.0}],
]


def test_medians_are_taken_row_by_row_and_what_names_a_row_stays():
    assert medians(RUNS, by=("way",)) == [{"way": "a", "n": 2, "rate": 20.0}, {"way": "b", "n": 2, "rate": 1.5}]


def test_the_spread_is_that_of_the_same_row():
    spread = with_spread(medians(RUNS, by=("way",)), RUNS, by=("way",), of="rate")
    assert [row["spread"] for row in spread] == ["10 – 30", "1 – 2"]


@pytest.mark.parametrize(("part", "found"), [(0.5, 51.0), (0.99, 100.0), (1.0, 100.0), (0.0, 1.0)])
def test_quantiles(part, found):
    assert quantile([float(n) for n in range(1, 101)], part) == found


@pytest.mark.parametrize(
    ("value", "text"), [(12_345, "12,345"), (12_345.6, "12,346"), (12.34, "12.3"), (1.234, "1.23"), (None, "–"), (True, "yes"), ("x", "x")]
)
def test_figures_are_shown_with_the_digits_that_matter(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("load", "requests", "different"),
    [
        (Load(events=1_100, type=FLIGHT), 3, 1_100),
        (Load(events=20, start=336_770, type=SYNTHETIC, per_request=7), 3, 20),
        (Load(events=60, type=SYNTHETIC, per_request=2, times=3), 90, 60),
        (Load(events=10, type=SYNTHETIC, scattered=True), 1, 10),
        (Load(events=10, type=SYNTHETIC, payload_bytes=8_192), 1, 10),
    ],
)
def test_the_door_takes_what_a_load_sends(tmp_path, load, requests, different):
    settings = load_settings({}, folder=tmp_path, **placeholder_urls())
    parser = EventParser(Policies.load(None, settings), settings)

    sent = bodies(load)

    keys = {event.key for body in sent for event in parser.values(json.loads(body))}
    assert (len(sent), len(keys)) == (requests, different)
    if load.payload_bytes:
        assert {len(json.dumps(event, separators=(",", ":"))) for event in json.loads(sent[0])} == {load.payload_bytes}


def test_loads_of_different_names_share_no_event():
    assert id_of(Load(events=1, name="a"), 0) != id_of(Load(events=1, name="b"), 0)


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A document with places for all benchmarks, and one saved result."""
    document = tmp_path / "performance.md"
    places = "\n\n".join(f"<!-- bench:{name} -->\nold {name}\n<!-- /bench:{name} -->" for name in ("targets", *benchmarks.NAMES))
    document.write_text(f"# Performance\n\n{places}\n\nlast words\n")
    found = {
        "name": "payload", "title": "Payload", "about": "How.", "columns": {"kib": "KiB", "rate": "events/s"}, "runs": [[], []],
        "rows": [{"kib": 1, "rate": 1_234.5}, {"kib": 8, "rate": 900.0}],
        "targets": [{"text": "half", "found": "73 %", "met": True}],
        "charts": [{"kind": "lines", "x": "kib", "y": ["rate"], "label": "events/s", "title": "", "series": "", "log": "xy", "line": None, "line_label": "target", "rows": []}],
        "mode": "default", "command": "python -m bench payload", "at": "2026-11-23T15:00:00+00:00", "seconds": 12.3,
        "machine": {"system": "Linux 6", "processor": "a processor", "cores": 2, "memory_gib": 8.0, "load": 1.0},
        "versions": {"dedup": "0", "commit": "abc", "python": "3.11", "celery": "5.7"},
    }  # fmt: skip
    monkeypatch.setattr(report, "DOCUMENT", document)
    monkeypatch.setattr(report, "IMAGES", tmp_path)
    monkeypatch.setattr(report, "saved", lambda: {"payload": found})
    return document


def test_the_record_replaces_what_was_measured_and_keeps_the_rest(record):
    assert list(report.write_report())

    text = record.read_text()
    assert "| 1 | 1,234 |" in text or "| 1 | 1,235 |" in text
    assert "old payload" not in text
    assert "old targets" not in text
    assert "old throughput" in text
    assert text.endswith("last words\n")
    assert "| payload | half | 73 % | met |" in text
    assert "`python -m bench payload`: median of 2 runs, 23 November 2026, at commit abc, 12 s." in text
    picture = (record.parent / "bench-payload.svg").read_bytes()
    assert b"</svg>" in picture
    assert len(picture) < 60_000

    list(report.write_report())

    assert record.read_text() == text
    assert (record.parent / "bench-payload.svg").read_bytes() == picture


def test_a_document_without_a_place_is_left_as_it_is(record):
    record.write_text("# Performance\n")
    with pytest.raises(BenchError, match="no place for payload"):
        list(report.write_report())
    assert record.read_text() == "# Performance\n"


def test_every_benchmark_has_a_place_in_the_document():
    text = report.DOCUMENT.read_text()
    assert [
        name for name in ("targets", *benchmarks.NAMES) if f"<!-- bench:{name} -->" not in text or f"<!-- /bench:{name} -->" not in text
    ] == []
