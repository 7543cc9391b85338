"""A finished merge on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metanet_zoo.errors import CheckpointError
from metanet_zoo.hub import parse_repo_id


@dataclass(frozen=True, slots=True)
class Push:
    """Where a merge is to be uploaded.

    Args:
        repo: ``"org/name"``.
        private: whether a repository that is created is private; one that exists stays as it is.
    """

    repo: str
    private: bool = False

    def __str__(self) -> str:
        return f"{self.repo} (private)" if self.private else self.repo


def check_push(push: Push, target: Path, *, offline: bool) -> None:
    """Find before any work what would keep an output from being uploaded.

    Raises:
        ValueError: no repository, one with a revision, an output that is no folder, or ``offline``.
        CheckpointError: the hub's client knows no token.
    """
    parsed = parse_repo_id(push.repo)
    if parsed is None or parsed[1] is not None:
        raise ValueError(f"--push {push.repo}: expected a repository org/name, without a revision")
    if target.suffix == ".safetensors":
        raise ValueError(
            f"--push {push.repo}: {target} is a single file; give a folder with -o, which is pushed"
        )
    if offline:
        raise ValueError(f"--push {push.repo}: --offline was given, too; leave one of them out")
    from huggingface_hub import get_token

    if get_token() is None:
        raise CheckpointError(
            f"--push {push.repo}: no token of the hub was found; run hf auth login, or set HF_TOKEN"
        )


def push_folder(push: Push, folder: Path, message: str) -> str:
    """Upload a folder as one commit; the repository is made if it does not exist.

    The token is that of the hub's client: ``HF_TOKEN``, or the one it keeps.

    Args:
        push: where to.
        folder: a finished output.
        message: of the commit.

    Returns:
        the address of the commit.

    Raises:
        CheckpointError: the hub did not take it; the message says how to upload the folder again.
    """
    from huggingface_hub import HfApi

    client = HfApi()
    try:
        client.create_repo(push.repo, private=push.private or None, exist_ok=True)
        done = client.upload_folder(repo_id=push.repo, folder_path=folder, commit_message=message)
    except Exception as error:
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()[:40]])
        private = " --private" if push.private else ""
        raise CheckpointError(
            f"the merge is complete in {folder}, but the hub did not take it as {push.repo} ({reason}). "
            f"Upload it again with: hf upload {push.repo} {folder} .{private}"
        ) from error
    return str(done)
