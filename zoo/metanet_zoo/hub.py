"""Checkpoints from a Hugging Face repository, through its client and its local cache."""

import re
from pathlib import Path

from metanet_zoo.errors import CheckpointError
from metanet_zoo.layout import INDEX_SUFFIX, TORCH_SUFFIXES, choose_file, read_index

REPO_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[^@\s]+))?")


def parse_repo_id(text: str) -> tuple[str, str | None] | None:
    """Split `"org/name@revision"` into repository and revision.

    Example:
        >>> parse_repo_id("org/name@v1.0")
        ('org/name', 'v1.0')
        >>> parse_repo_id("org/name")
        ('org/name', None)
        >>> parse_repo_id("./folder/file") is None
        True
    """
    match = REPO_ID.fullmatch(text)
    return (match["repo"], match["revision"]) if match else None


def repository_of(text: str, revision: str | None) -> tuple[str, str | None]:
    """Return the repository and revision that a text means which is no existing path.

    Raises:
        CheckpointError: it means none, or looks like a file; or it names another revision than is given.
    """
    parsed = parse_repo_id(text)
    if parsed is None or text.endswith((".safetensors", INDEX_SUFFIX, *TORCH_SUFFIXES)):
        raise CheckpointError(
            f"{text!r} is neither an existing path (looked in {Path.cwd()}) nor a repository 'org/name' or "
            "'org/name@revision'; check the spelling"
        )
    repo, named = parsed
    if named is not None and revision is not None and named != revision:
        raise CheckpointError(
            f"{text!r} names revision {named!r}, but revision={revision!r} was given; give one"
        )
    return repo, named if revision is None else revision


def fetch(
    repo: str, revision: str | None, cache_dir: Path | None, local_files_only: bool | None
) -> tuple[Path, tuple[str, ...]]:
    """Bring a repository's weights, their index and its `config.json` into the local cache.

    Args:
        repo: `"org/name"`.
        revision: branch, tag or commit; the main branch if None.
        cache_dir: the client's cache; its default (`HF_HOME`, `HF_HUB_CACHE`) if None.
        local_files_only: True asks the cache alone, False the hub, None the hub and then, if it cannot
            be reached, the cache.

    Returns:
        path of the file to open in the cached snapshot, and notes (the commit; that the hub was not
        reached).

    Raises:
        CheckpointError: no such repository or revision, no checkpoint in it, not cached, not reached.
    """
    origin = repo if revision is None else f"{repo}@{revision}"
    if local_files_only:
        return _from_cache(repo, revision, cache_dir, origin, "asked for local files only")
    try:
        return _from_hub(repo, revision, cache_dir, origin)
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()[:40]])
        if local_files_only is None and _unreachable(error):
            return _from_cache(repo, revision, cache_dir, origin, f"the hub was not reached, {reason}")
        raise CheckpointError(
            f"{origin}: the hub did not give it ({reason}); check the name and the revision, log in with the "
            "hub's client if it is private or gated, or pass the path of a local file"
        ) from error


def _from_hub(
    repo: str, revision: str | None, cache_dir: Path | None, origin: str
) -> tuple[Path, tuple[str, ...]]:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(repo, revision=revision)
    names = {sibling.rfilename for sibling in info.siblings or ()}
    entry = choose_file([name for name in names if "/" not in name], origin)

    def download(name: str) -> Path:
        return Path(hf_hub_download(repo, name, revision=info.sha, cache_dir=cache_dir))

    path = download(entry)
    if entry.endswith(INDEX_SUFFIX):
        for name in sorted(set(read_index(path)[0].values())):
            download(name)
    if "config.json" in names:
        download("config.json")
    return path, (f"{origin} is at commit {info.sha}",)


def _from_cache(
    repo: str, revision: str | None, cache_dir: Path | None, origin: str, why: str
) -> tuple[Path, tuple[str, ...]]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # No pattern matches: only the snapshot's folder is wanted, complete or not.
        folder = Path(
            snapshot_download(
                repo, revision=revision, cache_dir=cache_dir, local_files_only=True, allow_patterns=[]
            )
        )
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{origin}: not in the local cache ({why}); connect and open it once, or pass a local file"
        ) from None
    names = [file.name for file in folder.iterdir() if file.is_file()]
    return folder / choose_file(names, f"{origin} in {folder}"), (
        f"took {origin} at commit {folder.name} from the local cache ({why})",
    )


def _unreachable(error: Exception) -> bool:
    """Tell a hub that cannot be reached from one that answers no."""
    # By name, since the client's releases raise those of requests, of httpx and of its successor.
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"ConnectionError", "TransportError", "Timeout", "TimeoutError", "LocalEntryNotFoundError"}:
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is not None and status >= 500
