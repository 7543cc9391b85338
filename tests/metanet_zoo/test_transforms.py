import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from metanet import spec_of, testing
from metanet_zoo.architectures import Siren
from metanet_zoo.transforms import coordinate_layer, move_coordinates, random_motion


def test_moved_networks_are_the_networks_at_moved_coordinates() -> None:
    networks = [Siren(hidden_features=6).double() for _ in range(4)]
    spec = spec_of(networks[0], torch.zeros(3, 2, dtype=torch.float64))
    tensors, _ = stack_module_state(networks)
    generator = torch.Generator().manual_seed(0)
    matrix, offset = random_motion(4, 2, 0.3, generator)
    moved = move_coordinates(spec, tensors, matrix, offset)
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    for i, network in enumerate(networks):
        actual = functional_call(network, {name: t[i] for name, t in moved.items()}, (x,))
        expected = network(x @ matrix[i].double().T + offset[i].double())
        testing.assert_close(actual, expected, what=f"network {i}")


def test_networks_without_such_a_layer_are_refused() -> None:
    spec = spec_of(nn.Sequential(nn.ReLU(), nn.Linear(2, 3)), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="read by relu"):
        coordinate_layer(spec)
