"""Fixtures for the tasks."""

from __future__ import annotations

import pytest

from metanet_tasks.training import quiet
from metanet_zoo.store import Zoo
from tests.metanet_tasks.tiny_zoo import write_zoo


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Sixty networks: two views of each of thirty images, in three classes."""
    quiet()
    return write_zoo(tmp_path_factory.mktemp("zoos") / "tiny.zoo", images=30, views=2)
