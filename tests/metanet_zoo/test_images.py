"""Sources of images: IDX files, folders, the hub, the shipped digits."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metanet_zoo.image_set import ImageError, ImageSet, pixel_coordinates
from metanet_zoo.images import open_images


def write_idx(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    content = header + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([2, 0, 1, 1, 0], np.uint8))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", pixels[:2] + 100)
    return tmp_path


def write_image(path: Path, value: int = 0, mode: str = "L", size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)
    return path


def test_digits_ship_with_the_package() -> None:
    digits = open_images("digits")
    assert digits.images.shape == (1797, 8, 8)
    assert digits.labels is not None
    assert digits.labels.bincount().min() > 170
    assert digits.label_names == tuple("0123456789")
    assert float(digits.images.max()) == 1.0


def test_digits_equal_those_of_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.datasets").load_digits()
    digits = open_images("digits")
    assert digits.labels is not None
    assert np.array_equal(digits.images.numpy() * 16, reference.images)
    assert np.array_equal(digits.labels.numpy(), reference.target)


def test_idx_splits_labels_and_limit(idx_folder: Path) -> None:
    train = open_images(idx_folder, limit=3)
    assert train.images.tolist() == np.arange(36).reshape(3, 4, 3).tolist()
    assert train.labels is not None
    assert train.labels.tolist() == [2, 0, 1]
    assert train.label_names == ("0", "1", "2")
    test = open_images(idx_folder, split="test")
    assert test.labels is None
    assert int(test.images[0, 0, 0]) == 100
    assert set(test.ids).isdisjoint(train.ids)
    one_file = open_images(idx_folder / "train-images-idx3-ubyte.gz")
    assert len(one_file) == 5


def test_idx_mnist(shared_data: Path) -> None:
    images = open_images(shared_data / "mnist", split="test")
    assert images.images.shape == (10_000, 28, 28)
    assert images.labels is not None
    assert images.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\x08\x03" + bytes(12), "none of them 0"),
        (b"\x89PNG\r\n", "expected 00 00 08"),
        (b"\0\0\x08\x03\0\0\0\x05\0\0\0\x04\0\0\0\x03" + bytes(59), r"60 bytes, but holds 59"),
        (b"\0\0\x08\x03\0\0", "truncated or damaged"),
        (b"\0\0\x08\x01\0\0\0\x02ab", r"expected \[images, height, width\]"),
        (b"", "expected 00 00 08"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=words):
        open_images(path)


def test_truncated_gzip_is_refused(idx_folder: Path) -> None:
    path = idx_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ImageError, match=r"train-images-idx3-ubyte.gz cannot be read"):
        open_images(idx_folder)


def test_idx_labels_of_another_number_are_refused(idx_folder: Path) -> None:
    write_idx(idx_folder / "train-labels-idx1-ubyte", np.zeros(4, np.uint8))
    with pytest.raises(ImageError, match=r"labels of shape \[4\] for 5 images"):
        open_images(idx_folder)


def test_folder_of_classes(tmp_path: Path) -> None:
    for name, values in (("cat", (1, 2, 3, 4)), ("dog", (11, 12))):
        for value in values:
            write_image(tmp_path / name / f"{value:02d}.png", value)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    images = open_images(tmp_path)
    assert images.images[:, 0, 0].tolist() == [1, 2, 3, 4, 11, 12]
    assert images.size == (3, 4)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert images.label_names == ("cat", "dog")
    assert images.ids[4] == "dog/11.png"


def test_limit_takes_as_many_of_each_class(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 2), ("c", 5)):
        for i in range(count):
            write_image(tmp_path / name / f"{i}.png")
    labels = open_images(tmp_path, limit=8).labels
    assert labels is not None
    assert labels.bincount().tolist() == [3, 2, 3]
    with pytest.raises(ImageError, match="between 1 and the number of images, 12; found 13"):
        open_images(tmp_path, limit=13)


def test_flat_folder_has_no_labels_and_colour_wins(tmp_path: Path) -> None:
    write_image(tmp_path / "b.png", 200, "RGB")
    write_image(tmp_path / "a.JPG", 0)
    images = open_images(tmp_path)
    assert images.labels is None
    assert images.images.shape == (2, 3, 4, 3)
    assert images.images[1, 0, 0].tolist() == [200, 0, 0]
    assert images.channels == 3


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "1.png")
    broken = write_image(tmp_path / "b" / "2.png", size=(64, 64))
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"2\.png is no readable PNG or JPEG"):
        open_images(tmp_path)
    broken.write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"2\.png is no readable PNG or JPEG"):
        open_images(tmp_path)


def test_another_size_is_named(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / f"{i}.png")
    write_image(tmp_path / "odd.png", size=(5, 3))
    with pytest.raises(ImageError, match=r"odd\.png has 3x5 pixels \(height x width\), most others 3x4"):
        open_images(tmp_path)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ImageError, match=r"deep\.png has the pixel mode 'I;16'; expected 8 bits"):
        open_images(tmp_path)


def test_places_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no images"):
        open_images(tmp_path)
    with pytest.raises(ImageError, match="no images at"):
        open_images(tmp_path / "absent")
    write_image(tmp_path / "1.png")
    write_image(tmp_path / "a" / "1.png")
    with pytest.raises(ImageError, match="either images without classes or one sub-folder per class"):
        open_images(tmp_path)


def test_hub_images_without_the_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'metanet-toolkit\[huggingface\]'"):
        open_images("hf:ylecun/mnist")


def test_hub_images_from_a_local_data_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    for name, value in (("cat", 3), ("dog", 7)):
        write_image(tmp_path / "train" / name / "0.png", value)
    images = open_images(f"hf:{tmp_path}")
    assert images.images[:, 0, 0].tolist() == [3, 7]
    assert images.label_names == ("cat", "dog")


def test_signal_and_coordinates_are_row_major() -> None:
    image = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    signal = ImageSet(image, None, (), ("x",)).signal(0)
    assert (signal * 255).flatten().tolist() == pytest.approx([0, 1, 2, 3, 4, 5])
    grid = pixel_coordinates(2, 3)
    assert grid.tolist() == [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]


def test_digest_tells_sets_apart() -> None:
    digits = open_images("digits", limit=4)
    assert digits.digest() == open_images("digits", limit=4).digest()
    assert digits.digest() != open_images("digits", limit=5).digest()
    relabelled = ImageSet(digits.images, torch.zeros(4, dtype=torch.long), digits.label_names, digits.ids)
    assert digits.digest() != relabelled.digest()


@pytest.mark.parametrize(
    ("images", "labels", "names", "ids", "words"),
    [
        (torch.zeros(2, 3, 3, 2), None, (), ("a", "b"), r"expected \[n, height, width\]"),
        (torch.full((1, 3, 3), 1.5), None, (), ("a",), r"must lie in 0…1, found 1\.5…1\.5"),
        (torch.full((1, 3, 3), float("nan")), None, (), ("a",), "must lie in 0…1"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), None, (), ("a",), "dtype torch.int64"),
        (torch.zeros(1, 3, 3), torch.tensor([1, 2]), (), ("a",), "one int64 per image"),
        (torch.zeros(1, 3, 3), torch.tensor([1]), ("only",), ("a",), "outside 0…0"),
        (torch.zeros(2, 3, 3), None, (), ("a",), "1 ids for 2 images"),
    ],
)
def test_sets_that_do_not_fit_together_are_refused(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    names: tuple[str, ...],
    ids: tuple[str, ...],
    words: str,
) -> None:
    with pytest.raises(ImageError, match=words):
        ImageSet(images, labels, names, ids)
