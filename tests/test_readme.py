"""What the README says runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_fifteen_lines_run(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    run = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "seq.0: 32 sign phase(30)" in run.stdout


@pytest.mark.parametrize("verb", ["inspect", "zoo fit-inrs", "zoo info", "train", "classify", "demo"])
def test_verbs_explain_themselves(verb: str) -> None:
    assert f"metanet {verb}" in README
    call = [sys.executable, "-m", "metanet_tasks.cli", *verb.split(), "--help"]
    run = subprocess.run(call, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "usage" in run.stdout


def test_ci_calls_the_test_command_of_the_readme() -> None:
    command = "bash scripts/setup.sh && .venv/bin/python -m pytest"
    assert command in README
    assert command in (Path(__file__).parent.parent / ".ci" / "run").read_text(encoding="utf-8")
