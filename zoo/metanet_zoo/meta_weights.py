"""Meta-weights of learned optimizers on the Hugging Face hub: one file of numbers and a model card."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from metanet.optim import MetaWeights, load_meta_weights
from metanet_zoo.errors import CheckpointError
from metanet_zoo.hub import parse_repo_id

FILE = "optimizer.safetensors"
"""Name of the file of meta-weights in a repository."""


def fetch_meta_weights(
    repo: str, *, cache_dir: Path | None = None, local_files_only: bool = False
) -> MetaWeights:
    """Return the meta-weights of a hub repository, for `metanet.optim.LearnedOptimizer.from_pretrained`.

    Args:
        repo: ``"org/name"`` or ``"org/name@revision"``.
        cache_dir: of the hub's client; its default if None.
        local_files_only: ask the cache alone.

    Raises:
        CheckpointError: no repository id, no such repository or file, not cached, not reached.
        ValueError: the file holds something else.
    """
    name, revision = _parsed(repo)
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            name, FILE, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
    except Exception as error:
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()[:40]])
        raise CheckpointError(
            f"{repo}: the hub did not give {FILE} ({reason}); check the name and the revision, log in with "
            "the hub's client if the repository is private, or pass the path of a local file"
        ) from error
    found = load_meta_weights(path)
    return MetaWeights(repo, found.rule, found.metas, found.card)


def push_to_hub(weights: MetaWeights, repo: str, *, private: bool = False) -> str:
    """Upload meta-weights with a model card; the repository is created if it does not exist.

    Args:
        weights: what to publish.
        repo: ``"org/name"``.
        private: of a repository that is created.

    Returns:
        The address of the commit.

    Raises:
        ValueError: no repository id, or one with a revision.
    """
    name, revision = _parsed(repo)
    if revision is not None:
        raise ValueError(f"{repo}: name the repository without a revision; one is made by the upload")
    from huggingface_hub import HfApi

    client = HfApi()
    client.create_repo(name, private=private, exist_ok=True)
    with TemporaryDirectory() as folder:
        weights.save(Path(folder) / FILE)
        (Path(folder) / "README.md").write_text(model_card(weights, name), encoding="utf-8")
        done = client.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"Meta-weights {weights.hash[:12]}"
        )
    return str(done)


def model_card(weights: MetaWeights, repo: str) -> str:
    """Return the text that stands beside meta-weights: how to use them and how they were made."""
    count = sum(meta.numel() for meta in weights.metas.values())
    rows = "\n".join(f"| {key} | {value} |" for key, value in weights.card.items())
    return f"""---
tags: [learned-optimizer, metanet]
---
# {repo.rpartition("/")[2]}

A learned optimizer: rule `{weights.rule.name}`, {count} meta-parameters,
SHA-256 `{weights.hash}`.

```python
from metanet.optim import LearnedOptimizer
from metanet_zoo.meta_weights import fetch_meta_weights

weights = fetch_meta_weights("{repo}")
optimizer = LearnedOptimizer.from_pretrained(weights, model, total_steps=10_000)
```

| made with | |
|---|---|
{rows}
"""


def _parsed(repo: str) -> tuple[str, str | None]:
    parsed = parse_repo_id(repo)
    if parsed is None:
        raise CheckpointError(
            f"expected a repository of the hub as 'org/name' or 'org/name@revision', found {repo!r}"
        )
    return parsed
