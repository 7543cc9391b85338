"""Repositories of the hub: from a cache laid out by hand, and from a local server with its protocol."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from metanet_zoo import CheckpointError, open_checkpoint
from metanet_zoo.hub import parse_repo_id
from metanet_zoo.merging.sources import open_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHT_MAP = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
SHARDED = {
    "config.json": b"{}",
    "README.md": b"# A model",
    "tf_model.h5": b"not wanted",
    "pytorch_model.bin": b"not wanted",
    "onnx/model.safetensors": b"not wanted",
    "model.safetensors.index.json": json.dumps({"weight_map": WEIGHT_MAP}).encode(),
    WEIGHT_MAP["a"]: save({"a": torch.ones(2)}),
    WEIGHT_MAP["b"]: save({"b": torch.zeros(3)}),
}
WANTED = {"config.json", "model.safetensors.index.json", *WEIGHT_MAP.values()}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with one sharded repository: a snapshot of links to blobs, as the client lays it."""
    folder = tmp_path / "models--org--name"
    snapshot = folder / "snapshots" / COMMIT
    for place in (snapshot, folder / "blobs", folder / "refs"):
        place.mkdir(parents=True)
    for name in sorted(WANTED):
        blob = hashlib.sha256(SHARDED[name]).hexdigest()
        (folder / "blobs" / blob).write_bytes(SHARDED[name])
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    (folder / "refs" / "main").write_text(COMMIT)
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["org/name", "org/name@main", f"org/name@{COMMIT}"])
@pytest.mark.parametrize("local_files_only", [True, None])
def test_cache(cache: Path, source: str, local_files_only: bool | None) -> None:
    checkpoint = open_checkpoint(source, cache_dir=cache, local_files_only=local_files_only)
    assert checkpoint.source == source
    assert torch.equal(checkpoint["a"], torch.ones(2))
    assert checkpoint.shape("b") == (3,)
    assert f"took {source} at commit {COMMIT} from the local cache (" in checkpoint.notes[0]
    assert {file.parent.name for file in checkpoint.files} == {COMMIT}


@pytest.mark.usefixtures("offline")
def test_revision_as_argument(cache: Path) -> None:
    assert open_checkpoint("org/name", revision=COMMIT, cache_dir=cache).source == f"org/name@{COMMIT}"
    assert open_checkpoint("org/name@main", revision="main", cache_dir=cache).source == "org/name@main"
    with pytest.raises(CheckpointError, match="names revision 'main', but revision='v2' was given"):
        open_checkpoint("org/name@main", revision="v2", cache_dir=cache)


@pytest.mark.usefixtures("offline")
def test_what_the_cache_lacks(cache: Path) -> None:
    for source in ("org/other", "org/name@v2"):
        for local_files_only in (True, None):
            with pytest.raises(
                CheckpointError, match=f"{source}: not in the local cache.*connect and open it once"
            ):
                open_checkpoint(source, cache_dir=cache, local_files_only=local_files_only)
    with pytest.raises(CheckpointError, match=r"org/name: the hub did not give it \(OfflineModeIsEnabled"):
        open_checkpoint("org/name", cache_dir=cache, local_files_only=False)
    (cache / "models--org--name" / "snapshots" / COMMIT / WEIGHT_MAP["b"]).unlink()
    with pytest.raises(CheckpointError, match="1 of 2 files that the index names are missing: model-00002"):
        open_checkpoint("org/name", cache_dir=cache)


class Hub(ThreadingHTTPServer):
    """The part of the hub's protocol that the client needs: the model's listing and its files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files: dict[str, bytes] = {}
        self.served: list[str] = []
        self.status = 200


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        status, headers, content = self.server.status, {"X-Repo-Commit": COMMIT}, b""
        if status != 200:
            pass
        elif path in ("/api/models/org/name", "/api/models/org/name/revision/main"):
            siblings = [{"rfilename": name} for name in self.server.files]
            content = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith("/api/models/org/name/revision/"):
            status, headers = 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"}
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
            content = self.server.files[name]
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            self.server.served += [name] if body else []
        else:
            status, headers = 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no such repository"}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()


def test_download_takes_what_is_needed(hub: Hub, tmp_path: Path) -> None:
    hub.files = SHARDED
    checkpoint = open_checkpoint("org/name", cache_dir=tmp_path)
    assert set(hub.served) == WANTED
    assert torch.equal(checkpoint["a"], torch.ones(2))
    assert checkpoint.notes == (f"org/name is at commit {COMMIT}",)
    assert (checkpoint.files[0].parent / "config.json").is_file()
    open_checkpoint("org/name@main", cache_dir=tmp_path)
    assert len(hub.served) == len(WANTED), "the second time comes from the cache"


def test_falls_back_to_pickles_without_code(hub: Hub, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a")
    hub.files = {"pytorch_model.bin": (tmp_path / "a").read_bytes(), "training_args.bin": b"not wanted"}
    assert torch.equal(open_checkpoint("org/name", cache_dir=tmp_path)["a"], torch.ones(2))
    assert hub.served == ["pytorch_model.bin"]


def test_an_index_from_the_hub_cannot_reach_outside(hub: Hub, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "../../../../secret.safetensors"}}).encode()
    hub.files = {"model.safetensors.index.json": index}
    with pytest.raises(CheckpointError, match="outside the index's folder"):
        open_checkpoint("org/name", cache_dir=tmp_path)
    assert hub.served == ["model.safetensors.index.json"]


def test_no_checkpoint_in_the_repository(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"README.md": b"# Nothing here"}
    with pytest.raises(CheckpointError, match="org/name: found no checkpoint among 1 files"):
        open_checkpoint("org/name", cache_dir=tmp_path)
    assert hub.served == []


@pytest.mark.parametrize(
    ("source", "error"),
    [("org/absent", "RepositoryNotFoundError"), ("org/name@absent", "RevisionNotFoundError")],
)
def test_no_such_repository_or_revision(hub: Hub, cache: Path, source: str, error: str) -> None:
    with pytest.raises(CheckpointError, match=f"{source}: the hub did not give it .{error}: .*log in"):
        open_checkpoint(source, cache_dir=cache)


def test_a_hub_that_is_down_leaves_the_cache(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = 501
    checkpoint = open_checkpoint("org/name", cache_dir=cache)
    assert "from the local cache (the hub was not reached, HfHubHTTPError" in checkpoint.notes[0]
    with pytest.raises(CheckpointError, match=r"the hub did not give it \(HfHubHTTPError"):
        open_checkpoint("org/name", cache_dir=cache, local_files_only=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub was not reached, Connect" in open_checkpoint("org/name", cache_dir=cache).notes[0]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("org/name", ("org/name", None)),
        ("org/name-1.5_b@v1.0/rc", ("org/name-1.5_b", "v1.0/rc")),
        ("name", None),
        ("a/b/c", None),
        ("./a", None),
        ("../a", None),
        ("org/name@", None),
        ("org/na me", None),
    ],
)
def test_repo_ids(text: str, parsed: tuple[str, str | None] | None) -> None:
    assert parse_repo_id(text) == parsed


@pytest.mark.parametrize("name", ["models/a.safetensors", "models/a.pt", "models/a.bin"])
def test_files_that_are_missing_are_no_repositories(name: str) -> None:
    for opener in (open_checkpoint, open_model):
        with pytest.raises(CheckpointError, match=r"is neither an existing path .* nor a repository"):
            opener(name)


@pytest.mark.network
def test_the_real_hub(tmp_path: Path) -> None:
    info = huggingface_hub.HfApi().model_info("hf-internal-testing/tiny-random-bert")
    checkpoint = open_checkpoint(f"{info.id}@{info.sha}", cache_dir=tmp_path)
    assert any("embeddings.word_embeddings.weight" in name for name in checkpoint)
