"""Architectures that a zoo rebuilds from settings."""

import math

import pytest
import torch
from torch import nn

from metanet_zoo.architectures import ARCHITECTURES, Siren, build_architecture


def test_state_dict_has_the_published_names_and_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in Siren().state_dict().items()}
    assert shapes == {
        "seq.0.weight": (32, 2),
        "seq.0.bias": (32,),
        "seq.1.weight": (32, 32),
        "seq.1.bias": (32,),
        "seq.2.weight": (1, 32),
        "seq.2.bias": (1,),
    }


@pytest.mark.parametrize(("convention", "shift"), [("siren", 0.0), ("dws", 0.5)])
def test_forward_is_the_formula(convention: str, shift: float) -> None:
    network = build_architecture(
        {"name": "siren", "hidden_layers": 2, "omega": 20.0, "convention": convention}
    )
    state, points = network.state_dict(), torch.rand(7, 2)
    x = points
    for layer in range(2):
        x = torch.sin(20.0 * (x @ state[f"seq.{layer}.weight"].T + state[f"seq.{layer}.bias"]))
    expected = x @ state["seq.2.weight"].T + state["seq.2.bias"] + shift
    torch.testing.assert_close(network(points), expected)


def test_initial_distributions_follow_the_conventions() -> None:
    inner = math.sqrt(6 / 200) / 30
    for convention, first, first_bias, inner_bias in (
        ("siren", 1 / 2, 1 / math.sqrt(2), 1 / math.sqrt(200)),
        ("dws", math.sqrt(6 / 2) / 30, 0.0, 0.0),
    ):
        network = Siren(
            hidden_features=200,
            convention="dws" if convention == "dws" else "siren",
            generator=torch.Generator().manual_seed(0),
        )
        layers = network.linears
        bounds = [
            (layers[0].weight, first),
            (layers[0].bias, first_bias),
            (layers[1].weight, inner),
            (layers[1].bias, inner_bias),
        ]
        for tensor, bound in bounds:
            assert tensor.abs().max() <= bound
            if bound:
                assert tensor.abs().max() > 0.97 * bound  # 200 draws or more: misses this once in 400 runs
                assert abs(tensor.mean()) < 0.15 * bound


def test_the_exported_graph_shows_linear_omega_and_sine() -> None:
    graph = torch.export.export(Siren(convention="dws"), (torch.zeros(3, 2),)).graph
    operations = [str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function"]
    assert operations == ["linear", "mul", "sin", "linear", "mul", "sin", "linear", "add"]


def test_config_builds_the_same_network() -> None:
    network = Siren(3, 5, 4, 2, omega=12.5, convention="dws")
    rebuilt = build_architecture(network.config)
    assert isinstance(rebuilt, Siren)
    assert rebuilt.config == network.config
    rebuilt.load_state_dict(network.state_dict())
    points = torch.rand(6, 3)
    torch.testing.assert_close(rebuilt(points), network(points), rtol=0, atol=0)


def test_a_user_can_register_a_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "linear", nn.Linear)
    assert isinstance(build_architecture({"name": "linear", "in_features": 2, "out_features": 3}), nn.Linear)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "sirene"}, "unknown architecture 'sirene'; known are siren"),
        ({}, "unknown architecture None"),
        ({"name": "siren", "width": 3}, "does not take the settings"),
        ({"name": "siren", "hidden_layers": 0}, "hidden_layers must be at least 1, found 0"),
        ({"name": "siren", "omega": -1.0}, "omega must be positive"),
        ({"name": "siren", "convention": "tanh"}, "unknown convention 'tanh'; expected one of siren, dws"),
    ],
)
def test_wrong_settings_are_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_architecture(config)
