"""Every method against mergekit, which runs in an environment of its own; see ``scripts/merge_parity.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = os.environ.get("METANET_MERGEKIT")


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="METANET_MERGEKIT names no interpreter that has mergekit 0.1.5")
def test_every_method_gives_what_mergekit_gives(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "scripts" / "merge_parity.py"
    done = subprocess.run(
        [sys.executable, str(script), "--mergekit", str(PYTHON), "--out", str(tmp_path / "parity.md")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
