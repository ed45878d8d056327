"""With a result backend, ``.get()`` tells what a listener did with its copy."""

import pytest
from pytest_celery import CeleryBackendCluster

from tests.celery.setup import DedupTestSetup
from tests.support.system import events
from workers.tally import counts, ending


@pytest.fixture
def celery_backend_cluster(results: CeleryBackendCluster) -> CeleryBackendCluster:
    """A result backend, which production has not."""
    return results


def test_the_result_of_a_task_is_the_line_that_flower_shows(celery_setup: DedupTestSetup):
    """G2: of the three copies of an event, one task returns that it won, two that they skipped, and who has it."""
    (key,) = celery_setup.accept(events(1))

    results = {
        worker.worker_name: celery_setup.result_of(key, worker.worker_name).get(timeout=20) for worker in celery_setup.worker_cluster
    }

    celery_setup.await_finished()
    celery_setup.audit()
    winner = celery_setup.ledger.find_one({"_id": key})["listener"]
    assert counts(results.pop(winner)) == {"won": 1, "skipped": 0, "failed": 0, "left": 0}
    assert all(ending(text) == "skipped" and winner in text for text in results.values())
