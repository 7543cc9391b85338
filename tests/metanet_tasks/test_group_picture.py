from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metanet import WeightSpec, spec_of
from metanet_tasks.cli import main
from metanet_tasks.group_picture import draw_groups, plot_groups
from metanet_tasks.group_structure import Folded, Step, bands_of, shortened, steps_of
from tests.models import ARCHITECTURES

SIREN = ["inspect", "metanet_zoo.architectures:Siren", "--input", "f32[5,2]"]


class Residual(nn.Module):
    """A residual stream with a number of equal layers, one of which may be wider."""

    def __init__(self, depth: int, wide: int | None = None) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {"up": nn.Linear(8, 9 if i == wide else 6), "down": nn.Linear(9 if i == wide else 6, 8)}
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            x = x + layer["down"](torch.relu(layer["up"](x)))
        result: Tensor = self.head(x)
        return result


def test_steps_read_and_write_groups_in_the_order_of_the_network() -> None:
    spec = spec_of(nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Linear(8, 3)), torch.zeros(1, 2))
    [group] = spec.sizes
    first, norm, last = steps_of(spec)
    assert first == Step("0", writes=(group,), source=2, layer=("", 0))
    assert isinstance(norm, Step)
    assert norm.works_on == (group,)
    assert last == Step("2", reads=(group,), target=3, layer=("", 2))


def test_layers_that_repeat_are_folded() -> None:
    steps = steps_of(spec_of(Residual(9), torch.zeros(1, 3)))
    [fold] = [step for step in steps if isinstance(step, Folded)]
    assert fold == Folded(6, "layers.1")
    assert [name for name, _, _ in bands_of(steps)] == ["layers.0", "layers.1", "layers.8"]
    assert [step.label for step in steps if isinstance(step, Step)][-2:] == ["layers.8.down", "head"]
    few = steps_of(spec_of(Residual(3), torch.zeros(1, 3)))
    assert not [step for step in few if isinstance(step, Folded)]


def test_every_group_is_a_bar_and_every_parameter_a_mark() -> None:
    for name in ("mlp", "resnet_small", "vit_small", "lstm_lm", "grouped_cnn"):
        build, example = ARCHITECTURES[name]
        spec = spec_of(build(), *example)
        [axis] = draw_groups(spec, name).axes
        steps = [step for step in steps_of(spec) if isinstance(step, Step)]
        assert len(axis.patches) >= len({group for step in steps for group in step.touches})
        assert {group for step in steps for group in step.touches} == set(spec.sizes)
        labels = [text.get_text() for text in axis.get_xticklabels()]
        assert len(labels) == len(steps)


def test_bars_that_share_a_lane_do_not_overlap() -> None:
    [axis] = draw_groups(spec_of(Residual(3), torch.zeros(1, 3))).axes
    bars = [patch.get_bbox() for patch in axis.patches if hasattr(patch, "get_boxstyle")]  # type: ignore[attr-defined]
    assert len(bars) == 4
    for i, a in enumerate(bars):
        for b in bars[i + 1 :]:
            assert a.y0 != b.y0 or a.x1 <= b.x0 or b.x1 <= a.x0


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_command_writes_a_picture(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / f"groups{suffix}"
    assert main([*SIREN, "--plot", str(target), "--explain"]) == 0
    start = target.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in start or b"<?xml" in start
    shown = capsys.readouterr().out
    assert f"wrote {target}" in shown
    assert "from: written first by seq.0.weight (linear)" in shown
    assert "acts: permutations of its 32 units" in shown
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    spec = WeightSpec.parse("groups h: 4\na h 2\nb 1 h")
    plot_groups(spec, tmp_path / "a.svg")
    with pytest.raises(ValueError, match=r"\.svg, \.png, \.pdf, found 'a.jpeg'"):
        plot_groups(spec, tmp_path / "a.jpeg")
    with pytest.raises(ValueError, match="no groups"):
        plot_groups(WeightSpec.parse("groups\na 4 2"), tmp_path / "a.svg")


def test_names_lose_what_all_of_them_begin_with() -> None:
    assert shortened(["a.b.c", "a.b.d.e"]) == {"a.b.c": "c", "a.b.d.e": "d.e"}
    assert shortened(["a.b"]) == {"a.b": "b"}
    assert shortened([]) == {}
