"""Listeners in this process, on real stores, for the tests of a delivery's way through them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.settings import Settings
from tests.support.pipelines import Plant, patient_plant


@pytest.fixture
def overrides() -> dict[str, Any]:
    """The plant's settings, where a test or a class of tests wants others."""
    return {}


@pytest.fixture
def plant(make_settings: Callable[..., Settings], overrides: dict[str, Any]) -> Iterator[Plant]:
    """A deployment whose failures are not tried again by themselves, unless ``overrides`` say so."""
    with patient_plant(make_settings, overrides) as made:
        yield made
