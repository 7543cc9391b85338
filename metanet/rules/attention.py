"""Scaled dot-product attention."""

from __future__ import annotations

from metanet.derivation.dimension import fuse
from metanet.rules.registry import Call, Value, rule


@rule("aten.scaled_dot_product_attention.default")
def attention(call: Call) -> Value:
    """Unify heads across q ``[…, h, l, e]``, k ``[…, h, s, e]``, v ``[…, h, s, f]``, and widths of q and k.

    With grouped queries the heads of q are a product of those of k and v and of the queries that share them.
    """
    q, k, v = (call.tensor(name) for name in ("query", "key", "value"))
    mask = call.optional("attn_mask")
    call.unify(q.dims[-1], k.dims[-1])
    source = call.unify(k.dims[-2], v.dims[-2])
    target = q.dims[-2]
    shared = list(call.broadcast([Value(k.dims[:-2]), Value(v.dims[:-2])]))
    heads = list(q.dims[:-2])
    if call.argument("enable_gqa", False) and heads and heads[-1].size != shared[-1].size:
        kv, rest = call.split(heads[-1], [shared[-1].size, heads[-1].size // shared[-1].size])
        shared[-1] = fuse([call.unify(kv, shared[-1]), rest])
    heads = list(call.broadcast([Value(tuple(heads)), Value(tuple(shared))]))
    if bool(call.argument("is_causal", False)):
        target, source = call.fix(target), call.fix(source)
    dims = (*heads, target, v.dims[-1])
    if mask is not None:
        call.broadcast([Value((*heads, target, source)), mask])
    extra = {
        "heads": q.dims[-3].size if len(q.dims) > 2 else 1,
        "kv_heads": k.dims[-3].size if len(k.dims) > 2 else 1,
    }
    return call.result("sdpa", dims, attributes=("is_causal", "scale"), extra=extra)
