"""GMN: two forms with one result, no network sees its neighbours, nothing of the function is out of sight."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Batch

from metanet.derive import spec_of
from metanet.features import WeightFeatures
from metanet.graphs.conversion import to_graph
from metanet.nn import GMN, GMNConv
from metanet.nn.gmn import Message, Readout
from metanet.testing import assert_close, assert_equivariant, assert_invariant
from tests.metanet.graph_networks import IMAGE, NETWORKS, ResidualCNN, Siren, ViT, features

MESSAGES: tuple[Message, ...] = ("mlp", "product")
EXACT = 1e-10


def make(message: Message = "mlp", readout: Readout = "graph", *, seed: int = 0, **changes: int) -> GMN:
    torch.manual_seed(seed)
    sizes = {"hidden_channels": 8, "num_layers": 3, "out_channels": 5} | changes
    c, layers, out = sizes.values()
    return GMN(c, layers, out, message=message, readout=readout).double()


def loss(output: Tensor | WeightFeatures) -> Tensor:
    parts = [output] if isinstance(output, Tensor) else list(output.tensors.values())
    return torch.stack([part.square().sum() for part in parts]).sum()


def gradients(net: GMN, inputs: object) -> dict[str, Tensor]:
    net.zero_grad()
    loss(net(inputs)).backward()
    assert all(p.grad is not None for p in net.parameters())
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("name", NETWORKS)
def test_dense_and_index_form_agree(name: str, message: Message) -> None:
    net = make(message).fit(features(name, 4, seed=1))
    weights = features(name)
    graphs = to_graph(weights)
    dense = net(weights), net(graphs)
    net.dense = False
    for found in (dense[1], net(weights), net(graphs)):
        assert_close(found, dense[0], tolerance=EXACT)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("readout", ["graph", "edge"])
@pytest.mark.parametrize("name", ["siren", "cnn", "vit", "lstm"])
def test_gradients_of_both_forms_agree(name: str, readout: Readout, message: Message) -> None:
    net, weights = make(message, readout), features(name)
    dense = gradients(net, weights)
    net.dense = False
    index = gradients(net, weights)
    for key, gradient in dense.items():
        largest = index[key].abs().max().clamp(min=1e-30)
        assert_close(gradient / largest, index[key] / largest, tolerance=1e-9, what=key)


def test_weights_get_gradients_through_the_dense_form() -> None:
    weights = features("cnn")
    wanted = {key: tensor.clone().requires_grad_() for key, tensor in weights.tensors.items()}
    grads = []
    for dense in (True, False):
        net = make()
        net.dense = dense
        output = loss(net(weights.with_tensors(wanted, channels=1)))
        grads.append(dict(zip(wanted, torch.autograd.grad(output, list(wanted.values())), strict=True)))
    assert_close(grads[0], grads[1], tolerance=EXACT)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("name", NETWORKS)
def test_invariant(name: str, message: Message) -> None:
    assert_invariant(make(message), features(name), draws=2, tolerance=EXACT)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("name", NETWORKS)
def test_edge_readout_is_equivariant(name: str, message: Message) -> None:
    net = make(message, "edge", out_channels=1)
    assert_equivariant(net, features(name), draws=2, tolerance=EXACT)


@pytest.mark.parametrize("message", MESSAGES)
def test_no_network_sees_the_others_of_its_batch(message: Message) -> None:
    net = make(message)
    alone = {name: net(features(name, 1)) for name in NETWORKS}
    graphs = [to_graph(features(name, 1)) for name in NETWORKS]
    loud = to_graph(features("cnn", 1, seed=5) * 1e3)
    together = net(Batch.from_data_list([loud, *graphs]))
    for row, name in enumerate(NETWORKS, 1):
        assert_close(together[row], alone[name][0], tolerance=EXACT, what=name)
    many = features("siren", 3)
    scaled = many.map(lambda t: t * torch.tensor([1.0, 100.0, 0.01]).reshape(-1, *[1] * (t.ndim - 1)))
    assert_close(net(scaled)[0], net(many[0])[0], tolerance=EXACT)


def test_a_graph_that_was_changed_is_read_as_it_is() -> None:
    net = make()
    graph = to_graph(features("cnn", 1))
    order = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(0))
    shuffled = graph.clone()
    for name in ("edge_attr", "edge_block", "edge_type", "edge_position"):
        shuffled[name] = graph[name][order]
    shuffled.edge_index = graph.edge_index[:, order]
    assert_close(net(shuffled), net(graph), tolerance=EXACT)
    shuffled.edge_index = graph.edge_index
    assert float((net(shuffled) - net(graph)).detach().abs().max()) > 1e-3


def relative(one: Tensor, other: Tensor) -> float:
    return float(((one - other).norm() / one.norm()).detach())


def exchange(weights: WeightFeatures, first: str, second: str) -> WeightFeatures:
    tensors = dict(weights.tensors)
    for key in weights.tensors:
        if key.endswith(first):
            partner = key.removesuffix(first) + second
            tensors[key], tensors[partner] = weights.tensors[partner], weights.tensors[key]
    return weights.with_tensors(tensors, channels=1)


def derived(model: nn.Module, like: WeightFeatures) -> WeightFeatures:
    """The same weights in another function: a spec with other operations."""
    operations = spec_of(
        model, IMAGE if isinstance(model, (ResidualCNN, ViT)) else torch.zeros(4, 2)
    ).operations
    return replace(like, spec=replace(like.spec, operations=operations))


def loud_block(weights: WeightFeatures) -> WeightFeatures:
    return weights.with_tensors(
        {k: t * (3 if k.startswith("blocks.1") else 1) for k, t in weights.tensors.items()}, channels=1
    )


def variance(weights: WeightFeatures, factor: float) -> WeightFeatures:
    tensors = {k: t * factor if k.endswith("running_var") else t for k, t in weights.tensors.items()}
    return weights.with_tensors(tensors, channels=1)


CHANGES: dict[str, tuple[str, Callable[[WeightFeatures], WeightFeatures]]] = {
    "stride": ("cnn", lambda w: derived(ResidualCNN(stride=1), w)),
    "activation": ("cnn", lambda w: derived(ResidualCNN(activation=torch.tanh), w)),
    "slope": ("cnn", lambda w: derived(ResidualCNN(activation=functional.leaky_relu), w)),
    "pooling": ("cnn", lambda w: derived(ResidualCNN(pool=nn.AvgPool2d), w)),
    "padding": ("cnn", lambda w: derived(ResidualCNN(padding_mode="circular"), w)),
    "eps": ("cnn", lambda w: derived(ResidualCNN(eps=0.1), w)),
    "variance": ("cnn", lambda w: variance(w, 9.0)),
    "omega": ("siren", lambda w: derived(Siren(omega=20.0), w)),
    "q and v": ("vit", lambda w: exchange(w, "[0]", "[2]")),
    "q and k": ("vit", lambda w: exchange(w, "[0]", "[1]")),
    "q and v of a module": ("vit_module", lambda w: exchange(w, "[0]", "[2]")),
}


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_function_changes_the_embedding(change: str, message: Message) -> None:
    """Published builders drop these: the embedding changes by 1e-7 or not at all."""
    name, act = CHANGES[change]
    net = make(message, hidden_channels=32, num_layers=4, out_channels=16)
    weights = features(name)
    one, other = net(weights), net(act(weights))
    assert relative(one, other) > 1e-3


@pytest.mark.parametrize("message", MESSAGES)
def test_order_of_residual_blocks_changes_the_embedding(message: Message) -> None:
    net = make(message, hidden_channels=32, num_layers=4, out_channels=16)
    weights = loud_block(features("cnn"))
    one, other = net(weights), net(derived(ResidualCNN(order=(1, 0)), weights))
    assert relative(one, other) > 1e-3


@pytest.mark.parametrize("message", MESSAGES)
def test_grouping_of_heads_changes_the_embedding(message: Message) -> None:
    """The same tensors as two heads of width four, or as four of width two."""
    net = make(message, hidden_channels=32, num_layers=4, out_channels=16)
    two, four = (spec_of(ViT(heads=heads), IMAGE) for heads in (2, 4))
    state = features(two).to_state_dict()
    one, other = (net(WeightFeatures.from_state_dict(s, state, batched=True)) for s in (two, four))
    assert relative(one, other) > 1e-3


@pytest.mark.parametrize("message", MESSAGES)
def test_single_precision_is_close_to_double(message: Message) -> None:
    net, weights = make(message), features("cnn")
    expected = net(weights)
    single = net.float()(weights.to(torch.float32))
    assert single.dtype == torch.float32
    assert_close(single, expected, tolerance=1e-4)


def test_seed_fixes_the_network() -> None:
    weights = features("siren")
    assert torch.equal(make(seed=3)(weights), make(seed=3)(weights))
    assert not torch.allclose(make(seed=3)(weights), make(seed=4)(weights))


@pytest.mark.parametrize("message", MESSAGES)
def test_statistics_are_saved_and_loaded(message: Message, tmp_path: Path) -> None:
    weights = features("cnn")
    net = make(message).fit(weights * 7.0)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    again = make(message, seed=1)
    again.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(again(weights), net(weights))
    unfitted = make(message)
    assert not torch.allclose(unfitted(weights), net(weights))


def test_values_are_standardised_per_tensor_or_else_per_kind() -> None:
    weights = features("siren", 64)
    scales = {"seq.0.weight": 100.0, "seq.1.weight": 0.01}
    scaled = weights.with_tensors(
        {k: t * scales.get(k, 1.0) + 5.0 for k, t in weights.tensors.items()}, channels=1
    )
    net = make().fit(weights)
    expected = net(weights)
    assert_close(make().fit(scaled)(scaled), expected, tolerance=1e-6)
    renamed = {key: tensor * 30.0 for key, tensor in features("cnn").tensors.items()}
    other = features("cnn").with_tensors(renamed, channels=1)
    mean, scale = net.standardize(torch.tensor([0, 12345]), torch.tensor([0, 0]), torch.tensor([True, True]))
    assert mean[0] == 0
    assert scale[0] == 1
    kind = torch.cat([weights.tensors[f"seq.{i}.weight"].flatten() for i in range(3)])
    assert torch.allclose(mean[1], kind.mean().reshape(1), rtol=1e-5)
    assert torch.allclose(scale[1], 1 / kind.std(correction=0).reshape(1), rtol=1e-5)
    assert torch.isfinite(net(other)).all()


def test_fit_reads_graphs_as_it_reads_features() -> None:
    weights = features("cnn", 3)
    one, other = make().fit(weights), make().fit([to_graph(weights[:2]), to_graph(weights[2])])
    assert_close(other(weights), one(weights), tolerance=1e-6)


def test_fit_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to fit"):
        make().fit([])


@pytest.mark.parametrize("message", MESSAGES)
def test_several_values_per_parameter(message: Message) -> None:
    torch.manual_seed(0)
    net = GMN(8, 2, 2, in_channels=2, num_frequencies=2, message=message).double()
    one = features("cnn")
    two = WeightFeatures.cat([one, one * 0.5])
    expected = net(two)
    net.dense = False
    assert_close(net(two), expected, tolerance=EXACT)
    with pytest.raises(ValueError, match="reads 2 values per parameter, found 1"):
        net(one)


def test_edge_readout_keeps_the_shape_of_features() -> None:
    net = make(readout="edge", out_channels=2)
    weights = features("vit", 1)[0]
    found = net(weights)
    assert isinstance(found, WeightFeatures)
    assert found.channels == 2
    assert not found.batched
    graph = to_graph(weights)
    assert net(graph).shape == (graph.num_edges, 2)


@pytest.mark.parametrize("message", MESSAGES)
def test_learns(message: Message) -> None:
    torch.manual_seed(0)
    weights = features("siren", 64).to(torch.float32)
    wanted = weights.tensors["seq.1.bias"].flatten(1).mean(1) > 0
    net = GMN(16, 2, 2, message=message).fit(weights)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    values = []
    for _ in range(60):
        value = functional.cross_entropy(net(weights), wanted.long())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.6 * values[0]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        GMN(0, 1, 1)
    with pytest.raises(ValueError, match="readout is"):
        GMN(4, 1, 1, readout="nodes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="message is"):
        GMN(4, 1, 1, message="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does nothing"):
        GMNConv(4, update_nodes=False, update_edges=False)


def test_repr_says_the_type_of_the_map() -> None:
    assert repr(make()) == "GMN(1 -> 5 channels per graph | 3 layers x 8 channels)"
    assert "4, bidirectional=False, update_nodes=True, update_edges=True" in repr(
        GMNConv(4, bidirectional=False)
    )
