"""Fixtures for all packages."""

import os

# Two processes share two cores, here and in the processes that tests begin; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real checkpoints and data: `METANET_DATA`, else `../shared/data` beside the repository."""
    named = os.environ.get("METANET_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}: set METANET_DATA to a folder of checkpoints/, mnist/, …")
    return folder
