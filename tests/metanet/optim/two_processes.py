"""One of two processes that train together: ``two_processes.py RANK FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from metanet.optim import LearnedOptimizer, Nowcaster
from tests.metanet.optim.contract import OPTIMIZERS, forecaster, optimizer_for, spec_for
from tests.metanet.optim.networks import mlp, weights


def train(model: nn.Module, name: str, examples: slice) -> dict[str, torch.Tensor]:
    """Train a model on some of eight examples; return its weights."""
    optimizer = optimizer_for(name, model, spec_for("mlp"))
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))[examples]
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long()).backward()
        optimizer.step()
    return {key.removeprefix("module."): tensor for key, tensor in model.state_dict().items()}


def main(rank: int, folder: Path) -> None:
    """Train distributed models on half of a batch; check that sharded ones are refused."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = slice(4 * rank, 4 * rank + 4)
    ends = {name: train(DistributedDataParallel(mlp().double()), name, mine) for name in OPTIMIZERS}
    torch.save(ends, folder / f"{rank}.pt")
    sharded = mlp()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(TypeError, match="sharded over devices"):
        LearnedOptimizer(sharded.parameters(), total_steps=9, weights=weights("mixing"))
    base = torch.optim.SGD(sharded.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="sharded over devices"):
        Nowcaster(forecaster("linear"), base, sharded, total_steps=9)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
