"""How long Hypothesis searches: short by default, long with ``DEDUP_HYPOTHESIS=thorough``, the same in every run of CI."""

import os

from hypothesis import HealthCheck, settings

from tests.support.ci import IN_CI

THOROUGH = os.environ.get("DEDUP_HYPOTHESIS") == "thorough"


def machine_settings(*, examples: int, steps: int) -> settings:
    """Settings of a state machine on real servers.

    Args:
        examples: how many histories by default; a thorough search takes thirty times as many.
        steps: the longest history.
    """
    return settings(
        max_examples=examples * 30 if THOROUGH else examples,
        stateful_step_count=steps * 2 if THOROUGH else steps,
        derandomize=IN_CI and not THOROUGH,
        database=None if IN_CI else settings.default.database,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
