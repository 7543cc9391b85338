from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from metanet import spec_of, verify
from metanet_zoo import CheckpointError, open_checkpoint
from metanet_zoo.sequential import guess_sequential

MLP = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
CNN = nn.Sequential(
    OrderedDict(
        conv1=nn.Conv2d(3, 8, 3, bias=False),
        bn1=nn.BatchNorm2d(8),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(8, 5, (2, 3)),
        bn2=nn.BatchNorm2d(5, affine=False),
        flatten=nn.Flatten(),
        fc1=nn.Linear(5 * 12, 7),
        norm=nn.LayerNorm(7),
        fc2=nn.Linear(7, 4),
    )
)
CONV1D = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.Flatten(), nn.Linear(20, 2))


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("module", [MLP, CNN, CONV1D], ids=["mlp", "cnn", "conv1d"])
def test_the_guess_has_the_names_and_shapes_and_its_spec_holds(module: nn.Module) -> None:
    guess = guess_sequential(shapes(module))
    guess.model.load_state_dict(module.state_dict())
    spec = spec_of(guess.model, *guess.inputs)
    assert verify(spec, guess.model, *guess.inputs).ok
    assert all(not group.freedoms for group in spec.groups)
    hidden = [t.shape[0] for n, t in module.state_dict().items() if t.ndim > 1][:-1]
    assert sorted(group.size for group in spec.groups) == sorted(hidden)


def test_flattened_positions_are_the_inner_factor() -> None:
    guess = guess_sequential(shapes(CNN))
    spec = spec_of(guess.model, *guess.inputs)
    channels = str(spec.axes["conv2.weight"][0])
    assert str(spec.axes["fc1.weight"][1]) == f"({channels} 12)"
    assert guess.description.startswith("conv2d(3-8) -> batch_norm(8) -> ? -> conv2d(8-5)")


def test_a_named_activation_brings_its_freedoms() -> None:
    guess = guess_sequential(shapes(MLP), "sine:30")
    spec = spec_of(guess.model, *guess.inputs)
    assert [str(f) for f in spec.groups[0].freedoms] == ["sign", "phase(30)"]
    assert guess.assumptions == ("the activation between the layers is sine:30, as given",)


def test_layers_numbered_past_ten_are_taken_by_number() -> None:
    layers = [nn.Linear(4, 4) for _ in range(12)]
    layers[-1] = nn.Linear(4, 3)
    sorted_by_name = dict(sorted(shapes(nn.Sequential(*layers)).items()))
    guess = guess_sequential(sorted_by_name)
    assert list(guess.model.state_dict()) == list(nn.Sequential(*layers).state_dict())


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"a.weight": (4, 3), "b.weight": (2, 5)}, "reads 5 channels"),
        ({"a.weight": (4, 3), "b.gamma": (4,)}, "b.gamma"),
        ({"a.weight": (4, 3), "b.weight": (4, 4), "c.weight": (4, 4), "head": (2, 4)}, "head"),
        ({"10.weight": (4, 4), "2.bias": (4,), "2.weight": (4, 4), "x.weight": (4, 4)}, "order"),
        ({"conv.weight": (8, 3, 3, 3), "n.weight": (8,), "n.bias": (8,)}, "group norm"),
        ({"conv.weight": (8, 3, 3, 3), "dw.weight": (8, 1, 3, 3)}, "reads 1 channels"),
        ({"emb.weight": (4, 3), "emb.bias": (5,)}, "bias"),
        ({"bn.running_mean": (4,), "bn.running_var": (4,)}, "bn"),
        ({"forward.weight": (4, 3), "b.weight": (4, 4)}, "forward"),
    ],
)
def test_anything_else_is_refused_with_the_reason_and_the_way_out(
    entries: dict[str, tuple[int, ...]], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason) as error:
        guess_sequential(entries)
    assert "spec" in str(error.value)


def test_an_unknown_activation_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="relu"):
        guess_sequential(shapes(MLP), "sine")


def test_a_real_cnn_is_recognised(shared_data: Path) -> None:
    checkpoint = open_checkpoint(shared_data / "checkpoints/cnn-mnist-trajectory/edpt1_checkpoint-200.pt")
    guess = guess_sequential({name: checkpoint.shape(name) for name in checkpoint})
    guess.model.load_state_dict(checkpoint.state_dict())
    assert guess.model(*guess.inputs).shape == (2, 10)
    assert torch.isfinite(guess.model(*guess.inputs)).all()
