import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metanet import WeightSpec, blocks_of, testing
from metanet.blocks import entry_blocks, join, split


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_join_undoes_split(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spec = testing.random_spec(generator)
    for name, tensor in testing.random_weights(spec, generator, leading=(2,)).items():
        parts = split(tensor, spec.axes[name], spec.sizes)
        blocks = list(entry_blocks(name, spec.axes[name]))
        assert [block.shape(spec.sizes) for block in blocks] == [tuple(part.shape[1:]) for part in parts]
        assert torch.equal(join(parts, spec.axes[name], spec.sizes, leading=1), tensor)


def test_fused_qkv_splits_into_its_parts() -> None:
    spec = WeightSpec.parse("groups  head: 2   qk: 3   v: 4   e: 5\nw  [(head qk) | (head qk) | (head v)] e")
    assert [(block.key, block.groups) for block in blocks_of(spec)] == [
        ("w[0]", ("head", "qk", "e")),
        ("w[1]", ("head", "qk", "e")),
        ("w[2]", ("head", "v", "e")),
    ]


def test_tied_parameters_give_their_blocks_once() -> None:
    entries = WeightSpec.parse("groups  e: 5\nembed  7 e\nhead  7 e")
    tied = WeightSpec(entries.groups, entries.entries, ties=(("embed", "head"),))
    assert [block.entry for block in blocks_of(tied)] == ["embed"]
    assert [block.entry for block in blocks_of(tied, tied=True)] == ["embed", "head"]
