"""The HTTP doors against what schemathesis makes up out of ``/openapi.json``: right requests, wrong ones, and nonsense."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from app.embedded.servers import EmbeddedServers
from tests.support.broadcasters import broadcaster_process
from tests.support.servers import fresh_settings, remove_data

POLICIES = """
[hooks.open]
type = "body.type"
id = "body.id"
"""
EXAMPLES = 60
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def api(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The schema of a real broadcaster."""
    folder = tmp_path_factory.mktemp("schema")
    (folder / "policies.toml").write_text(POLICIES)
    chosen = fresh_settings(servers, folder, port=0)
    with broadcaster_process(chosen, folder) as (process, url):
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")
        assert process.alive
        assert "Traceback" not in process.log.read_text()
    remove_data(chosen)


ACCEPTABLE = {
    ("POST", "/events"): {202, 400, 409, 413, 422},
    ("POST", "/hooks/{name}"): {202, 400, 413, 422},
    ("GET", "/events"): {200, 422},
    ("GET", "/events/{key}"): {200, 404},
}


@pytest.mark.parametrize("method, path", ACCEPTABLE, ids=lambda part: part)
def test_every_answer_is_one_that_the_schema_names(api: Any, method: str, path: str) -> None:
    statuses: Counter[int] = Counter()

    @given(case=api[path][method].as_strategy())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    def run(case: Any) -> None:
        if path == "/hooks/{name}":
            case.path_parameters["name"] = "open"
        response = case.call()
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    run()
    print(method, path, dict(statuses))
    assert set(statuses) <= ACCEPTABLE[method, path]
    assert 202 in statuses or (method, path) != ("POST", "/events")


def test_the_schema_names_every_door(api: Any) -> None:
    named = {(method.upper(), path) for path, item in api.raw_schema["paths"].items() for method in item}
    assert set(ACCEPTABLE) <= named
