"""Law 1 and maximality: every derived group keeps the function, and is the whole known group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metanet import GroupElement, WeightSpec, spec_of, testing, verify
from metanet.derive import DerivationError
from tests.metanet.permutations import same_units
from tests.models import ARCHITECTURES, Attention, LanguageModel, ViT, image, tokens

NORM = ("weight", "bias", "running_mean", "running_var")


def batch_norm(name: str, axis: str) -> str:
    """Rows of a BatchNorm in notation."""
    rows = [f"{name}.{entry}  {axis}" for entry in NORM]
    return "\n".join([*rows, f"{name}.num_batches_tracked"])


def attention(name: str, base: str, stream: str, out: str | None = None) -> str:
    """Rows of an nn.MultiheadAttention in notation."""
    qkv = f"[({base}.head {base}.qk) | ({base}.head {base}.qk) | ({base}.head {base}.v)]"
    return f"""
        {name}.in_proj_weight    {qkv} {stream}
        {name}.in_proj_bias      {qkv}
        {name}.out_proj.weight   {out or stream} ({base}.head {base}.v)
        {name}.out_proj.bias     {out or stream}"""


def residual_block(name: str, inner: str, read: str, written: str) -> str:
    return f"""
        {name}.conv1.weight  {inner} {read} 3 3
        {batch_norm(f"{name}.bn1", inner)}
        {name}.conv2.weight  {written} {inner} 3 3
        {batch_norm(f"{name}.bn2", written)}"""


def encoder_layer(number: int) -> str:
    name = f"encoder.layers.{number}"
    return f"""
        {attention(f"{name}.self_attn", f"{name}.self_attn", "patch")}
        {name}.linear1.weight  {name}.linear1 patch
        {name}.linear1.bias    {name}.linear1
        {name}.linear2.weight  patch {name}.linear1
        {name}.linear2.bias    patch
        {name}.norm1.weight    patch
        {name}.norm1.bias      patch
        {name}.norm2.weight    patch
        {name}.norm2.bias      patch"""


def heads(base: str) -> str:
    """Groups of an nn.MultiheadAttention: widths are permuted independently in every head."""
    return f"{base}.head: 4  {base}.qk: 4 under {base}.head  {base}.v: 4 under {base}.head"


def recurrent(kind: str, layer: str, read: str) -> str:
    units = f"rnn.{layer}"
    gates = {"LSTM": f"[{' | '.join([units] * 4)}]", "GRU": f"[{' | '.join([units] * 3)}]"}.get(kind, units)
    return f"""
        rnn.weight_ih_{layer}  {gates} {read}
        rnn.weight_hh_{layer}  {gates} {units}
        rnn.bias_ih_{layer}    {gates}
        rnn.bias_hh_{layer}    {gates}"""


PADDED = "[layer2.conv2.0 | conv1 | layer2.conv2.2]"

KNOWN: dict[str, str] = {
    "mlp": """
        groups    layer0: 8   layer2: 7
        0.weight  layer0 2
        0.bias    layer0
        2.weight  layer2 layer0
        2.bias    layer2
        4.weight  3 layer2
        4.bias    3""",
    "tanh_mlp": """
        groups    layer0: 8 sign   layer2: 7 sign
        0.weight  layer0 2
        0.bias    layer0+
        2.weight  layer2 layer0'
        2.bias    layer2+
        4.weight  3 layer2'
        4.bias    3""",
    "siren": """
        groups        seq.0: 32 sign phase(30)   seq.1: 32 sign phase(30)
        seq.0.weight  seq.0 2
        seq.0.bias    seq.0+
        seq.1.weight  seq.1 seq.0'
        seq.1.bias    seq.1+
        seq.2.weight  1 seq.1'
        seq.2.bias    1""",
    "cnn_bn": f"""
        groups    layer0: 4   layer4: 6
        0.weight  layer0 1 3 3
        0.bias    layer0
        {batch_norm("1", "layer0")}
        4.weight  layer4 layer0 3 3
        4.bias    layer4
        8.weight  5 (layer4 4)
        8.bias    5""",
    "resnet_small": f"""
        groups  conv1: 4  layer1.conv1: 4  layer2.conv1: 8  layer2.conv2: 8  layer3.conv1: 8
        conv1.weight  conv1 3 3 3
        {batch_norm("bn1", "conv1")}
        {residual_block("layer1", "layer1.conv1", "conv1", "conv1")}
        {residual_block("layer2", "layer2.conv1", "conv1", "layer2.conv2")}
        layer2.down.0.weight  layer2.conv2 conv1 1 1
        {batch_norm("layer2.down.1", "layer2.conv2")}
        {residual_block("layer3", "layer3.conv1", "layer2.conv2", "layer2.conv2")}
        fc.weight  5 layer2.conv2
        fc.bias    5""",
    "resnet_padded": f"""
        groups  conv1: 4 layer1.conv1: 4 layer2.conv1: 8 layer2.conv2.0: 2 layer2.conv2.2: 2 layer3.conv1: 8
        conv1.weight  conv1 3 3 3
        {batch_norm("bn1", "conv1")}
        {residual_block("layer1", "layer1.conv1", "conv1", "conv1")}
        {residual_block("layer2", "layer2.conv1", "conv1", PADDED)}
        {residual_block("layer3", "layer3.conv1", PADDED, PADDED)}
        fc.weight  5 {PADDED}
        fc.bias    5""",
    "grouped_cnn": """
        groups    layer0.group: 4   layer0.within: 2 under layer0.group   layer2.within: 3 under layer0.group
        0.weight  (layer0.group layer0.within) 3 3 3
        0.bias    (layer0.group layer0.within)
        2.weight  (layer0.group layer2.within) layer0.within 3 3
        2.bias    (layer0.group layer2.within)
        3.weight  (layer0.group layer2.within)
        3.bias    (layer0.group layer2.within)
        5.weight  5 (layer0.group layer2.within) 1 1
        5.bias    5""",
    "depthwise_cnn": f"""
        groups    layer0: 6   layer4: 4
        0.weight  layer0 3 1 1
        0.bias    layer0
        1.weight  layer0 1 3 3
        1.bias    layer0
        {batch_norm("2", "layer0")}
        4.weight  layer4 layer0 1 1
        4.bias    layer4
        7.weight  3 layer4
        7.bias    3""",
    "densenet_small": f"""
        groups       stem: 4   conv1: 3   conv2: 3
        stem.weight  stem 3 3 3
        stem.bias    stem
        {batch_norm("norm1", "stem")}
        conv1.weight  conv1 stem 3 3
        conv1.bias    conv1
        {batch_norm("norm2", "[stem | conv1]")}
        conv2.weight  conv2 [stem | conv1] 3 3
        conv2.bias    conv2
        head.weight   2 [stem | conv1 | conv2] 1 1
        head.bias     2""",
    "mha": f"""
        groups        embed: 16   {heads("attn")}   attn.out_proj: 16
        embed.weight  embed 3
        embed.bias    embed
        {attention("attn", "attn", "embed", "attn.out_proj")}
        head.weight   2 attn.out_proj
        head.bias     2""",
    "vit_small": f"""
        groups  patch: 16  {"  ".join(
            f"{heads(f'encoder.layers.{i}.self_attn')}  encoder.layers.{i}.linear1: 24"
            for i in range(2)
        )}
        cls           1 1 patch
        pos           1 5 patch
        patch.weight  patch 3 4 4
        patch.bias    patch
        {encoder_layer(0)}
        {encoder_layer(1)}
        norm.weight   patch
        norm.bias     patch
        head.weight   5 patch
        head.bias     5""",
    "lstm_lm": f"""
        groups        embed: 6   rnn.l0: 5   rnn.l1: 5
        embed.weight  11 embed
        {recurrent("LSTM", "l0", "embed")}
        {recurrent("LSTM", "l1", "rnn.l0")}
        head.weight   11 rnn.l1
        head.bias     11""",
    "gru_net": f"""
        groups        embed: 6   rnn.l0: 5   rnn.l0_reverse: 5
        embed.weight  11 embed
        {recurrent("GRU", "l0", "embed")}
        {recurrent("GRU", "l0_reverse", "embed")}
        head.weight   11 [rnn.l0 | rnn.l0_reverse]
        head.bias     11""",
    "rnn_net": f"""
        groups        embed: 6   rnn.l0: 5
        embed.weight  11 embed
        {recurrent("RNN", "l0", "embed")}
        head.weight   11 rnn.l0
        head.bias     11""",
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_derived_group_is_the_whole_known_group(name: str) -> None:
    factory, inputs = ARCHITECTURES[name]
    spec = spec_of(factory(), *inputs)
    assert same_units(spec, KNOWN[name])
    assert not spec.lost


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_element_of_the_derived_group_keeps_the_function(name: str) -> None:
    factory, inputs = ARCHITECTURES[name]
    model = factory()
    spec = spec_of(model, *inputs)
    verification = verify(spec, model, *inputs)
    assert verification.ok, str(verification)
    assert not verification.dead, str(verification)
    assert verification.unused == spec.unused
    double = model.double().eval()
    exact = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    testing.assert_function_preserved(spec, double, *exact, tolerance=1e-8)
    weights = {name: tensor for name, tensor in double.state_dict().items() if tensor.is_floating_point()}
    testing.assert_group_laws(spec.select(weights), weights)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_final_states_keep_the_groups_of_other_layers_apart(kind: str, bidirectional: bool) -> None:
    model = LanguageModel(kind, layers=2, bidirectional=bidirectional, last=True)
    spec = spec_of(model, tokens())
    layers = ["l0", "l0_reverse", "l1", "l1_reverse"] if bidirectional else ["l0", "l1"]
    assert [group.name for group in spec.groups] == ["embed", *(f"rnn.{layer}" for layer in layers)]
    assert verify(spec, model, tokens()).ok


def test_attention_with_weights_returned_has_the_same_groups() -> None:
    x = image(2, 5, 3)
    spec = spec_of(Attention(need_weights=True), x)
    assert spec == spec_of(Attention(), x)


def test_deriving_leaves_the_model_as_it_was() -> None:
    for factory, inputs in (ARCHITECTURES["cnn_bn"], ARCHITECTURES["lstm_lm"]):
        model = factory().train()
        model.get_submodule("1" if "1" in dict(model.named_children()) else "rnn").eval()
        modes = [module.training for module in model.modules()]
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        identities = [id(p) for p in model.parameters()]
        spec_of(model, *inputs)
        assert [module.training for module in model.modules()] == modes
        assert [id(p) for p in model.parameters()] == identities
        after = model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        model(*inputs)[0].sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_a_model_on_the_meta_device_has_the_same_spec() -> None:
    with torch.device("meta"):
        model = ViT()
    x = image(2, 3, 8, 8)
    spec = spec_of(model, x)
    assert spec == spec_of(ViT(), x)
    assert verify(spec, model, x.to("meta")).ok


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        logits: Tensor = self.head(x + torch.relu(self.inner(x)))
        return logits


def test_tied_parameters_are_one() -> None:
    model = Tied()
    spec = spec_of(model, tokens())
    assert spec.ties == (("embed.weight", "head.weight"),)
    assert same_units(
        spec,
        """
        groups        embed: 6
        embed.weight  11 embed
        inner.weight  embed embed
        inner.bias    embed
        head.weight   11 embed""",
    )
    verification = verify(spec, model, tokens())
    assert verification.ok
    assert not verification.dead


class Constants(nn.Module):
    """A buffer that is not saved varies along one of two hidden axes; a saved one is a variable."""

    def __init__(self, varying: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
        scale = torch.arange(1.0, 5.0) if varying else torch.full((4,), 2.0)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("offset", torch.arange(5.0))
        self.shift = torch.tensor([3.0] * 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) * self.get_buffer("scale") + self.shift
        with torch.no_grad():
            y: Tensor = self.second(x) + self.get_buffer("offset")
        y = self.last(torch.relu(y))
        return y


@pytest.mark.parametrize("varying", [True, False])
def test_a_constant_fixes_the_axis_along_which_it_varies(varying: bool) -> None:
    model, x = Constants(varying), image(2, 3)
    spec = spec_of(model, x)
    assert [group.name for group in spec.groups] == (["second"] if varying else ["first", "second"])
    assert [str(axis) for axis in spec.axes["offset"]] == ["second+"]
    assert verify(spec, model, x).ok


class Sorted(nn.Module):
    """Takes running maxima of one hidden layer: an operation that tells its units apart and has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.second(torch.cummax(self.first(x), -1).values)))
        return y


def test_an_operation_without_a_rule_costs_only_what_it_touches_and_is_named() -> None:
    model, x = Sorted(), image(2, 3)
    spec = spec_of(model, x)
    assert [group.name for group in spec.groups] == ["second"]
    [lost] = spec.lost
    assert lost.operation == "aten.cummax.default"
    assert lost.entries == ("first.weight", "first.bias")
    assert "no rule" in lost.reason
    assert verify(spec, model, x).ok


def test_an_operation_that_only_touches_inputs_costs_nothing() -> None:
    class SortsInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(torch.sort(x, -1).values)
            return y

    spec = spec_of(SortsInputs(), image(2, 3))
    assert spec.lost == ()
    assert [group.size for group in spec.groups] == [4]


def test_unused_entries_are_named_and_have_no_groups() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.spare, self.b = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            self.spare(x)
            y: Tensor = self.b(x)
            return y

    model, x = Spare(), image(2, 3)
    spec = spec_of(model, x)
    assert spec.unused == ("spare.weight", "spare.bias")
    assert [group.name for group in spec.groups] == ["a"]
    assert verify(spec, model, x).unused == spec.unused


def test_writing_in_place_into_a_part_is_sound() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x += self.b(x)
            x[:, 1] = 0.0
            y: Tensor = self.c(x.relu_())
            return y

    model, x = Writes(), image(2, 3)
    assert verify(spec_of(model, x), model, x).ok


def test_a_model_that_cannot_be_exported_says_how_to_help() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(DerivationError, match=r"Branches cannot be exported: .*branches on tensor values"):
        spec_of(Branches(), image(2, 3))
    with pytest.raises(DerivationError, match="check that model"):
        spec_of(nn.Linear(3, 2), image(2, 4))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        spec_of({"weight": torch.zeros(2)}, image(2, 3))  # type: ignore[arg-type]


def test_entries_that_share_memory_in_another_way_are_refused() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    second.weight.data = first.weight.data[:2]
    model = nn.Sequential(first, second)
    with pytest.raises(DerivationError, match=r"0\.weight.*1\.weight.*overlap"):
        spec_of(model, image(2, 4))


def test_skeletons_survive_json_and_name_only_what_exists() -> None:
    for factory, inputs in ARCHITECTURES.values():
        spec = spec_of(factory(), *inputs)
        again = WeightSpec.from_json(spec.to_json())
        assert again == spec
        assert again.operations == spec.operations
        for position, operation in enumerate(spec.operations):
            assert all(source < position for source in operation.inputs)
            assert all(entry in spec.axes for _, entry in operation.parameters)
        read = {entry for operation in spec.operations for _, entry in operation.parameters}
        assert read | set(spec.unused) == set(spec)


def test_the_skeleton_of_a_siren() -> None:
    factory, inputs = ARCHITECTURES["siren"]
    kinds = [operation.kind for operation in spec_of(factory(), *inputs).operations]
    assert kinds == ["input", *(["linear", "mul", "sin"] * 2), "linear", "output"]


def test_elements_act_on_the_state_dict_of_the_model() -> None:
    factory, inputs = ARCHITECTURES["resnet_small"]
    model = factory().double().eval()
    x = inputs[0].double()
    expected = model(x)
    element = GroupElement.random(spec_of(model, x), torch.Generator().manual_seed(0))
    model.load_state_dict(element @ model.state_dict())
    testing.assert_close(model(x), expected)
