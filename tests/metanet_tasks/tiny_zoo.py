"""Zoos so small that training on them takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from metanet_tasks.zoos import store_spec
from metanet_zoo.architectures import Siren
from metanet_zoo.store import Zoo
from metanet_zoo.writer import ZooWriter

CLASSES = ("zero", "one", "two")


def write_zoo(path: Path, images: int, views: int, seed: int = 0) -> Zoo:
    """Write networks whose output bias gives their class away."""
    generator = torch.Generator().manual_seed(seed)
    states: list[dict[str, torch.Tensor]] = []
    columns: dict[str, list[Any]] = {"image": [], "view": [], "label": [], "image_id": []}
    for image in range(images):
        for view in range(views):
            module = Siren(hidden_features=6, omega=5.0, generator=generator)
            label = image % len(CLASSES)
            state = module.state_dict()
            state["seq.2.bias"] = torch.tensor([label - 1.0]) + 0.1 * torch.randn(1, generator=generator)
            states.append(state)
            row = {"image": image, "view": view, "label": label, "image_id": f"im/{image}"}
            for name, value in row.items():
                columns[name].append(value)
    with ZooWriter(path, architecture=module.config, label_names=CLASSES) as writer:
        writer.append({name: torch.stack([state[name] for state in states]) for name in states[0]}, columns)
    zoo = Zoo.open(path)
    store_spec(zoo)
    return zoo
