"""A wrong spec must be found out, a right one not be blamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metanet import Verification, WeightSpec, spec_of, testing, verify
from tests.metanet.permutations import permutations_of
from tests.models import ARCHITECTURES, image


def edited(name: str, *changes: tuple[str, str]) -> tuple[WeightSpec, nn.Module, tuple[Tensor, ...]]:
    """Return a spec whose notation was changed by hand, with its model and inputs."""
    factory, inputs = ARCHITECTURES[name]
    model = factory()
    spec = spec_of(model, *inputs)
    text = str(spec if any("sign" in old for old, _ in changes) else permutations_of(spec))
    rows = [" ".join(row.split()) for row in text.splitlines()]
    for old, new in changes:
        assert old in rows, f"{old!r} is no row of\n" + "\n".join(rows)
        rows[rows.index(old)] = new
    return WeightSpec.parse("\n".join(rows)), model, inputs


QK, V = "(attn.head attn.qk)", "(attn.head attn.v)"

WRONG: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "running variance forgotten": ("cnn_bn", [("1.running_var layer0", "1.running_var 4")]),
    "running mean forgotten": ("resnet_small", [("bn1.running_mean conv1", "bn1.running_mean 4")]),
    "gain forgotten": ("depthwise_cnn", [("2.weight layer0", "2.weight 6")]),
    "bias forgotten": ("mlp", [("2.bias layer2", "2.bias 7")]),
    "positions outside channels": ("cnn_bn", [("8.weight 5 (layer4 4)", "8.weight 5 (4 layer4)")]),
    "q and v exchanged": (
        "mha",
        [
            (f"attn.in_proj_weight [{QK} | {QK} | {V}] embed",
             f"attn.in_proj_weight [{V} | {QK} | {QK}] embed"),
            (f"attn.in_proj_bias [{QK} | {QK} | {V}]", f"attn.in_proj_bias [{V} | {QK} | {QK}]"),
        ],
    ),
    "wrong frequency": (
        "siren",
        [("groups seq.0: 32 sign phase(30) seq.1: 32 sign phase(30)",
          "groups seq.0: 32 sign phase(29) seq.1: 32 sign phase(30)")],
    ),
    "an even activation that is odd": (
        "tanh_mlp", [("groups layer0: 8 sign layer2: 7 sign", "groups layer0: 8 even layer2: 7 sign")]
    ),
    "a sign of ReLU": (
        "mlp",
        [
            ("groups layer0: 8 layer2: 7", "groups layer0: 8 sign layer2: 7"),
            ("0.bias layer0", "0.bias layer0+"),
            ("2.weight layer2 layer0", "2.weight layer2 layer0'"),
        ],
    ),
    "recurrent columns fixed": (
        "gru_net",
        [("rnn.weight_hh_l0 [rnn.l0 | rnn.l0 | rnn.l0] rnn.l0",
          "rnn.weight_hh_l0 [rnn.l0 | rnn.l0 | rnn.l0] 5")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_spec_is_found_out(mistake: str) -> None:
    name, changes = WRONG[mistake]
    spec, model, inputs = edited(name, *changes)
    verification = verify(spec, model, *inputs)
    assert not verification.ok
    assert verification.max_error > 1e-3
    assert "NOT KEPT" in str(verification)


def test_at_initial_values_the_forgotten_statistic_would_pass() -> None:
    spec, model, (x,) = edited("cnn_bn", ("1.running_var layer0", "1.running_var 4"))
    testing.assert_function_preserved(spec, model.double().eval(), x.double())


def test_errors_are_told_apart_by_kind() -> None:
    name, changes = WRONG["wrong frequency"]
    spec, model, inputs = edited(name, *changes)
    verification = verify(spec, model, *inputs)
    assert verification.errors["permutation"] < 1e-9
    assert verification.errors["sign"] < 1e-9
    assert verification.errors["phase"] > 1e-2
    assert verify(spec, model, *inputs, kinds=["sign"]).ok
    assert set(verify(spec, model, *inputs, kinds=[]).errors) == {"permutation"}


def test_a_verification_says_what_it_found() -> None:
    factory, inputs = ARCHITECTURES["cnn_bn"]
    model = factory()
    verification = verify(spec_of(model, *inputs), model, *inputs)
    assert verification.ok
    assert verification.unused == ("1.num_batches_tracked",)
    assert {name for name in verification.controls if " " not in name} == {"layer0", "layer4"}
    assert min(verification.controls.values()) > 1e-2
    text = str(verification)
    assert "the function is kept" in text
    assert f"{len(verification.controls)} controls" in text
    assert "1.num_batches_tracked" in text
    assert Verification({}, {}, (), (), 0).max_error == 0.0


def test_verifying_changes_neither_the_model_nor_global_state() -> None:
    factory, inputs = ARCHITECTURES["resnet_small"]
    model = factory().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    spec = spec_of(model, *inputs)
    verify(spec, model, *inputs)
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_default_dtype() == torch.float32
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_seeds_fix_the_result() -> None:
    factory, inputs = ARCHITECTURES["siren"]
    model = factory()
    spec = spec_of(model, *inputs)
    assert verify(spec, model, *inputs, seed=4) == verify(spec, model, *inputs, seed=4)
    assert verify(spec, model, *inputs, seed=4) != verify(spec, model, *inputs, seed=5)


class Dead(nn.Module):
    """Two tensors whose units no output can tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x) * 0.0)
        return y


def test_a_group_that_the_outputs_do_not_tell_apart_is_named() -> None:
    model, x = Dead(), image(2, 3)
    verification = verify(spec_of(model, x), model, x)
    assert verification.ok
    assert verification.dead == ("a", "linear a of a.weight")
    assert "do not tell apart: a, linear a" in str(verification)


def test_what_a_module_casts_down_stays_in_float64() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).to(torch.float32)
            h = torch.softmax(h, -1, dtype=torch.float32) + torch.zeros(4, dtype=torch.bfloat16)
            with torch.autocast("cpu", torch.bfloat16):
                y: Tensor = self.b(h.to(x.dtype))
            return y

    model, x = Casts(), image(2, 3)
    spec = spec_of(model, x)
    assert [group.name for group in spec.groups] == ["a"]
    assert verify(spec, model, x).max_error < 1e-13


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "another model": (
        lambda: verify(spec_of(nn.Linear(3, 2), image(2, 3)), nn.Linear(3, 4), image(2, 3)),
        "wrong shapes",
    ),
    "no draws": (
        lambda: verify(spec_of(nn.Linear(3, 2), image(2, 3)), nn.Linear(3, 2), image(2, 3), draws=0),
        "at least one draw",
    ),
    "an unknown kind": (
        lambda: verify(
            spec_of(nn.Linear(3, 2), image(2, 3)), nn.Linear(3, 2), image(2, 3), kinds=["turn"]  # type: ignore[list-item]
        ),
        "unknown freedoms",
    ),
    "no floating-point output": (
        lambda: verify(spec_of(Argmax(), image(2, 3)), Argmax(), image(2, 3)),
        "nothing to compare",
    ),
    "outputs that are not finite": (
        lambda: verify(spec_of(Logarithm(), image(2, 3)), Logarithm(), image(2, 3)),
        "not finite",
    ),
}  # fmt: skip


class Argmax(nn.Linear):
    """Returns integers."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).argmax(-1)


class Logarithm(Argmax):
    """Returns NaN."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight).abs().neg().log()


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    act, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        act()


class Positions(nn.Module):
    """Reads whole numbers from the first column of floats, as Pix2Struct does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(4, 6), nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x[:, 1:]) + self.table(x[:, 0].long() - 10)))
        return y


def test_inputs_are_kept_where_random_ones_fail() -> None:
    model, x = Positions(), torch.tensor([[10.0, 0.3, -1.2], [13.0, 1.4, 0.2]])
    spec = spec_of(model, x)
    assert [group.size for group in spec.groups] == [6]
    verification = verify(spec, model, x)
    assert verification.ok
    assert verification.kept.startswith("IndexError: ")
    assert "the inputs were kept as they were given: with random ones, IndexError" in str(verification)
    assert not verification.dead
    rows = [" ".join(row.split()) for row in str(permutations_of(spec)).splitlines()]
    rows[rows.index("first.bias first")] = "first.bias 6"
    wrong = WeightSpec.parse("\n".join(rows))
    assert not verify(wrong, model, x).ok
    with pytest.raises(IndexError):
        verify(spec, model, x + 9)


def test_a_signal_outlives_many_layers() -> None:
    blocks = [part for _ in range(24) for part in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())]
    model, x = nn.Sequential(*blocks, nn.Linear(6, 2)), image(3, 6)
    verification = verify(spec_of(model, x), model, x, draws=1)
    assert verification.ok
    assert not verification.dead
    assert len([name for name in verification.controls if " " not in name]) == 24
    assert min(verification.controls.values()) > 1e-4


class Remembering(nn.Module):
    """Keeps a table that it made of its parameters, as LeViT does with its position biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)
        self.bias = nn.Parameter(torch.randn(6))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Remembering:
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
        self.last = self.cache["bias"]
        y: Tensor = self.second(torch.relu(self.first(x) + self.last))
        return y


def test_what_a_module_computed_from_its_parameters_is_forgotten() -> None:
    model, x = Remembering(), torch.randn(4, 3)
    spec = spec_of(model, x)
    assert [group.size for group in spec.groups] == [6]
    verification = verify(spec, model, x)
    assert verification.ok, str(verification)
    assert not model.cache
    assert not hasattr(model, "last")
    with torch.no_grad():
        model(x)
    kept = model.cache["bias"]
    assert verify(spec, model, x).errors["permutation"] < 1e-12
    assert model.cache["bias"] is kept
    assert model.last is kept
