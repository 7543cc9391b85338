"""Orthogonal matching of RMSNorm transformers whose gains are folded."""

from __future__ import annotations

import pytest
import torch

from metanet import GroupElement, spec_of
from metanet.freedoms.folding import fold_gains
from metanet.matching import orthogonal_matching, weight_matching
from tests.models import ARCHITECTURES


def test_a_turned_stream_is_found_with_the_permutations() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        use_cache=False,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.arange(6)[None]
    folded = fold_gains(model, spec_of(model, input_ids=ids))
    spec = spec_of(folded, input_ids=ids)
    b = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in folded.state_dict().items()}
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1), kinds=["orthogonal"])
    a = planted @ b
    found = orthogonal_matching(spec, a, b)
    assert found.after < 1e-8 * found.before
    assert all(x >= y for x, y in zip(found.history, found.history[1:], strict=False))
    moved = found.element @ b
    assert all(torch.allclose(moved[name], a[name], atol=1e-5) for name in a)
    # Permutations alone cannot undo a rotation.
    assert weight_matching(spec, a, b).after > 0.2 * found.before
    folded.load_state_dict(b)
    with torch.no_grad():
        expected = folded(input_ids=ids).logits
        folded.load_state_dict(moved)
        assert torch.allclose(folded(input_ids=ids).logits, expected, atol=1e-4)


def test_a_spec_without_the_freedom_is_refused() -> None:
    factory, inputs = ARCHITECTURES["mlp"]
    model = factory()
    with pytest.raises(ValueError, match="fold_gains"):
        orthogonal_matching(spec_of(model, *inputs), model.state_dict(), model.state_dict())
