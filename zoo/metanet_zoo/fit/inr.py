"""Fit an implicit neural representation to every image of a set, thousands of networks at a time."""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet_zoo.architectures import Siren, build_architecture
from metanet_zoo.fit.progress import FitProgress
from metanet_zoo.fit.resumable import ResumableZoo, folder_lock
from metanet_zoo.fit.siren import ParameterLayout, SirenStack
from metanet_zoo.image_set import ImageSet, pixel_coordinates
from metanet_zoo.store import Zoo

CPU_STACK_BYTES = 4 << 20
"""Buffers of one thread's stack: a share of the last-level cache."""

ACCELERATOR_STACK_BYTES = 2 << 30
ACCELERATOR_CHECK = 16
"""Steps between two looks at which networks have finished: on an accelerator each look waits for it."""


def fit_inrs(
    images: ImageSet,
    out: str | Path,
    *,
    architecture: Siren | Mapping[str, Any] | None = None,
    views: int = 1,
    seed: int = 0,
    steps: int = 300,
    learning_rate: float = 1e-3,
    target_psnr: float | None = 36.0,
    shard_size: int = 512,
    stack: int | None = None,
    threads: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    resume: bool = True,
) -> Zoo:
    """Fit SIRENs to images by Adam on the mean squared error over all pixels, and store them as a zoo.

    Pixels are targets in 0…1 on the grid of `pixel_coordinates`. Every network starts from its own random
    initialisation, decided by `seed`, the image's id and the view alone, and stops when its

        PSNR = -10 log10(mean squared error)        (dB, peak 1, over all pixels and channels)

    reaches `target_psnr`, or after `steps` steps; its PSNR is that of the stored weights. The slot of a
    finished network is taken by the next one at once. A network does not depend on its neighbours, so
    neither do the weights on `stack`, `threads` or interruptions; between machines and devices they agree
    up to rounding, which a fit amplifies.

    Finished networks are written in whole shards. After a kill, the same call continues; on a
    finished zoo it returns at once.

    Args:
        images: what to fit.
        out: folder of the zoo; its parent must exist.
        architecture: a `Siren` or its settings, whose `in_features` is 2 and whose `out_features` is the
            images' number of channels; 2-32-32-channels, ω = 30, convention "siren" if None.
        views: independent fits per image.
        seed: of the initialisations.
        steps: most steps per network.
        learning_rate: of Adam.
        target_psnr: where a network stops, in dB; None lets each make all `steps`.
        shard_size: networks per shard.
        stack: networks trained side by side by each thread; chosen to fit the cache if None.
        threads: on a CPU, threads that fit at the same time; as many as torch uses if None.
        device: where to fit.
        progress: draw a progress bar; None draws one if standard error is a terminal.
        resume: continue an interrupted fit in `out`; otherwise `out` must be new or empty.

    Returns:
        the zoo, with the columns `image`, `view`, `image_id`, `label` (if the images have labels), `psnr`,
        `steps` and `seed`.

    Raises:
        ValueError: a setting is out of its range or does not fit the images.
        ZooError: `out` holds something else, or a fit that was begun with other settings (says which).
        OSError: the disk is full; what is written so far is whole, and the same call continues.

    References:
        Sitzmann et al. (2020), Implicit Neural Representations with Periodic Activation Functions,
        https://arxiv.org/abs/2006.09661. Navon et al. (2023), https://arxiv.org/abs/2301.12780, section 7,
        for classifying the fits.
    """
    network = _network(architecture, images)
    counts = {"views": views, "steps": steps, "shard_size": shard_size, "stack": stack, "threads": threads}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed must be at least 0 and below 2**63, found {seed}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be positive and finite, found {learning_rate}")
    if target_psnr is not None and not math.isfinite(target_psnr):
        raise ValueError(f"target_psnr must be finite, or None to make all steps; found {target_psnr}")
    where = _usable(device)
    zoo = ResumableZoo(
        Path(out),
        architecture=network.config,
        label_names=images.label_names,
        settings={
            "fit": "inr",
            "architecture": network.config,
            "images": len(images),
            "image_size": [*images.size, images.channels],
            "images_sha256": images.digest(),
            "views": views,
            "seed": seed,
            "optimizer": "adam",
            "learning_rate": learning_rate,
            "steps": steps,
            "target_psnr": target_psnr,
            "shard_size": shard_size,
        },
        shard_size=shard_size,
        total=len(images) * views,
        resume=resume,
    )
    if zoo.complete:
        return Zoo.open(out)
    fit = _Fit(network, images, views, seed, steps, learning_rate, target_psnr, where)
    with folder_lock(zoo.path):
        zoo.recover()
        remaining = sum(len(zoo.members(shard)) for shard in zoo.missing)
        with FitProgress(zoo.total, zoo.total - remaining, progress) as bar:
            _run(fit, _Collector(fit, zoo, bar), stack, threads, remaining)
        zoo.finish()
    return Zoo.open(out)


def initial_generator(seed: int, image_id: str, view: int) -> np.random.Generator:
    """Source of one network's initial values: the same in every order, and another for every image set."""
    words = np.frombuffer(hashlib.sha256(image_id.encode()).digest(), np.uint32)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, view, *words.tolist()])))


@dataclass(frozen=True, slots=True)
class _Fit:
    """What decides the networks."""

    network: Siren
    images: ImageSet
    views: int
    seed: int
    steps: int
    learning_rate: float
    target_psnr: float | None
    device: torch.device

    def make_stack(self, size: int) -> SirenStack:
        threshold = 0.0 if self.target_psnr is None else 10 ** (-self.target_psnr / 10)
        return SirenStack(
            self.network,
            pixel_coordinates(*self.images.size).to(self.device),
            size,
            steps=self.steps,
            learning_rate=self.learning_rate,
            threshold=threshold,
        )

    def begin(self, stack: SirenStack, slot: int, number: int) -> None:
        image, view = divmod(number, self.views)
        generator = initial_generator(self.seed, self.images.ids[image], view)
        stack.load(slot, stack.layout.draw(generator), self.images.signal(image))

    def default_stack(self) -> int:
        hidden = sum(layer.out_features for layer in self.network.linears[:-1])
        widest = max(layer.out_features for layer in self.network.linears[:-1])
        height, width = self.images.size
        needed = 4 * height * width * (2 * hidden + widest)
        budget = CPU_STACK_BYTES if self.device.type == "cpu" else ACCELERATOR_STACK_BYTES
        return max(1, min(128 if self.device.type == "cpu" else 8192, budget // needed))


class _Collector:
    """Hands out the numbers of networks to fit and puts the finished ones into shards; thread-safe."""

    def __init__(self, fit: _Fit, zoo: ResumableZoo, bar: FitProgress) -> None:
        self._fit, self._zoo, self._bar = fit, zoo, bar
        self._layout = ParameterLayout(fit.network)
        self._numbers = iter([number for shard in zoo.missing for number in zoo.members(shard)])
        self._done: dict[int, dict[int, tuple[Tensor, float, int]]] = {}
        self._lock = threading.Lock()

    def next(self) -> int | None:
        with self._lock:
            return next(self._numbers, None)

    def add(self, number: int, parameters: Tensor, error: float, steps: int) -> None:
        psnr = -10 * math.log10(max(error, 1e-12)) if math.isfinite(error) else math.nan
        with self._lock:
            shard = number // self._zoo.shard_size
            done = self._done.setdefault(shard, {})
            done[number] = (parameters, psnr, steps)
            self._bar.add(psnr)
            if len(done) == len(self._zoo.members(shard)):
                self._write(shard, self._done.pop(shard))

    def _write(self, shard: int, done: dict[int, tuple[Tensor, float, int]]) -> None:
        numbers = torch.tensor(sorted(done))
        parameters, psnr, steps = zip(*(done[number] for number in numbers.tolist()), strict=True)
        position, images = numbers // self._fit.views, self._fit.images
        columns: dict[str, Tensor | list[str]] = {
            "image": position,
            "view": (numbers % self._fit.views).int(),
            "image_id": [images.ids[i] for i in position.tolist()],
        }
        if images.labels is not None:
            columns["label"] = images.labels[position]
        columns["psnr"] = torch.tensor(psnr, dtype=torch.float32)
        columns["steps"] = torch.tensor(steps, dtype=torch.int32)
        columns["seed"] = torch.full_like(numbers, self._fit.seed)
        self._zoo.write(shard, self._layout.split(torch.stack(parameters)), columns)


def _run(fit: _Fit, collector: _Collector, stack: int | None, threads: int | None, networks: int) -> None:
    """Fit what is left, on a CPU in as many threads as asked for, each with torch on one core."""
    if networks == 0:
        return
    on_cpu = fit.device.type == "cpu"
    count = min((threads or torch.get_num_threads()) if on_cpu else 1, networks)
    size = min(stack or fit.default_stack(), -(-networks // count))
    stop = threading.Event()
    failures: deque[BaseException] = deque()

    def work() -> None:
        try:
            _fit_stream(fit, collector, size, 1 if on_cpu else ACCELERATOR_CHECK, stop)
        except BaseException as error:
            failures.append(error)
            stop.set()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    with _one_torch_thread(on_cpu):
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        finally:
            stop.set()
            for worker in workers:
                worker.join()
    if failures:
        raise failures[0]


@torch.no_grad()
def _fit_stream(fit: _Fit, collector: _Collector, size: int, check: int, stop: threading.Event) -> None:
    """Keep the slots of one stack busy until no network is left."""
    stack = fit.make_stack(size)
    networks: list[int | None] = [None] * size
    for tick in itertools.count():
        if tick % check == 0:
            for slot, finished in enumerate(stack.finished.tolist()):
                if not finished:
                    continue
                number = networks[slot]
                if number is not None:
                    collector.add(number, *stack.unload(slot))
                networks[slot] = number = collector.next()
                if number is not None:
                    fit.begin(stack, slot, number)
            if stop.is_set() or all(number is None for number in networks):
                return
        stack.step()


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot fit on the device {str(device)!r}: {error}") from None


def _network(architecture: Siren | Mapping[str, Any] | None, images: ImageSet) -> Siren:
    if architecture is None:
        architecture = {"name": "siren", "out_features": images.channels}
    network = architecture if isinstance(architecture, Siren) else build_architecture(architecture)
    if not isinstance(network, Siren):
        raise ValueError(f"only SIRENs are fitted here, found {type(network).__name__}")
    found = (network.config["in_features"], network.config["out_features"])
    if found != (2, images.channels):
        raise ValueError(
            f"the network maps {found[0]} coordinates to {found[1]} channels; the images need 2 coordinates "
            f"and {images.channels} channels"
        )
    return network


@contextmanager
def _one_torch_thread(wanted: bool) -> Iterator[None]:
    """Let torch use one core per calling thread for a while: the fit's own threads use the others."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
