"""Atomic writes: whole or not at all."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from metanet_zoo.atomic import atomic_path, write_json_atomic


def test_file_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "result.bin"
    with atomic_path(target) as path:
        path.write_bytes(b"abc")
        assert not target.exists()
        assert path.parent == tmp_path
        assert path.name.startswith(".")
        assert path.suffix == ".tmp"
    assert target.read_bytes() == b"abc"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_exception_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "result.bin"
    target.write_bytes(b"old")

    def write_half() -> None:
        with atomic_path(target) as path:
            path.write_bytes(b"half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_kill_leaves_no_result(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from metanet_zoo.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "result.safetensors"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(target)], check=False, env=environment)
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    assert left[0].name.endswith(".tmp")
    assert not list(tmp_path.glob("*.safetensors"))


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with atomic_path(tmp_path / "atomic"):
        pass
    assert stat.S_IMODE(os.stat(tmp_path / "atomic").st_mode) == stat.S_IMODE(os.stat(plain).st_mode)


def test_missing_folder_and_folder_as_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"), atomic_path(tmp_path / "absent" / "file"):
        pass
    with pytest.raises(IsADirectoryError, match="is a folder"), atomic_path(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_json(tmp_path: Path) -> None:
    target = tmp_path / "manifest.json"
    write_json_atomic(target, {"name": "größe", "sizes": [1, 2]})
    assert json.loads(target.read_text(encoding="utf-8")) == {"name": "größe", "sizes": [1, 2]}
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(target, {"loss": float("nan")})
    with pytest.raises(TypeError):
        write_json_atomic(target, {"path": target})
    assert list(tmp_path.iterdir()) == [target]
    assert json.loads(target.read_text(encoding="utf-8"))["sizes"] == [1, 2]
