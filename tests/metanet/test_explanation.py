from __future__ import annotations

import torch
from torch import Tensor, nn

from metanet import WeightSpec, spec_of
from metanet.explanation import advice, explain
from metanet.spec import LostFreedom
from tests.models import ARCHITECTURES


@torch.library.custom_op("metanet_tests::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    """An operation for which there is no rule."""
    return x.flip(-1)


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_the_chain_of_a_residual_stream_is_told() -> None:
    build, example = ARCHITECTURES["vit_small"]
    spec = spec_of(build(), *example)
    explanation = explain(spec)
    assert [group.name for group in explanation.groups] == [group.name for group in spec.groups]
    stream = explanation.groups[0]
    assert stream.writer == ("patch.weight", "conv2d")
    assert stream.joined()["cat"] == ("cls",)
    assert "pos" in stream.joined()["add"]
    assert "encoder.layers.0.linear2.weight" in stream.joined()["add"]
    assert "head.weight" in stream.joined()["linear"]
    assert stream.occurs == spec.group_to_axes[stream.name]
    assert stream.acts[0] == "permutations of its 16 units"


def test_all_entries_of_a_group_end_up_joined() -> None:
    for name in ("mlp", "resnet_small", "densenet_small", "lstm_lm", "vit_small"):
        build, example = ARCHITECTURES[name]
        spec = spec_of(build(), *example)
        firsts = {tie[0] for tie in spec.ties}
        tied = {n for tie in spec.ties for n in tie} - firsts
        for group in explain(spec).groups:
            carriers = {entry for entry, _ in group.occurs} - tied
            assert group.writer is not None
            joined = {entry for joint in group.joints for entry in joint.entries} | {group.writer[0]}
            assert carriers <= joined, (name, group.name)
            assert sum(len(joint.entries) - 1 for joint in group.joints) == len(carriers) - 1


def test_freedoms_and_actions_are_put_into_words() -> None:
    siren = explain(spec_of(ARCHITECTURES["siren"][0](), torch.zeros(5, 2)))
    assert any(act.startswith("phase(30): ") for act in siren.groups[0].acts)
    vit = explain(spec_of(ARCHITECTURES["vit_small"][0](), ARCHITECTURES["vit_small"][1][0]))
    head = next(group for group in vit.groups if group.name.endswith("head"))
    assert any("invertible matrix" in act and "in_proj_weight" in act for act in head.acts)


def test_the_cost_of_an_operation_comes_with_advice() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.idle = nn.Linear(2, 4), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = mystery(self.first(x))
            return result

    told = explain(spec_of(Reversed(), torch.zeros(1, 2))).to_dict()
    [lost] = told["lost"]
    assert lost["operation"] == "metanet_tests.mystery.default"
    assert lost["entries"] == ["first.weight", "first.bias"]
    assert "metanet.rules.rule" in lost["help"]
    assert told["unused"] == ["idle.weight", "idle.bias"]
    reasons = {
        "its rule does not cover this form: AssertionError()": "other forms",
        "parts that do not align": "same factors",
        "cut within a product": "cut it where its parts meet",
        "something else": "by hand",
    }
    for reason, word in reasons.items():
        assert word in advice(LostFreedom("op", ("w",), reason))


def test_a_saved_spec_explains_itself_and_a_notation_says_less() -> None:
    build, example = ARCHITECTURES["resnet_small"]
    spec = spec_of(build(), *example)
    assert explain(WeightSpec.from_json(spec.to_json())).to_dict() == explain(spec).to_dict()
    bare = explain(WeightSpec.parse("groups h: 4\na h 2\nb 1 h"))
    assert bare.groups[0].writer is None
    assert bare.groups[0].occurs == (("a", 0), ("b", 1))
