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

from metanet.optim import LearnedOptimizer
from tests.metanet.optim.networks import mlp, weights


def main(rank: int, folder: Path) -> None:
    """Train a distributed model on half of a batch; check that a sharded one is refused."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = DistributedDataParallel(mlp().double())
    made = weights("mixing")
    optimizer = LearnedOptimizer.from_pretrained(made, model, total_steps=9)
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine = x[4 * rank : 4 * rank + 4]
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(mine), (mine.sum(1) > 0).long()).backward()
        optimizer.step()
    torch.save(model.module.state_dict(), folder / f"{rank}.pt")
    sharded = mlp()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(TypeError, match="sharded over devices"):
        LearnedOptimizer(sharded.parameters(), total_steps=9, weights=made)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
