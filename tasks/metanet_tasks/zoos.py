"""Zoos by hand: fit one to images, describe it, merge several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanet_tasks.zoo_spec import zoo_spec
from metanet_zoo.atomic import atomic_path
from metanet_zoo.collect import merge_zoos
from metanet_zoo.fit.inr import fit_inrs
from metanet_zoo.images import open_images
from metanet_zoo.store import Zoo
from metanet_zoo.writer import SPEC


def fit_zoo(
    images: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    limit: int | None = None,
    views: int = 1,
    seed: int = 0,
    convention: str = "siren",
    hidden_features: int = 32,
    hidden_layers: int = 2,
    omega: float = 30.0,
    steps: int = 300,
    learning_rate: float = 1e-3,
    target_psnr: float | None = 36.0,
    shard_size: int = 512,
    threads: int | None = None,
    device: str = "cpu",
    progress: bool | None = None,
    resume: bool = True,
) -> Zoo:
    """Fit SIRENs to images and store them, with their spec, as a zoo; a killed fit continues.

    Args:
        images: what `metanet_zoo.images.open_images` opens.
        out: folder of the zoo.
        split: of the images, train or test.
        limit: number of images to take.
        views: independent fits per image.
        seed: of the initialisations.
        convention: siren or dws.
        hidden_features: width of every hidden layer.
        hidden_layers: number of hidden layers.
        omega: ω.
        steps: most steps per network.
        learning_rate: of Adam.
        target_psnr: a network stops at this quality, in dB; None lets each make all steps.
        shard_size: networks per shard.
        threads: that fit at the same time; as many as torch uses if None.
        device: where to fit.
        progress: whether to draw a bar; None draws one on a terminal.
        resume: continue an interrupted fit.

    Returns:
        The zoo.
    """
    opened = open_images(images, split=split, limit=limit)
    architecture = {
        "name": "siren",
        "out_features": opened.channels,
        "hidden_features": hidden_features,
        "hidden_layers": hidden_layers,
        "omega": omega,
        "convention": convention,
    }
    zoo = fit_inrs(
        opened,
        out,
        architecture=architecture,
        views=views,
        seed=seed,
        steps=steps,
        learning_rate=learning_rate,
        target_psnr=target_psnr,
        shard_size=shard_size,
        threads=threads,
        device=device,
        progress=progress,
        resume=resume,
    )
    store_spec(zoo)
    return zoo


def store_spec(zoo: Zoo) -> None:
    """Store the spec of a zoo's networks with it, unless it is there."""
    if zoo.spec_json is None:
        text = zoo_spec(zoo).to_json()
        with atomic_path(zoo.path / SPEC) as file:
            file.write_text(text, encoding="utf-8")


def zoo_info(path: str | Path, *, check: bool = False) -> dict[str, Any]:
    """Describe a zoo in plain JSON values.

    Args:
        path: folder of the zoo.
        check: read every byte and hold it against the manifest.

    Returns:
        its size, architecture, entries, labels, quality of the fits and settings; under ``check``, what
        was found (``ok``, ``problems``, ``non_finite``).
    """
    zoo = Zoo.open(path)
    info: dict[str, Any] = {
        "path": str(path),
        "models": len(zoo),
        "num_parameters": zoo.num_parameters,
        "bytes": sum(shard.weights_bytes for shard in zoo.manifest.shards),
        "shards": len(zoo.manifest.shards),
        "architecture": dict(zoo.architecture),
        "entries": {name: list(shape) for name, shape in zoo.shapes.items()},
        "columns": dict(zoo.manifest.columns),
        "settings": dict(zoo.settings),
        "has_spec": zoo.spec_json is not None,
    }
    if "image" in zoo.manifest.columns:
        info["images"] = len(set(_listed(zoo, "image")))
    if "label" in zoo.manifest.columns:
        names = zoo.label_names
        labels = zoo.labels
        counts = torch.bincount(labels, minlength=len(names)).tolist()
        info["labels"] = {names[i] if names else str(i): n for i, n in enumerate(counts)}
    for column in ("psnr", "steps"):
        values = zoo.column(column) if column in zoo.manifest.columns else None
        if isinstance(values, Tensor) and len(values):
            kept = values.double()[values.double().isfinite()]
            info[column] = {
                "min": float(kept.min()),
                "median": float(kept.median()),
                "max": float(kept.max()),
                "not_finite": len(values) - len(kept),
            }
    if check:
        report = zoo.verify()
        info["check"] = {"ok": report.ok, **asdict(report)}
    return info


def merge(sources: Sequence[str | Path], out: str | Path) -> Zoo:
    """Merge zoos of one architecture into a new one; its column ``source`` says where a network is from."""
    return merge_zoos(sources, out)


def _listed(zoo: Zoo, name: str) -> list[Any]:
    values = zoo.column(name)
    return values.tolist() if isinstance(values, Tensor) else values
