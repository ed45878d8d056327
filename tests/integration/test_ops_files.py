"""Dashboard, alerts and runbook keep to what ``/metrics`` really says, and promtool keeps the alerts to what they promise."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.embedded.servers import EmbeddedServers
from tests.support.broadcasters import broadcaster_process
from tests.support.servers import fresh_settings, remove_data

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "ops" / "prometheus" / "alerts.yml"
ALERTS_TEST = ROOT / "ops" / "prometheus" / "alerts_test.yml"
DASHBOARD = json.loads((ROOT / "ops" / "grafana" / "dedup.json").read_text(encoding="utf-8"))
METRICS_DOC = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
RUNBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

_NAME = re.compile(r"\b(?:dedup|process)_[a-z_]+\b")
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


@pytest.fixture(scope="module")
def exported(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Families of a real broadcaster by name, with their types."""
    folder = tmp_path_factory.mktemp("metrics")
    settings = fresh_settings(servers, folder, port=0)
    with broadcaster_process(settings, folder) as (_, url):
        text = httpx.get(f"{url}/metrics", timeout=20).raise_for_status().text
    yield {family.name: family.type for family in text_string_to_metric_families(text)}
    remove_data(settings)


def names_of(exported: dict[str, str]) -> set[str]:
    """Everything that may be asked for."""
    return {family + suffix for family, kind in exported.items() for suffix in _SUFFIXES[kind]}


def rules() -> str:
    """The alerts without comments."""
    return "\n".join(line for line in ALERTS.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#"))


def alerts() -> list[str]:
    found = re.findall(r"- alert: (\w+)", rules())
    assert len(found) == len(set(found)) > 10
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Of the dashboard, with its variables filled in."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [
        expr.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$listener", ".*").replace("$type", ".*")
        for expr in found
    ]


# --------------------------------------------------------------------------------------------------------- against the code


def test_alerts_ask_for_metrics_that_there_are(exported):
    asked = set(_NAME.findall(rules()))
    assert len(asked) > 15
    assert asked <= names_of(exported)


def test_the_dashboard_asks_for_metrics_that_there_are(exported):
    asked = {name for text in [*expressions(), *(v["definition"] for v in DASHBOARD["templating"]["list"])] for name in _NAME.findall(text)}
    assert len(asked) > 20
    assert asked <= names_of(exported)


def test_every_metric_is_explained(exported):
    documented = set(_NAME.findall(METRICS_DOC))
    ours = {family + ("_total" if kind == "counter" else "") for family, kind in exported.items() if family.startswith("dedup_")}
    unexplained = {name for name in ours - documented if not name.startswith("dedup_inbox_limit_")}
    assert not unexplained
    assert {name for name in documented if not name.endswith("_")} <= ours, "a document names what there is not"


# ---------------------------------------------------------------------------------------------------------------- the runbook


def test_every_alert_has_its_section_in_the_runbook_and_the_other_way_round():
    sections = dict(re.findall(r"^### (Dedup\w+)\n\n(.*?)(?=^##)", RUNBOOK, re.MULTILINE | re.DOTALL))
    assert list(sections) == alerts()
    for name, text in sections.items():
        assert [word for word in ("**Means:**", "**Look:**", "**Do:**") if word not in text] == [], name
    assert re.findall(r"runbook: (\S+)", rules()) == [f"docs/operations.md#{name.lower()}" for name in alerts()]


def test_every_alert_is_tested():
    tested = set(re.findall(r"alertname: (\w+)", ALERTS_TEST.read_text(encoding="utf-8")))
    assert tested == set(alerts())


# --------------------------------------------------------------------------------------------------------------- the dashboard


def test_the_dashboard_can_be_imported():
    """What Grafana 10 wants of a dashboard that is shared: inputs for the data source, no id, panels with targets on a grid."""
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"]
    assert DASHBOARD["schemaVersion"] >= 36
    [source] = DASHBOARD["__inputs"]
    assert source["pluginId"] == "prometheus"
    uid = f"${{{source['name']}}}"
    assert {panel["datasource"]["uid"] for panel in panels()} == {uid}
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} == {uid}
    assert {panel["type"] for panel in panels()} <= {r["id"] for r in DASHBOARD["__requires"] if r["type"] == "panel"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["title"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])


def test_panels_do_not_cover_each_other():
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}

    for one, other in combinations(DASHBOARD["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])


def test_every_variable_of_the_dashboard_is_used_and_there():
    there = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = {name for panel in panels() for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
    assert used - {"__rate_interval"} == there


def test_numbers_of_the_deployment_are_never_added_up_over_broadcasters(exported):
    """Each broadcaster says the same of them: sum() goes only over what max by () has made one of."""
    own = ("dedup_door_", "dedup_socketio_", "dedup_accepted_")
    for expr in [*expressions(), *re.findall(r"expr: (?:>\n((?:\s{10}.*\n)+)|(.*))", rules())]:
        for text in [expr] if isinstance(expr, str) else expr:
            for inner in re.findall(r"sum (?:by \([^)]*\) )?\((.*)", text) + re.findall(r"sum\((.*)", text):
                first = _NAME.search(inner)
                if first and not first.group().startswith(own) and "by (instance)" not in text:
                    assert inner.lstrip().startswith("max by"), text


# ------------------------------------------------------------------------------------------------------------------ promtool


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not there (on Debian and Ubuntu: apt install prometheus)")
    return found


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_alerts(promtool):
    assert f"{len(alerts())} rules found" in run(promtool, "check", "rules", str(ALERTS))


def test_promtool_s_tests_of_the_alerts_pass(promtool):
    assert "SUCCESS" in run(promtool, "test", "rules", str(ALERTS_TEST))


def test_promtool_takes_what_the_dashboard_asks(promtool, tmp_path):
    made = {"groups": [{"name": "dashboard", "rules": [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(expressions())]}]}
    (tmp_path / "rules.yml").write_text(json.dumps(made))  # JSON is YAML
    assert f"{len(expressions())} rules found" in run(promtool, "check", "rules", str(tmp_path / "rules.yml"))
