"""The stacked fitter: the same numbers as autograd and torch's Adam, and whatever happens, whole shards."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metanet_zoo.architectures import Siren
from metanet_zoo.fit.inr import fit_inrs, initial_generator
from metanet_zoo.fit.resumable import folder_lock
from metanet_zoo.fit.siren import ParameterLayout, SirenStack
from metanet_zoo.image_set import ImageSet, pixel_coordinates
from metanet_zoo.images import open_images
from metanet_zoo.manifest import UNFINISHED, Manifest, ZooError
from metanet_zoo.store import Zoo


def pictures(count: int = 7, channels: int = 1, size: int = 5) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    shape = (count, size, size + 1) if channels == 1 else (count, size, size + 1, channels)
    images = torch.rand(shape, generator=generator)
    return ImageSet(images, torch.arange(count) % 3, ("a", "b", "c"), tuple(f"p/{i}" for i in range(count)))


SMALL = Siren(hidden_features=6).config


def rows(zoo: Zoo) -> Tensor:
    return torch.cat([tensor.flatten(1) for tensor in zoo.load().values()], dim=1)


@pytest.mark.parametrize(
    "network",
    [
        Siren(),
        Siren(hidden_features=7, hidden_layers=1, convention="dws"),
        Siren(hidden_features=5, hidden_layers=3, out_features=3, omega=11.0),
    ],
    ids=["2-32-32-1", "dws, one hidden layer", "three hidden layers, colour"],
)
def test_a_step_is_that_of_autograd_and_adam(network: Siren) -> None:
    """In float64 the stack and one module after the other agree to rounding, along the whole trajectory."""
    steps, models = 8, 3
    coordinates = pixel_coordinates(5, 6).double()
    layout = ParameterLayout(network)
    targets = torch.rand(models, 30, layout.shapes[-1][0], dtype=torch.float64)
    stack = SirenStack(network, coordinates, models, steps=steps, learning_rate=1e-2)
    starts = [layout.draw(initial_generator(0, str(i), 0)).double() for i in range(models)]
    for i in range(models):
        stack.load(i, starts[i], targets[i])
    stack_errors = []
    for _ in range(steps + 1):
        stack.step()
        stack_errors.append(stack.errors.clone())
    assert stack.finished.all()
    for i in range(models):
        module = network.double()
        module.load_state_dict({name: value[0] for name, value in layout.split(starts[i][None]).items()})
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        for step in range(steps + 1):
            error = (module(coordinates) - targets[i]).square().mean()
            assert float(error.detach()) == pytest.approx(float(stack_errors[step][i]), rel=1e-9)
            if step < steps:
                optimizer.zero_grad()
                error.backward()
                optimizer.step()
        parameters, last_error, made = stack.unload(i)
        expected = torch.cat([p.detach().flatten() for p in module.parameters()])
        torch.testing.assert_close(parameters, expected, rtol=1e-9, atol=1e-9)
        assert made == steps
        assert last_error == pytest.approx(float(error.detach()), rel=1e-9)


def test_float32_is_near_float64() -> None:
    """NumPy's sine is used in float32 only: the first errors agree to float32's precision."""
    errors = []
    for dtype in (torch.float32, torch.float64):
        stack = SirenStack(Siren(), pixel_coordinates(9, 9).to(dtype), 2, steps=5, learning_rate=1e-3)
        for slot in range(2):
            start = stack.layout.draw(initial_generator(0, str(slot), 0)).to(dtype)
            stack.load(slot, start, torch.linspace(0, 1, 81, dtype=dtype)[:, None])
        for _ in range(5):
            stack.step()
        errors.append(stack.errors.double())
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-4, atol=0)


def test_networks_do_not_depend_on_stack_threads_or_order(tmp_path: Path) -> None:
    images = pictures(9)
    reference = None
    for stack, threads, shard_size in ((1, 1, 9), (4, 1, 2), (9, 1, 4), (3, 2, 2)):
        zoo = fit_inrs(
            images,
            tmp_path / f"{stack}-{threads}",
            architecture=SMALL,
            steps=60,
            target_psnr=12.0,
            learning_rate=1e-2,
            stack=stack,
            threads=threads,
            shard_size=shard_size,
        )
        found = (rows(zoo), zoo.column("steps"), zoo.column("psnr"))
        reference = reference or found
        for ours, theirs in zip(found, reference, strict=True):
            assert isinstance(ours, Tensor)
            assert isinstance(theirs, Tensor)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    made = Zoo.open(tmp_path / "1-1").column("steps")
    assert isinstance(made, Tensor)
    assert len(made.unique()) > 1  # slots were refilled at different steps


def test_each_network_stops_at_its_psnr(tmp_path: Path) -> None:
    """Recorded PSNR is that of the stored weights, the first to reach the target unless steps ran out."""
    images = open_images("digits", limit=12)
    zoo = fit_inrs(images, tmp_path / "zoo", target_psnr=30.0, steps=36)
    psnr, steps = zoo.column("psnr"), zoo.column("steps")
    assert isinstance(psnr, Tensor)
    assert isinstance(steps, Tensor)
    module, grid = zoo.build_module(), pixel_coordinates(8, 8)
    for i in range(len(zoo)):
        module.load_state_dict(zoo.state_dict(i))
        with torch.no_grad():
            error = float((module(grid) - images.signal(i)).square().mean())
        assert -10 * math.log10(error) == pytest.approx(float(psnr[i]), abs=0.01)
    stopped = steps < 36
    assert stopped.any()
    assert (~stopped).any()
    assert (psnr[stopped] >= 30).all()
    shorter = fit_inrs(images, tmp_path / "shorter", target_psnr=None, steps=int(steps.min()) - 1)
    made, reached = shorter.column("steps"), shorter.column("psnr")
    assert isinstance(made, Tensor)
    assert isinstance(reached, Tensor)
    assert (made == steps.min() - 1).all()
    assert (reached < 30).all()


def test_defaults_reach_36_db(tmp_path: Path, shared_data: Path) -> None:
    """On MNIST's sizes; the requirement is the median, here every network reaches it."""
    images = open_images(shared_data / "mnist", limit=8)
    psnr = fit_inrs(images, tmp_path / "zoo").column("psnr")
    assert isinstance(psnr, Tensor)
    assert float(psnr.min()) >= 36


def test_metadata_views_and_seeds(tmp_path: Path) -> None:
    images = pictures(3)
    zoo = fit_inrs(images, tmp_path / "zoo", architecture=SMALL, views=2, steps=2, seed=5)
    assert zoo.metadata.column("image").to_pylist() == [0, 0, 1, 1, 2, 2]
    assert zoo.metadata.column("view").to_pylist() == [0, 1] * 3
    assert zoo.column("image_id") == ["p/0", "p/0", "p/1", "p/1", "p/2", "p/2"]
    assert zoo.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert zoo.label_names == ("a", "b", "c")
    assert zoo.metadata.column("seed").to_pylist() == [5] * 6
    assert zoo.settings["views"] == 2
    assert len(rows(zoo).unique(dim=0)) == 6
    other = fit_inrs(images, tmp_path / "other", architecture=SMALL, views=2, steps=2, seed=6)
    assert not (rows(zoo) == rows(other)).all(dim=1).any()
    unlabelled = ImageSet(images.images, None, (), tuple(f"q/{i}" for i in range(3)))
    plain = fit_inrs(unlabelled, tmp_path / "plain", architecture=SMALL, steps=2, seed=5)
    assert "label" not in plain.manifest.columns
    assert not (rows(plain) == rows(zoo)[::2]).all(dim=1).any()  # another set, other initialisations


def test_colour_images_and_the_other_convention(tmp_path: Path) -> None:
    config = {**SMALL, "out_features": 3, "convention": "dws"}
    zoo = fit_inrs(
        pictures(4, channels=3), tmp_path / "zoo", architecture=config, steps=300, learning_rate=1e-2
    )
    assert zoo.architecture == config
    psnr = zoo.column("psnr")
    assert isinstance(psnr, Tensor)
    assert float(psnr.min()) > 15
    with pytest.raises(ValueError, match="2 coordinates to 1 channels; the images need 2 coordinates and 3"):
        fit_inrs(pictures(2, channels=3), tmp_path / "grey", architecture=SMALL)


FIT = """
import sys
from metanet_zoo import fit_inrs, open_images
if __name__ == "__main__":
    images = open_images("digits", limit=150)
    fit_inrs(images, sys.argv[1], shard_size=25, steps=300, target_psnr=None, threads=1)
"""


def shards_named(folder: Path) -> list[str]:
    manifest = folder / UNFINISHED
    return [shard.weights for shard in Manifest.read(manifest).shards] if manifest.is_file() else []


def test_a_killed_fit_continues_to_the_same_zoo(tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(FIT)
    killed = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, script, killed], env=environment)
    deadline = time.monotonic() + 120
    while not shards_named(killed) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "zoo.json").exists()
    whole = {name: (killed / name).stat().st_mtime_ns for name in shards_named(killed)}
    assert 0 < len(whole) < 6
    with pytest.raises(ZooError, match=r"unfinished zoo \(\d+ models are whole\)"):
        Zoo.open(killed)
    (killed / ".weights-00003.safetensors.0123456789ab.tmp").write_bytes(b"half")
    images = open_images("digits", limit=150)
    settings = {"shard_size": 25, "steps": 300, "target_psnr": None}
    with pytest.raises(ZooError, match=r"seed was 0, now 1; learning_rate was 0\.001, now 0\.002\."):
        fit_inrs(images, killed, seed=1, learning_rate=2e-3, **settings)  # type: ignore[arg-type]
    with pytest.raises(ZooError, match="unfinished zoo"):
        fit_inrs(images, killed, resume=False, **settings)  # type: ignore[arg-type]
    zoo = fit_inrs(images, killed, **settings)  # type: ignore[arg-type]
    assert zoo.verify().ok
    assert all((killed / name).stat().st_mtime_ns == at for name, at in whole.items())
    reference = fit_inrs(images, tmp_path / "reference", **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(rows(zoo), rows(reference), rtol=0, atol=0)


def test_a_damaged_shard_is_fitted_again(tmp_path: Path) -> None:
    images = pictures(8)
    zoo = fit_inrs(images, tmp_path / "zoo", architecture=SMALL, steps=3, shard_size=4)
    expected = rows(zoo)
    (zoo.path / "zoo.json").rename(zoo.path / "zoo.unfinished.json")
    (zoo.path / "weights-00001.safetensors").write_bytes(b"damaged")
    again = fit_inrs(images, tmp_path / "zoo", architecture=SMALL, steps=3, shard_size=4)
    torch.testing.assert_close(rows(again), expected, rtol=0, atol=0)
    assert again.verify().ok


def test_a_finished_zoo_is_returned_as_it_is(tmp_path: Path) -> None:
    images = pictures(4)
    zoo = fit_inrs(images, tmp_path / "zoo", architecture=SMALL, steps=3)
    before = (zoo.path / "weights-00000.safetensors").stat().st_mtime_ns
    again = fit_inrs(images, tmp_path / "zoo", architecture=SMALL, steps=3)
    assert (again.path / "weights-00000.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ZooError, match="begun with other settings: steps was 3, now 4"):
        fit_inrs(images, tmp_path / "zoo", architecture=SMALL, steps=4)
    with pytest.raises(ZooError, match="images_sha256 was"):
        fit_inrs(pictures(4, size=6), tmp_path / "zoo", architecture=SMALL, steps=3)


def test_a_full_disk_leaves_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, write_bytes = pictures(8), Path.write_bytes

    def write(self: Path, data: bytes) -> int:
        if "00001" not in self.name:
            return write_bytes(self, data)
        write_bytes(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        with pytest.raises(
            OSError, match=r"cannot write shard 1 of .*: the disk is full\. 1 of 4 shards"
        ) as raised:
            fit_inrs(images, tmp_path / "zoo", architecture=SMALL, steps=3, shard_size=2, threads=1, stack=1)
    assert raised.value.errno == errno.ENOSPC
    assert {file.name for file in (tmp_path / "zoo").iterdir()} == {
        "models-00000.parquet",
        "weights-00000.safetensors",
        "zoo.unfinished.json",
    }
    zoo = fit_inrs(images, tmp_path / "zoo", architecture=SMALL, steps=3, shard_size=2)
    assert len(zoo) == 8
    assert zoo.verify().ok


def test_two_fits_do_not_write_to_one_folder(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    with folder_lock(tmp_path / "zoo"), pytest.raises(ZooError, match="another process is writing"):
        fit_inrs(pictures(2), tmp_path / "zoo", architecture=SMALL, steps=1)


def test_threads_of_torch_are_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    fit_inrs(pictures(3), tmp_path / "zoo", architecture=SMALL, steps=2, threads=2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"views": 0}, "views must be at least 1, found 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"stack": 0}, "stack must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"target_psnr": math.inf}, "target_psnr must be finite"),
        ({"device": "abacus"}, "device 'abacus'"),
        ({"architecture": {"name": "siren", "in_features": 3}}, "maps 3 coordinates"),
    ],
)
def test_wrong_settings_leave_nothing(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_inrs(pictures(2), tmp_path / "zoo", **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_cuda_fits_like_the_cpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    images = open_images("digits", limit=64)
    found = []
    for device in ("cpu", "cuda"):
        psnr = fit_inrs(images, tmp_path / device, device=device, steps=200).column("psnr")
        assert isinstance(psnr, Tensor)
        found.append(psnr)
    assert float(found[1].min()) >= 36
    assert float(found[1].median()) == pytest.approx(float(found[0].median()), abs=0.5)
