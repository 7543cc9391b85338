"""Parameter graphs: exact round trips, isomorphic under permutations, nothing of the function left out."""

import pickle
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from metanet.axis import Fixed, parse_axes
from metanet.derive import spec_of
from metanet.features import feature_layout
from metanet.graphs.conversion import from_graph, graph_schema, to_graph
from metanet.graphs.schema import EDGE_KINDS, NODE_KINDS, GraphSchema
from metanet.graphs.words import HASHED, NAMES, TEXTS, Word, describe, word_tensors
from metanet.group import GroupElement
from metanet.skeleton import Operation
from metanet.spec import WeightSpec
from tests.metanet.graph_networks import IMAGE, NETWORKS, ResidualCNN, ViT, features, spec

STRUCTURE = ("x", "edge_index", "node_type", "node_block", "edge_type", "edge_block", "edge_position")


def edges_of(schema: GraphSchema, parameter: str) -> list[int]:
    return [i for i, edge in enumerate(schema.edges) if edge.parameter == parameter]


def multiset(graph: Data) -> list[tuple[float, ...]]:
    """Edges as sorted tuples of value, block, coordinates and the identities of fixed units."""
    source, target = graph.edge_index
    rows = torch.cat(
        [
            graph.edge_attr,
            graph.edge_block[:, None],
            graph.edge_position,
            graph.x[source][:, 2:3],
            graph.x[target][:, 2:3],
        ],
        1,
    )
    return sorted(map(tuple, rows.tolist()))


@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_is_exact(name: str, b: int) -> None:
    weights = features(name, b)
    back = from_graph(to_graph(weights), spec(name))
    assert back.tensors.keys() == weights.tensors.keys()
    for key, tensor in weights.tensors.items():
        assert back.tensors[key].dtype == tensor.dtype
        assert torch.equal(back.tensors[key], tensor), key
    expected = weights.to_state_dict()
    found = back.to_state_dict()
    floats = [k for k, t in expected.items() if t.is_floating_point()]
    assert floats
    assert all(torch.equal(found[k] if b > 1 else found[k][None], expected[k]) for k in floats)


def test_several_channels_make_the_round_trip() -> None:
    one = features("cnn")
    two = type(one).cat([one, one * 2.0])
    graph = to_graph(two)
    assert graph.edge_attr.shape[1] == 2
    back = from_graph(graph, spec("cnn"))
    assert all(torch.equal(back.tensors[key], tensor) for key, tensor in two.tensors.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_scalar_is_an_edge(name: str) -> None:
    schema = graph_schema(spec(name))
    sizes = spec(name).sizes
    for block in feature_layout(spec(name)):
        found = edges_of(schema, block.key)
        assert found, block.key
        for i in found:
            assert prod(schema.edges[i].shape) == prod(sizes[g] for g in block.groups) * block.fixed


@pytest.mark.parametrize("name", NETWORKS)
def test_index_tensors_are_consistent(name: str) -> None:
    schema = graph_schema(spec(name))
    t = schema.tensors()
    assert int(t["edge_index"].min()) >= 0
    assert int(t["edge_index"].max()) < schema.num_nodes
    for i, edge in enumerate(schema.edges):
        here = t["edge_index"][:, schema.edge_starts[i] : schema.edge_starts[i + 1]]
        fan = t["block_fan"][len(schema.nodes) + i]
        for units, node, meeting in ((here[0], edge.source, fan[1]), (here[1], edge.target, fan[0])):
            assert (t["node_block"][units] == node).all()
            counts = units.bincount()[units.unique()]
            assert counts.numel() == prod(schema.nodes[node].shape)
            assert (counts == meeting).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_permuted_network_gives_an_isomorphic_graph(name: str) -> None:
    weights = features(name, 1)
    element = GroupElement.random(weights.spec, torch.Generator().manual_seed(1))
    one, other = to_graph(weights), to_graph(element @ weights)
    assert multiset(one) == multiset(other)
    if spec(name).groups:
        assert not torch.equal(one.edge_attr, other.edge_attr)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_fixed_units_have_an_identity(name: str) -> None:
    schema = graph_schema(spec(name))
    x = schema.tensors()["x"]
    for i, node in enumerate(schema.nodes):
        index = x[schema.node_starts[i] : schema.node_starts[i + 1], 2]
        fixed = prod(atom.size for atom in node.atoms if isinstance(atom, Fixed))
        if any(isinstance(atom, Fixed) for atom in node.atoms):
            assert index.unique().tolist() == list(range(fixed))
        else:
            assert (index == -1).all()


def test_siren_is_the_graph_one_would_draw() -> None:
    schema = graph_schema(spec("siren"))
    kinds = sorted((node.kind, prod(node.shape)) for node in schema.nodes)
    assert kinds == [("bias", 1)] * 3 + [("input", 2), ("output", 1), ("unit", 1), ("unit", 6), ("unit", 6)]
    reading = schema.edges[edges_of(schema, "seq.1.weight")[0]].words
    assert [w.value for w in reading if w.order and w.name == "kind"] == ["sin", "mul"]
    assert 30.0 in [w.value for w in reading if w.order == 2]


def test_attention_keeps_roles_and_heads_apart() -> None:
    for name in ("vit", "vit_module"):
        schema = graph_schema(spec(name))
        weight = next(k for k in spec(name) if k.endswith(("qkv.weight", "in_proj_weight")))
        q, k, v = (schema.edges[edges_of(schema, f"{weight}[{i}]")[0]].target for i in range(3))
        assert len({q, k, v}) == 3
        reached = {edge.target for edge in schema.edges if edge.source == q}
        assert reached == {edge.target for edge in schema.edges if edge.source == k}
        assert not reached & {edge.target for edge in schema.edges if edge.source == v}
        (heads,) = reached
        assert schema.nodes[heads].shape == (2,)
        source, target = schema.tensors()["edge_index"]
        first = schema.node_starts[heads]
        readers = source[target == first]
        of_q = readers[(readers >= schema.node_starts[q]) & (readers < schema.node_starts[q + 1])]
        assert (of_q - schema.node_starts[q]).tolist() == [0, 1, 2, 3]


def test_residuals_and_statistics_are_edges() -> None:
    graph = to_graph(features("cnn", 1))
    residual = graph.edge_type == EDGE_KINDS.index("residual")
    assert int(residual.sum()) == 4 * 4
    assert (graph.edge_attr[residual] == 1).all()
    for kind in ("running_mean", "running_var"):
        assert int((graph.edge_type == EDGE_KINDS.index(kind)).sum()) == 4


def test_kernel_positions_are_coordinates() -> None:
    schema = graph_schema(spec("cnn"))
    (stem,) = edges_of(schema, "stem.weight")
    here = slice(schema.edge_starts[stem], schema.edge_starts[stem + 1])
    found = schema.tensors()["edge_position"][here][:, 1:]
    assert found[:9].tolist() == [[i, j] for i in range(3) for j in range(3)]
    assert (schema.tensors()["edge_position"][here][:, 0] == -1).all()
    (head,) = edges_of(schema, "head.weight")
    positions = schema.tensors()["edge_position"][schema.edge_starts[head] : schema.edge_starts[head + 1], 2]
    assert positions.unique().tolist() == [0, 1, 2, 3]


def test_structure_is_shared_until_graphs_are_batched() -> None:
    weights = features("cnn", 3)
    graphs = [to_graph(weights[i]) for i in range(3)]
    assert len({graph.edge_index.data_ptr() for graph in graphs}) == 1
    batch = to_graph(weights)
    assert torch.equal(batch.edge_attr, torch.cat([graph.edge_attr for graph in graphs]))
    assert batch.num_graphs == 3


def test_architectures_mix_in_a_batch() -> None:
    graphs = [to_graph(features(name, 1)) for name in NETWORKS]
    batch = Batch.from_data_list(graphs)
    owner = torch.arange(len(graphs)).repeat_interleave(batch.num_blocks)
    assert torch.equal(owner[batch.node_block], batch.batch)
    assert torch.equal(owner[batch.edge_block], batch.batch[batch.edge_index[0]])
    for graph, again in zip(graphs, batch.to_data_list(), strict=True):
        assert all(torch.equal(graph[name], again[name]) for name in STRUCTURE)
    loaded = next(iter(DataLoader(graphs, batch_size=len(graphs))))
    assert torch.equal(loaded.edge_block, batch.edge_block)


def test_graphs_are_pickled_for_worker_processes() -> None:
    graph = to_graph(features("vit", 1))
    again = pickle.loads(pickle.dumps(graph))  # our own bytes
    assert again.schema == graph.schema
    assert torch.equal(again.edge_attr, graph.edge_attr)


def test_specs_that_differ_in_operations_alone_have_graphs_of_their_own() -> None:
    one, other = spec_of(ResidualCNN(stride=2), IMAGE), spec_of(ResidualCNN(stride=1), IMAGE)
    assert one == other
    assert graph_schema(one) != graph_schema(other)
    assert graph_schema(one) is graph_schema(replace(one))


def test_names_of_arguments_do_not_matter() -> None:
    one = spec("siren")
    renamed = tuple(
        replace(op, attributes=(("name", "where"),)) if op.kind == "input" else op for op in one.operations
    )
    assert graph_schema(one) == graph_schema(replace(one, operations=renamed))


HAND = """
    groups   a: 3   b: 2
    one      a 2
    two      b 2
    three    4 a
    idle     b 5
"""


def by_hand(kind: str) -> WeightSpec:
    def op(kind: str, inputs: tuple[int, ...], axes: str, **parameters: str) -> Operation:
        return Operation(kind, inputs, tuple(parameters.items()), (), parse_axes(axes))

    operations = (
        op("input", (), "1 2"),
        op("linear", (0,), "1 a", weight="one"),
        op("linear", (0,), "1 b", weight="two"),
        op(kind, (1, 2), "1 a"),
        op("linear", (3,), "1 4", weight="three"),
        op("output", (4,), "1 4"),
    )
    return replace(WeightSpec.parse(HAND), operations=operations, unused=("idle",))


def test_unknown_operations_are_never_dropped() -> None:
    schema = graph_schema(by_hand("mylib.blend.default"))
    blend = Word(0, "kind", "mylib.blend.default")
    (mixed,) = [i for i, n in enumerate(schema.nodes) if blend in n.words and n.kind == "join"]
    assert {edge.source for edge in schema.edges if edge.target == mixed} >= {
        schema.edges[edges_of(schema, "one")[0]].target
    }
    (hub,) = {edge.source for edge in schema.edges if edge.target == mixed} & {
        i for i, node in enumerate(schema.nodes) if node.kind == "hub"
    }
    assert schema.nodes[hub].shape == ()
    assert schema.edges[edges_of(schema, "three")[0]].source == mixed
    other = graph_schema(by_hand("mylib.other.default"))
    assert not torch.equal(schema.tensors()["word_text"], other.tensors()["word_text"])


def test_unused_entries_stand_apart() -> None:
    schema = graph_schema(by_hand("add"))
    (idle,) = edges_of(schema, "idle")
    ends = {schema.edges[idle].source, schema.edges[idle].target}
    assert {schema.nodes[i].kind for i in ends} == {"unused"}
    assert all(not ends & {e.source, e.target} for i, e in enumerate(schema.edges) if i != idle)


def test_words_tell_values_orders_and_names_apart() -> None:
    def row(words: tuple[Word, ...]) -> list[list[float]]:
        return sorted(
            torch.cat(
                [v.float().reshape(len(words), -1) for k, v in word_tensors([words]).items()], 1
            ).tolist()
        )

    told = [
        describe("max_pool2d", (("kernel_size", (2, 2)),)),
        describe("max_pool2d", (("kernel_size", (2, 3)),)),
        describe("max_pool2d", (("kernel_size", (3, 2)),)),
        describe("max_pool2d", (("stride", (2, 2)),)),
        describe("avg_pool2d", (("kernel_size", (2, 2)),)),
        describe("max_pool2d", (("kernel_size", (2, 2)),), order=1),
        describe("max_pool2d", (("kernel_size", None),)),
        describe("layer_norm", (("eps", 1e-5),)),
        describe("layer_norm", (("eps", 1e-6),)),
        describe("layer_norm", (("eps", float("inf")),)),
        describe("layer_norm", (("eps", float("nan")),)),
        describe("layer_norm", (("eps", True),)),
        describe("layer_norm", (("eps", 1),)),
    ]
    rows = [row(words) for words in told]
    assert all(rows[i] != rows[j] for i in range(len(rows)) for j in range(i))
    assert all(torch.isfinite(Tensor(r)).all() for r in rows)


def test_words_beyond_the_lists_fall_into_stable_rows() -> None:
    tensors = word_tensors([describe("mylib.blend.default", (("temperature", 2.0),))])
    assert tensors["word_text"].tolist() == [len(TEXTS) + 173, len(TEXTS) + HASHED]
    assert tensors["word_name"].tolist()[1] >= len(NAMES)
    assert len(set(NAMES)) == len(NAMES)
    assert len(set(TEXTS)) == len(TEXTS)
    assert len(set(NODE_KINDS)) == len(NODE_KINDS)


def test_a_spec_without_operations_is_refused() -> None:
    with pytest.raises(ValueError, match="has no operations"):
        to_graph(features(WeightSpec.parse("groups a: 3\nw a 2")))


def test_hidden_features_are_refused() -> None:
    weights = features("siren")
    hidden = weights.with_tensors(
        {k: t[..., :1] for k, t in weights.tensors.items()}, channels=1, folded=True
    )
    with pytest.raises(ValueError, match="folded"):
        to_graph(hidden)


def test_a_graph_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="Pass the spec of the network"):
        from_graph(to_graph(features("siren")), spec("cnn"))


def test_heads_are_grouped_as_the_operations_say() -> None:
    two, four = (graph_schema(spec_of(ViT(heads=h), IMAGE)) for h in (2, 4))
    assert two != four
