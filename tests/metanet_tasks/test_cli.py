from __future__ import annotations

import subprocess
import sys
import time

import pytest

from metanet_tasks import cli
from metanet_tasks.cli import COMMANDS, Command, error_text, main

HEAVY = ("torch", "lightning", "numpy", "rich", "matplotlib", "jsonargparse")


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from metanet_tasks.cli import main; code = main(['--help']); "
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]; assert not heavy, heavy; sys.exit(code)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 5
    for name, command in COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert command.summary in done.stdout


@pytest.mark.parametrize("verb", [[name] for name in COMMANDS] + [["zoo", "fit-inrs"], ["zoo", "info"]])
def test_every_verb_explains_itself(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([*verb, "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: metanet {' '.join(verb)}" in shown
    assert len(verb) > 1 or "examples:" in shown


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("metanet 0.")
    assert main([]) == 0
    assert "usage: metanet" in capsys.readouterr().out
    assert main(["mend"]) == 2
    assert "no verb 'mend'" in capsys.readouterr().err


def failing(error: BaseException) -> Command:
    def run(arguments: object) -> int:
        raise error

    return Command(run, "fails")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "metanet: error: two lines"),
        (KeyError("no such name here"), "metanet: error: no such name here"),
        (KeyError("name"), "metanet: error: KeyError: name"),
        (FileNotFoundError(2, "No such file", "x.pt"), "metanet: error: [Errno 2] No such file: 'x.pt'"),
        (ImportError("needs the package datasets"), "metanet: error: needs the package datasets"),
    ],
)
def test_user_errors_are_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "inspect", failing(error))
    assert main(["inspect"]) == 2
    assert capsys.readouterr().err == line + "\n"
    assert main(["--traceback", "inspect"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_bugs_show_themselves_and_interrupts_do_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "inspect", failing(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        main(["inspect"])
    monkeypatch.setitem(cli.COMMANDS, "inspect", failing(KeyboardInterrupt()))
    assert main(["inspect"]) == 130
    assert capsys.readouterr().err == "metanet: interrupted\n"


def test_an_error_without_a_message_has_its_kind() -> None:
    assert error_text(ValueError()) == "ValueError"
