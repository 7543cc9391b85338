"""One small network per rule: its whole group, and that it keeps the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from metanet import spec_of, verify
from metanet.rules import RULES, Call, Value, rule
from tests.metanet.permutations import same_units
from tests.models import image, tokens


class Net(nn.Module):
    """Parameters by name and a function of them and of the inputs."""

    def __init__(self, function: Callable[..., Any], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.p = nn.ParameterDict()
        for name, shape in shapes.items():
            self.p[name] = nn.Parameter(torch.randn(*shape))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.p, *inputs)


class Steps(nn.Module):
    """A recurrent network's outputs without its final states."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return y


def check(model: nn.Module, inputs: tuple[Tensor, ...], known: str) -> None:
    """Compare the derived spec with the known one, in notation, and prove it."""
    spec = spec_of(model, *inputs)
    assert same_units(spec, known)
    verification = verify(spec, model, *inputs)
    assert verification.ok, str(verification)
    assert not verification.dead, str(verification)


x23, x234, x2c = image(2, 3), image(2, 3, 4), image(2, 3, 8, 8)

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], str]] = {
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 1)),
        (image(2, 3, 7),),
        """groups    layer0: 4
           0.weight  layer0 3 3
           0.bias    layer0
           2.weight  2 layer0 1
           2.bias    2""",
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 4, 2), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(4 * 8, 2)),
        (image(2, 1, 5, 5, 5),),
        """groups    layer0: 4
           0.weight  layer0 1 2 2 2
           0.bias    layer0
           3.weight  2 (layer0 8)
           3.bias    2""",
    ),
    "conv_transpose2d": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, stride=2)),
        (image(2, 3, 4, 4),),
        """groups    layer0: 4
           0.weight  3 layer0 2 2
           0.bias    layer0
           2.weight  layer0 2 2 2
           2.bias    2""",
    ),
    "grouped conv_transpose2d": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.Conv2d(4, 2, 1)),
        (image(2, 3, 4, 4),),
        """groups    layer0.group: 2  layer0.within: 3 under layer0.group  layer1: 2 under layer0.group
           0.weight  (layer0.group layer0.within) 3 1 1
           0.bias    (layer0.group layer0.within)
           1.weight  (layer0.group layer0.within) layer1 2 2
           1.bias    (layer0.group layer1)
           2.weight  2 (layer0.group layer1) 1 1
           2.bias    2""",
    ),
    "depthwise with a multiplier": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1)),
        (x2c,),
        """groups    layer0: 4  layer1.within: 2 under layer0
           0.weight  layer0 3 1 1
           0.bias    layer0
           1.weight  (layer0 layer1.within) 1 3 3
           1.bias    (layer0 layer1.within)
           2.weight  2 (layer0 layer1.within) 1 1
           2.bias    2""",
    ),
    "instance_norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Conv2d(4, 2, 1)
        ),
        (x2c,),
        """groups    layer0: 4
           0.weight  layer0 3 3 3
           0.bias    layer0
           1.weight  layer0
           1.bias    layer0
           3.weight  2 layer0 1 1
           3.bias    2""",
    ),
    "layer_norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        (x23,),
        """groups    layer0: 4
           0.weight  layer0 3
           0.bias    layer0
           1.weight  layer0
           1.bias    layer0
           2.weight  2 layer0
           2.bias    2""",
    ),
    "layer_norm over channels and positions": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm((4, 6, 6)), nn.Conv2d(4, 2, 1)),
        (x2c,),
        """groups    layer0: 4
           0.weight  layer0 3 3 3
           0.bias    layer0
           1.weight  layer0 6 6
           1.bias    layer0 6 6
           2.weight  2 layer0 1 1
           2.bias    2""",
    ),
    "rms_norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Linear(4, 2)),
        (x23,),
        """groups    layer0: 4
           0.weight  layer0 3
           0.bias    layer0
           1.weight  layer0
           2.weight  2 layer0
           2.bias    2""",
    ),
    "group_norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        (x2c,),
        """groups    layer0.group: 2  layer0.within: 3 under layer0.group
           0.weight  (layer0.group layer0.within) 3 3 3
           0.bias    (layer0.group layer0.within)
           1.weight  (layer0.group layer0.within)
           1.bias    (layer0.group layer0.within)
           3.weight  2 (layer0.group layer0.within) 1 1
           3.bias    2""",
    ),
    "weight_norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)),
        (x23,),
        """groups    layer0: 4
           0.bias    layer0
           0.parametrizations.weight.original0  layer0 1
           0.parametrizations.weight.original1  layer0 3
           2.weight  2 layer0
           2.bias    2""",
    ),
    "prelu": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2), nn.PReLU()),
        (x23,),
        """groups    layer0: 4
           0.weight  layer0 3
           0.bias    layer0
           1.weight  layer0
           2.weight  2 layer0
           2.bias    2
           3.weight  1""",
    ),
    "glu": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2)),
        (x23,),
        """groups    layer0: 4
           0.weight  [layer0 | layer0] 3
           0.bias    [layer0 | layer0]
           2.weight  2 layer0
           2.bias    2""",
    ),
    "pixel_shuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1)),
        (x2c,),
        """groups    layer0: 3
           0.weight  (layer0 4) 3 1 1
           0.bias    (layer0 4)
           2.weight  2 layer0 1 1
           2.bias    2""",
    ),
    "pixel_unshuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelUnshuffle(2), nn.Conv2d(16, 2, 1)),
        (x2c,),
        """groups    layer0: 4
           0.weight  layer0 3 1 1
           0.bias    layer0
           2.weight  2 (layer0 4) 1 1
           2.bias    2""",
    ),
    "upsample and padding": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.ZeroPad2d(1),
            nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
        ),
        (x2c,),
        """groups    layer0: 4
           0.weight  layer0 3 3 3
           0.bias    layer0
           3.weight  2 layer0 3 3
           3.bias    2""",
    ),
    "unfold": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Unfold(2), nn.Flatten(), nn.Linear(16 * 49, 2)),
        (x2c,),
        """groups    layer0: 4
           0.weight  layer0 3 1 1
           0.bias    layer0
           3.weight  2 (layer0 196)
           3.bias    2""",
    ),
    "max_pool1d and softmax": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.MaxPool1d(2), nn.Softmax(1), nn.Conv1d(4, 2, 1)),
        (image(2, 3, 9),),
        """groups    layer0: 4
           0.weight  layer0 3 2
           0.bias    layer0
           3.weight  2 layer0 1
           3.bias    2""",
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(11, 4), nn.Dropout(), nn.Linear(4, 2)),
        (tokens(),),
        """groups    layer0: 4
           0.weight  11 layer0
           2.weight  2 layer0
           2.bias    2""",
    ),
    "projected lstm": (
        lambda: Steps(nn.LSTM(3, 5, 2, proj_size=4, batch_first=True)),
        (image(2, 7, 3),),
        """groups    rnn.l0: 5  rnn.l0_2: 4  rnn.l1: 5
           rnn.weight_ih_l0  [rnn.l0 | rnn.l0 | rnn.l0 | rnn.l0] 3
           rnn.weight_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0 | rnn.l0] rnn.l0_2
           rnn.bias_ih_l0    [rnn.l0 | rnn.l0 | rnn.l0 | rnn.l0]
           rnn.bias_hh_l0    [rnn.l0 | rnn.l0 | rnn.l0 | rnn.l0]
           rnn.weight_hr_l0  rnn.l0_2 rnn.l0
           rnn.weight_ih_l1  [rnn.l1 | rnn.l1 | rnn.l1 | rnn.l1] rnn.l0_2
           rnn.weight_hh_l1  [rnn.l1 | rnn.l1 | rnn.l1 | rnn.l1] 4
           rnn.bias_ih_l1    [rnn.l1 | rnn.l1 | rnn.l1 | rnn.l1]
           rnn.bias_hh_l1    [rnn.l1 | rnn.l1 | rnn.l1 | rnn.l1]
           rnn.weight_hr_l1  4 rnn.l1""",
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    factory, inputs, known = LAYERS[name]
    check(factory(), inputs, known)


def heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def timm_attention(p: Any, x: Tensor) -> Tensor:
    """One projection, viewed as three times heads times width."""
    q, k, v = F.linear(x, p["qkv"]).reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return F.linear(merged(F.scaled_dot_product_attention(q, k, v)), p["out"])


def neox_attention(p: Any, x: Tensor) -> Tensor:
    """One projection, viewed as heads times three widths."""
    q, k, v = F.linear(x, p["qkv"]).view(2, 5, 2, 12).transpose(1, 2).chunk(3, -1)
    return F.linear(merged(F.scaled_dot_product_attention(q, k, v)), p["out"])


def bloom_attention(p: Any, x: Tensor) -> Tensor:
    """One projection, viewed as heads times three times width; scores by hand, with a bias per position."""
    qkv = F.linear(x, p["qkv"]).view(2, 5, 2, 3, 4)
    q, k, v = (qkv[..., i, :].transpose(1, 2) for i in range(3))
    scores = q @ k.transpose(-1, -2) / 2 + torch.arange(5)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    return F.linear(merged(torch.softmax(scores + mask, -1) @ v), p["out"])


def grouped_query_attention(p: Any, x: Tensor) -> Tensor:
    """Four query heads share two heads of keys and values, causally."""
    q, k, v = heads(F.linear(x, p["q"]), 4), heads(F.linear(x, p["k"]), 2), heads(F.linear(x, p["v"]), 2)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return F.linear(merged(y), p["out"])


def repeated_query_attention(p: Any, x: Tensor) -> Tensor:
    """The same, with keys and values repeated beforehand."""
    q, k, v = heads(F.linear(x, p["q"]), 4), heads(F.linear(x, p["k"]), 2), heads(F.linear(x, p["v"]), 2)
    k, v = k.repeat_interleave(2, 1), v[:, :, None].expand(-1, -1, 2, -1, -1).reshape(2, 4, 5, 3)
    return F.linear(merged(F.scaled_dot_product_attention(q, k, v, is_causal=True)), p["out"])


GQA = """groups  p.q.head: 2  p.q.query: 2 under p.q.head  p.q.qk: 4 under p.q.head  p.v.v: 3 under p.q.head
         p.q    (p.q.head p.q.query p.q.qk) 3
         p.k    (p.q.head p.q.qk) 3
         p.v    (p.q.head p.v.v) 3
         p.out  2 (p.q.head p.q.query p.v.v)"""


def rotary_attention(p: Any, x: Tensor) -> Tensor:
    """Positions rotate pairs of q and k, which fixes their width."""
    angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.1]).repeat(2)

    def rotate(t: Tensor) -> Tensor:
        return t * angle.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * angle.sin()

    q, k, v = (heads(F.linear(x, p[name]), 2) for name in "qkv")
    return F.linear(merged(F.scaled_dot_product_attention(rotate(q), rotate(k), v)), p["out"])


def gathered(p: Any, x: Tensor) -> Tensor:
    """Picks by index, along and across the hidden units."""
    h = F.linear(x, p["a"])
    first = torch.gather(F.linear(h, p["b"]), 1, torch.tensor([[0, 1], [2, 2]]))
    second = F.linear(h, p["c"]).index_select(0, torch.tensor([1, 0]))
    return first + F.linear(second, p["d"])


def selected(p: Any, x: Tensor) -> Tensor:
    """One unit and one range of a hidden layer are taken apart from the others."""
    h = torch.relu(F.linear(x, p["a"]))
    return h[:, 2:3] * F.linear(h[:, 3:5], p["b"]) + h[:, 0, None]


FUNCTIONS: dict[str, tuple[Net, tuple[Tensor, ...], str]] = {
    "qkv as (3 head width)": (
        Net(timm_attention, qkv=(24, 3), out=(2, 8)),
        (image(2, 5, 3),),
        """groups  p.qkv.head: 2  p.qkv.qk: 4 under p.qkv.head  p.qkv.v: 4 under p.qkv.head
           p.qkv  [(p.qkv.head p.qkv.qk) | (p.qkv.head p.qkv.qk) | (p.qkv.head p.qkv.v)] 3
           p.out  2 (p.qkv.head p.qkv.v)""",
    ),
    "qkv as (head 3 width), cut": (
        Net(neox_attention, qkv=(24, 3), out=(2, 8)),
        (image(2, 5, 3),),
        """groups  p.qkv.head: 2  p.qkv.qk: 4 under p.qkv.head  p.qkv.v: 4 under p.qkv.head
           p.qkv  (p.qkv.head [p.qkv.qk | p.qkv.qk | p.qkv.v]) 3
           p.out  2 (p.qkv.head p.qkv.v)""",
    ),
    "qkv as (head 3 width), picked": (
        Net(bloom_attention, qkv=(24, 3), out=(2, 8)),
        (image(2, 5, 3),),
        """groups  p.qkv.head: 2  p.qkv.qk: 4 under p.qkv.head  p.qkv.v: 4 under p.qkv.head
           p.qkv  (p.qkv.head [p.qkv.qk | p.qkv.qk | p.qkv.v]) 3
           p.out  2 (p.qkv.head p.qkv.v)""",
    ),
    "grouped queries": (
        Net(grouped_query_attention, q=(16, 3), k=(8, 3), v=(6, 3), out=(2, 12)),
        (image(2, 5, 3),),
        GQA,
    ),
    "grouped queries, repeated": (
        Net(repeated_query_attention, q=(16, 3), k=(8, 3), v=(6, 3), out=(2, 12)),
        (image(2, 5, 3),),
        GQA,
    ),
    "rotary positions": (
        Net(rotary_attention, q=(8, 3), k=(8, 3), v=(6, 3), out=(2, 6)),
        (image(2, 5, 3),),
        """groups  p.q.head: 2  p.v.v: 3 under p.q.head
           p.q    (p.q.head 4) 3
           p.k    (p.q.head 4) 3
           p.v    (p.q.head p.v.v) 3
           p.out  2 (p.q.head p.v.v)""",
    ),
    "gather and index_select": (
        Net(gathered, a=(4, 3), b=(3, 4), c=(5, 4), d=(2, 5)),
        (x23,),
        """groups  p.a: 4  p.c: 5
           p.a  p.a 3
           p.b  3 p.a
           p.c  p.c p.a
           p.d  2 p.c""",
    ),
    "select and slice": (
        Net(selected, a=(7, 3), b=(2, 2)),
        (x23,),
        """groups  p.a.0: 2  p.a.1: 2
           p.a  [3 | p.a.0 | p.a.1] 3
           p.b  2 p.a.0""",
    ),
    "matmul and addmm": (
        Net(lambda p, x: torch.addmm(p["c"], torch.relu(x @ p["a"]), p["b"]), a=(3, 4), b=(4, 2), c=(2,)),
        (x23,),
        """groups  p.a: 4
           p.a  3 p.a
           p.b  p.a 2
           p.c  2""",
    ),
    "einsum": (
        Net(
            lambda p, x: torch.einsum(
                "...hd,hdo->...o", torch.einsum("bi,hid->bhd", x, p["a"]).relu(), p["b"]
            ),
            a=(5, 3, 4),
            b=(5, 4, 2),
        ),
        (x23,),
        """groups  p.a: 5 under p.a_2  p.a_2: 4
           p.a  p.a 3 p.a_2
           p.b  p.a p.a_2 2""",
    ),
    "bilinear": (
        Net(
            lambda p, x: F.bilinear(F.linear(x, p["a"]), F.linear(x, p["b"]), p["c"], p["d"]),
            a=(4, 3), b=(5, 3), c=(2, 4, 5), d=(2,),
        ),
        (x23,),
        """groups  p.a: 4  p.b: 5
           p.a  p.a 3
           p.b  p.b 3
           p.c  2 p.a p.b
           p.d  2""",
    ),
    "reductions": (
        Net(
            lambda p, x: F.linear(F.linear(x, p["a"]), p["b"]).amax(1)
            + F.linear(x, p["c"]).logsumexp(-1).mean(1)[:, None],
            a=(4, 4), b=(5, 4), c=(6, 4),
        ),
        (x234,),
        """groups  p.a: 4  p.c: 6
           p.a  p.a 4
           p.b  5 p.a
           p.c  p.c 4""",
    ),
    "order along an axis": (
        Net(
            lambda p, x: F.linear(F.linear(x, p["a"]).cumsum(-1), p["b"])
            + F.linear(F.linear(x, p["c"]).flip(-1).roll(1, -1), p["d"])
            + F.linear(x, p["e"]).max(-1).indices[:, None],
            a=(4, 3), b=(2, 4), c=(4, 3), d=(2, 4), e=(5, 3),
        ),
        (x23,),
        """groups
           p.a  4 3
           p.b  2 4
           p.c  4 3
           p.d  2 4
           p.e  5 3""",
    ),
    "where, stack and a learned mask": (
        Net(
            lambda p, x: F.linear(
                torch.stack([torch.where(x[:, :1] > 0, F.linear(x, p["a"]), p["b"]), p["b"].expand(2, -1)]),
                p["c"],
            ),
            a=(4, 3), b=(4,), c=(2, 4),
        ),
        (x23,),
        """groups  p.a: 4
           p.a  p.a 3
           p.b  p.a
           p.c  2 p.a""",
    ),
    "repeat": (
        Net(lambda p, x: F.linear(F.linear(x, p["a"]).repeat(1, 3), p["b"]), a=(4, 3), b=(2, 12)),
        (x23,),
        """groups  p.a: 4  p.b.0: 3 under p.a
           p.a  p.a 3
           p.b  2 (p.b.0 p.a)""",
    ),
    "a product of neighbours fixes nothing else": (
        Net(
            lambda p, x: F.linear(F.linear(x, p["a"]).unflatten(1, (2, 3)).sum(1), p["b"]), a=(6, 3), b=(2, 3)
        ),
        (x23,),
        """groups  p.a.0: 2 under p.a.1  p.a.1: 3
           p.a  (p.a.0 p.a.1) 3
           p.b  2 p.a.1""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    model, inputs, known = FUNCTIONS[name]
    check(model, inputs, known)


def cell(kind: str) -> Callable[[Any, Tensor], Tensor]:
    step = getattr(torch, kind)

    def run(p: Any, x: Tensor) -> Tensor:
        h: Any = p["h"].expand(2, 5)
        h = (h, h) if kind == "lstm_cell" else h
        for t in range(2):
            h = step(x[:, t], h, p["ih"], p["hh"], p["bi"], p["bh"])
        return F.linear(h[0] if kind == "lstm_cell" else h, p["out"])

    return run


@pytest.mark.parametrize(("kind", "gates"), [("lstm_cell", 4), ("gru_cell", 3), ("rnn_tanh_cell", 1)])
def test_cells(kind: str, gates: int) -> None:
    model = Net(
        cell(kind),
        h=(1, 5),
        ih=(gates * 5, 3),
        hh=(gates * 5, 5),
        bi=(gates * 5,),
        bh=(gates * 5,),
        out=(2, 5),
    )
    rows = f"[{' | '.join(['p.h'] * gates)}]" if gates > 1 else "p.h"
    known = f"""groups  p.h: 5
        p.h    1 p.h
        p.ih   {rows} 3
        p.hh   {rows} p.h
        p.bi   {rows}
        p.bh   {rows}
        p.out  2 p.h"""
    check(model, (image(2, 2, 3),), known)


def test_regions_are_entered() -> None:
    def run(p: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = F.linear(x, p["a"])
        with torch.no_grad():
            y: Tensor = F.linear(x.float(), p["b"])
        return y

    model = Net(run, a=(4, 3), b=(2, 4))
    assert [group.name for group in spec_of(model, x23).groups] == ["p.a"]


def test_a_rule_for_an_operation_of_ones_own() -> None:
    name = "metanet_tests::scale_channels"
    with torch.library._scoped_library("metanet_tests", "DEF") as library:
        library.define("scale_channels(Tensor input, Tensor gain) -> Tensor")
        library.impl("scale_channels", lambda x, gain: x * gain[:, None], "CompositeExplicitAutograd")
        operation = torch.ops.metanet_tests.scale_channels.default
        assert name.split("::")[1] in str(operation)
        model = Net(
            lambda p, x: F.conv1d(operation(F.conv1d(x, p["a"]), p["gain"]), p["b"]),
            a=(4, 3, 1), gain=(4,), b=(2, 4, 1),
        )  # fmt: skip
        without = spec_of(model, x234)
        assert not without.groups
        assert without.lost[0].operation == str(operation)

        @rule(str(operation))
        def scale_channels(call: Call) -> Value:
            x, gain = call.tensor("input"), call.tensor("gain")
            channels = call.unify(x.dims[1], gain.dims[0])
            return call.result("scale_channels", (x.dims[0], channels, x.dims[2]), parameters=("gain",))

        try:
            check(
                model, (x234,),
                """groups  p.a: 4
                   p.a     p.a 3 1
                   p.gain  p.a
                   p.b     2 p.a 1""",
            )  # fmt: skip
        finally:
            del RULES[str(operation)]


def test_a_rule_that_does_not_cover_a_form_degrades() -> None:
    known = RULES["aten.tanh.default"]
    try:

        @rule("aten.tanh.default")
        def wrong(call: Call) -> Value:
            return call.result("tanh", call.tensor("self").dims[1:])

        spec = spec_of(
            Net(lambda p, x: F.linear(torch.tanh(F.linear(x, p["a"])), p["b"]), a=(4, 3), b=(2, 4)), x23
        )
    finally:
        RULES["aten.tanh.default"] = known
    assert not spec.groups
    assert "its rule gives" in spec.lost[0].reason


@pytest.mark.parametrize("error", [StopIteration(), ValueError("a form"), KeyError("dim"), AssertionError()])
def test_whatever_way_a_rule_fails_degrades(error: Exception) -> None:
    known = RULES["aten.tanh.default"]
    try:

        @rule("aten.tanh.default")
        def wrong(call: Call) -> Value:
            raise error

        spec = spec_of(
            Net(lambda p, x: F.linear(torch.tanh(F.linear(x, p["a"])), p["b"]), a=(4, 3), b=(2, 4)), x23
        )
    finally:
        RULES["aten.tanh.default"] = known
    assert not spec.groups
    assert f"its rule does not cover this form: {type(error).__name__}(" in spec.lost[0].reason


def test_parts_whose_sizes_depend_on_values_are_fixed() -> None:
    """Experts take the tokens that chose them: tokens are told apart, features are not."""

    def forward(p: dict[str, Tensor], x: Tensor) -> Tensor:
        chosen = F.one_hot(F.linear(x, p["router"]).argmax(-1), 2).sum(0).tolist()
        for size in chosen:
            torch._check(size >= 0)
        hidden = F.linear(x, p["a"])
        first, second = hidden.split(chosen)
        return torch.cat([F.linear(first.relu(), p["b"]), F.linear(second.relu(), p["b"]).neg()])

    model = Net(forward, router=(2, 3), a=(4, 3), b=(2, 4))
    spec = spec_of(model, x23)
    assert [group.size for group in spec.groups] == [4]
    assert not spec.lost
    assert verify(spec, model, x23).ok
