"""Files that appear whole or not at all: write beside the target, flush to disk, rename."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a temporary path that becomes `target` when the block ends without an exception.

    The temporary file lies in the target's folder (a rename is atomic within one file system only), is
    hidden and ends in `.tmp`, so that what a killed process leaves is never taken for a result. When the
    block ends, the file and its folder are flushed to disk around the rename; when it raises,
    `KeyboardInterrupt` included, the file is removed and an older `target` stays as it was.

    Args:
        target: where the finished file is to appear; its folder must exist.

    Yields:
        the temporary path, an empty file to be opened and written by the caller.

    Raises:
        FileNotFoundError: the target's folder does not exist.
        IsADirectoryError: the target is a folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "greeting.txt") as path:
        ...     _ = path.write_text("hello")
        >>> [file.name for file in folder.iterdir()]
        ['greeting.txt']
    """
    final = Path(target)
    folder = final.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {final}: there is no folder {folder}; create it first")
    if final.is_dir():
        raise IsADirectoryError(f"cannot write {final}: it is a folder; give the name of a file")
    temporary = folder / f".{final.name[:200]}.{secrets.token_hex(6)}.tmp"
    # Mode 0o666 lets the umask decide, as it does for any other file; mkstemp would leave 0o600 behind.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _flush(folder, os.O_RDONLY)


def replace_folder(folder: Path, target: Path) -> None:
    """Rename a complete folder to its place; an older one there is removed once the new one stands.

    Args:
        folder: beside the target, flushed to disk.
        target: where it is to appear.

    Raises:
        OSError: the folder cannot be moved; an older target then lies where it was, or beside it.
    """
    old = None
    if target.exists():
        old = target.with_name(f".{target.name}.replaced")
        if old.exists():
            shutil.rmtree(old)
        os.replace(target, old)
    os.replace(folder, target)
    if old is not None:
        shutil.rmtree(old)


def write_json_atomic(target: str | os.PathLike[str], value: object) -> None:
    """Write `value` as indented JSON, whole or not at all.

    Args:
        target: where the file is to appear; its folder must exist.
        value: anything that `json.dumps` takes, except NaN and infinities, which JSON cannot say.

    Raises:
        TypeError: a part of `value` is no JSON.
        ValueError: `value` holds NaN or an infinity, or contains itself.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
