"""Finished merges on the hub: the client of the hub against a local server that takes commits."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from metanet_tasks.cli import main
from metanet_zoo import CheckpointError, open_checkpoint, save_checkpoint
from metanet_zoo.merging.push import Push
from metanet_zoo.merging.run import merge_checkpoints

TOKEN = "hf_local"


class Hub(ThreadingHTTPServer):
    """The part of the hub's protocol by which a folder becomes a commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.created: list[dict[str, Any]] = []
        self.commits: list[dict[str, bytes]] = []
        self.tokens: set[str | None] = set()
        self.refused: str | None = None


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length is not None else self._chunks()
        self.server.tokens.add(self.headers.get("Authorization"))
        place = self.path.partition("?")[0]
        root = f"http://127.0.0.1:{self.server.server_port}"
        if self.server.refused is not None and self.server.refused in place:
            self._answer(403, {"error": "you may not write here"})
        elif place == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": f"{root}/org/name"})
        elif place == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif place == "/api/models/org/name/preupload/main":
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            self._answer(200, {"files": [{**f, "shouldIgnore": False, "oid": None} for f in files]})
        elif place == "/api/models/org/name/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.commits.append(
                {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
            )
            self._answer(200, {"commitUrl": f"{root}/org/name/commit/{'a' * 40}", "commitOid": "a" * 40})
        else:
            self._answer(404, {"error": f"nothing at {place}"})

    def do_GET(self) -> None:
        self._answer(404, {"error": "nothing is read from here"})

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for i, path in enumerate(paths):
        save_checkpoint(path, {"w": torch.full((3, 2), float(i))})
    return paths


def test_what_was_merged_is_pushed(
    hub: Hub, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["merge", *models, "-o", str(out), "--push", "org/name", "--private"]) == 0
    assert f"pushed: http://127.0.0.1:{hub.server_port}/org/name" in capsys.readouterr().out
    [created] = hub.created
    assert (created["organization"], created["name"]) == ("org", "name")
    assert created.get("private") is True or created.get("visibility") == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    [commit] = hub.commits
    assert commit == {file.name: file.read_bytes() for file in out.iterdir()}
    assert {"README.md", "merge_recipe.yml", "model.safetensors"} == set(commit)


def test_a_dry_run_lists_what_would_be_pushed(hub: Hub, models: list[str], tmp_path: Path) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": path} for path in models],
        "parameters": {"weight": 1.0},
    }
    report = merge_checkpoints(recipe, tmp_path / "out", push=Push("org/name", private=True), dry_run=True)
    assert "to org/name (private): README.md, merge_recipe.yml, model.safetensors" in report.notes[-1]
    assert "would push 3 files" in report.notes[-1]
    assert not hub.created
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("refused", ["create", "commit"])
def test_a_failed_push_leaves_the_merge_and_says_how_to_go_on(
    hub: Hub, models: list[str], tmp_path: Path, refused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refused = refused
    out = tmp_path / "out"
    assert main(["merge", *models, "-o", str(out), "--push", "org/name"]) == 2
    told = capsys.readouterr().err
    assert f"the merge is complete in {out}" in told
    assert f"hf upload org/name {out} ." in told
    assert TOKEN not in told
    assert not hub.commits
    torch.testing.assert_close(open_checkpoint(out)["w"], torch.full((3, 2), 0.5))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]


def test_nothing_is_merged_that_cannot_be_pushed(
    hub: Hub, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(repo: str, out: str, *, offline: bool = False) -> None:
        recipe = {"merge_method": "linear", "models": [{"model": path} for path in models]}
        merge_checkpoints(recipe, tmp_path / out, push=Push(repo), offline=offline)

    for repo in ("nonsense", "org/name@main"):
        with pytest.raises(ValueError, match="expected a repository org/name, without a revision"):
            push(repo, "out")
    with pytest.raises(ValueError, match="give a folder with -o"):
        push("org/name", "out.safetensors")
    with pytest.raises(ValueError, match="--offline was given, too"):
        push("org/name", "out", offline=True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(CheckpointError, match="hf auth login, or set HF_TOKEN"):
        push("org/name", "out")
    assert not (tmp_path / "out").exists()
    assert not hub.created
