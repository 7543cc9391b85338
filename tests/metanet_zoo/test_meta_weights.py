"""Meta-weights on the hub: uploaded to and fetched from a stand-in for its client."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError

from metanet.optim import LearnedOptimizer, MetaWeights, StructuredRule
from metanet_zoo import CheckpointError
from metanet_zoo.meta_weights import FILE, fetch_meta_weights, push_to_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that the client's calls write to and read from, by repository."""

    def create(self: object, repo: str, *, private: bool, exist_ok: bool) -> None:
        (tmp_path / repo).mkdir(parents=True, exist_ok=exist_ok)

    def upload(self: object, *, repo_id: str, folder_path: str, commit_message: str) -> str:
        shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
        return f"commit {commit_message}"

    def download(repo: str, name: str, *, revision: str | None, **options: Any) -> str:
        path = tmp_path / repo / name
        if not path.is_file() or revision not in {None, "main"}:
            raise EntryNotFoundError(f"no {name} in {repo} at {revision}")
        return str(path)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path


def made() -> MetaWeights:
    rule = StructuredRule()
    return MetaWeights("mine", rule, rule.unpack(torch.full((1, rule.size), 0.5)), {"meta_steps": 7})


def test_what_is_pushed_is_fetched(hub: Path) -> None:
    weights = made()
    assert weights.hash[:12] in push_to_hub(weights, "org/optimizer")
    found = fetch_meta_weights("org/optimizer@main")
    assert found.hash == weights.hash
    assert found.card == {"meta_steps": 7}
    card = (hub / "org/optimizer/README.md").read_text(encoding="utf-8")
    assert weights.hash in card
    assert "| meta_steps | 7 |" in card
    model = torch.nn.Linear(3, 2)
    optimizer = LearnedOptimizer.from_pretrained(found, model, total_steps=3)
    assert "org/optimizer@main" in optimizer.describe()


def test_what_is_not_there_is_said(hub: Path) -> None:
    push_to_hub(made(), "org/optimizer")
    with pytest.raises(CheckpointError, match=rf"org/optimizer@v2: the hub did not give {FILE}"):
        fetch_meta_weights("org/optimizer@v2")
    with pytest.raises(CheckpointError, match="found 'nonsense'"):
        fetch_meta_weights("nonsense")
    with pytest.raises(ValueError, match="without a revision"):
        push_to_hub(made(), "org/optimizer@main")
