"""The whole known group of small networks, freedoms and actions included, in full notation."""

from __future__ import annotations

import pytest

from metanet import WeightSpec, spec_of, verify
from tests.metanet.known_networks import MODELS

KNOWN: dict[str, str] = {
    "ReLU MLP": """
        groups   layer0: 4 positive_scale   layer2: 5 positive_scale
        0.weight  layer0 3
        0.bias  layer0+
        2.weight  layer2 layer0'
        2.bias  layer2+
        4.weight  2 layer2'
        4.bias  2""",
    "leaky ReLU": """
        groups   layer0: 4 positive_scale
        0.weight  layer0 3
        0.bias  layer0+
        2.weight  2 layer0'
        2.bias  2""",
    "tanh MLP": """
        groups   layer0: 4 sign
        0.weight  layer0 3
        0.bias  layer0+
        2.weight  2 layer0'
        2.bias  2""",
    "identity activation": """
        groups   layer0: 4
        0.weight  layer0 3
        0.bias  layer0
        1.weight  2 layer0
        1.bias  2
        actions
        linear layer0
        - 0.weight  layer0^ 3
        - 0.bias  layer0^
        - 1.weight  2 layer0^-1""",
    "gated MLP (SwiGLU)": """
        groups   gate: 5
        gate.weight  gate 3
        gate.bias  gate
        up.weight  gate 3
        up.bias  gate
        down.weight  2 gate
        down.bias  2
        actions
        scale gate
        - up.weight  gate^ 3
        - up.bias  gate^
        - down.weight  2 gate^-1""",
    "gated MLP (ReGLU)": """
        groups   gate: 5
        gate.weight  gate 3
        gate.bias  gate
        up.weight  gate 3
        up.bias  gate
        down.weight  2 gate
        down.bias  2
        actions
        scale gate
        - up.weight  gate^ 3
        - up.bias  gate^
        - down.weight  2 gate^-1
        positive_scale gate
        - gate.weight  gate^ 3
        - gate.bias  gate^
        - down.weight  2 gate^-1""",
    "convolution, batch norm, ReLU": """
        groups   layer0: 4
        0.weight  layer0 3 3 3
        0.bias  layer0
        1.weight  layer0
        1.bias  layer0
        1.running_mean  layer0
        1.running_var  layer0
        1.num_batches_tracked
        4.weight  2 layer0 1 1
        4.bias  2
        actions
        scale layer0
        - 0.weight  layer0^ 3 3 3
        - 0.bias  layer0^
        - 1.weight  layer0^-1
        - 1.running_mean  layer0^
        positive_scale layer0
        - 1.weight  layer0^
        - 1.running_var  layer0^2~1e-05
        positive_scale layer0
        - 1.weight  layer0^
        - 1.bias  layer0^
        - 4.weight  2 layer0^-1 1 1""",
    "batch norm without gain": """
        groups   layer0: 4
        0.weight  layer0 3 3 3
        0.bias  layer0
        1.running_mean  layer0
        1.running_var  layer0
        1.num_batches_tracked
        3.weight  2 layer0 1 1
        3.bias  2
        actions
        positive_scale layer0
        - 0.weight  layer0^ 3 3 3
        - 0.bias  layer0^
        - 1.running_mean  layer0^
        - 3.weight  2 layer0^-1 1 1
        positive_scale layer0
        - 1.running_var  layer0^2~1e-05
        - 3.weight  2 layer0^ 1 1""",
    "residual block with batch norm": """
        groups   stem: 4   conv1: 3
        stem.weight  stem 3 1 1
        stem.bias  stem
        head.weight  2 stem 1 1
        head.bias  2
        conv1.weight  conv1 stem 3 3
        bn1.weight  conv1
        bn1.bias  conv1
        bn1.running_mean  conv1
        bn1.running_var  conv1
        bn1.num_batches_tracked
        conv2.weight  stem conv1 3 3
        bn2.weight  stem
        bn2.bias  stem
        bn2.running_mean  stem
        bn2.running_var  stem
        bn2.num_batches_tracked
        actions
        scale stem
        - conv2.weight  stem^ conv1 3 3
        - bn2.weight  stem^-1
        - bn2.running_mean  stem^
        positive_scale stem
        - stem.weight  stem^ 3 1 1
        - stem.bias  stem^
        - head.weight  2 stem^-1 1 1
        - conv1.weight  conv1 stem^-1 3 3
        - bn2.weight  stem^
        - bn2.bias  stem^
        positive_scale stem
        - bn2.weight  stem^
        - bn2.running_var  stem^2~1e-05
        scale conv1
        - conv1.weight  conv1^ stem 3 3
        - bn1.weight  conv1^-1
        - bn1.running_mean  conv1^
        positive_scale conv1
        - bn1.weight  conv1^
        - bn1.running_var  conv1^2~1e-05
        positive_scale conv1
        - bn1.weight  conv1^
        - bn1.bias  conv1^
        - conv2.weight  stem conv1^-1 3 3""",
    "LSTM": """
        groups   rnn.l0: 4
        rnn.weight_ih_l0  [rnn.l0 | rnn.l0 | rnn.l0 | rnn.l0] 3
        rnn.weight_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0 | rnn.l0] rnn.l0
        rnn.bias_ih_l0  [rnn.l0 | rnn.l0 | rnn.l0 | rnn.l0]
        rnn.bias_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0 | rnn.l0]
        head.weight  2 rnn.l0
        head.bias  2
        actions
        sign rnn.l0
        - rnn.weight_ih_l0  [rnn.l0 | rnn.l0 | rnn.l0^ | rnn.l0] 3
        - rnn.weight_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0^ | rnn.l0] rnn.l0
        - rnn.weight_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0 | rnn.l0] rnn.l0^
        - rnn.bias_ih_l0  [rnn.l0 | rnn.l0 | rnn.l0^ | rnn.l0]
        - rnn.bias_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0^ | rnn.l0]
        - head.weight  2 rnn.l0^""",
    "GRU": """
        groups   rnn.l0: 4
        rnn.weight_ih_l0  [rnn.l0 | rnn.l0 | rnn.l0] 3
        rnn.weight_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0] rnn.l0
        rnn.bias_ih_l0  [rnn.l0 | rnn.l0 | rnn.l0]
        rnn.bias_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0]
        head.weight  2 rnn.l0
        head.bias  2
        actions
        sign rnn.l0
        - rnn.weight_ih_l0  [rnn.l0 | rnn.l0 | rnn.l0^] 3
        - rnn.weight_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0^] rnn.l0
        - rnn.weight_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0] rnn.l0^
        - rnn.bias_ih_l0  [rnn.l0 | rnn.l0 | rnn.l0^]
        - rnn.bias_hh_l0  [rnn.l0 | rnn.l0 | rnn.l0^]
        - head.weight  2 rnn.l0^""",
    "hand-written attention": """
        groups   q.head: 2   q.qk: 3 under q.head   v.v: 3 under q.head
        q.weight  (q.head q.qk) 3
        q.bias  (q.head q.qk)
        k.weight  (q.head q.qk) 3
        k.bias  (q.head q.qk)
        v.weight  (q.head v.v) 3
        v.bias  (q.head v.v)
        o.weight  2 (q.head v.v)
        o.bias  2
        actions
        linear q.head q.qk
        - q.weight  (q.head^ q.qk^) 3
        - q.bias  (q.head^ q.qk^)
        - k.weight  (q.head^ q.qk^-1) 3
        - k.bias  (q.head^ q.qk^-1)
        linear q.head v.v
        - v.weight  (q.head^ v.v^) 3
        - v.bias  (q.head^ v.v^)
        - o.weight  2 (q.head^ v.v^-1)
        shift q.head q.qk
        - k.bias  (q.head^ q.qk^)""",
    "LoRA": """
        groups   base: 4 positive_scale   a: 2
        base.weight  base 3
        base.bias  base+
        head.weight  2 base'
        head.bias  2
        a.weight  a 3
        b.weight  base a
        actions
        linear a
        - a.weight  a^ 3
        - b.weight  base a^-1""",
    "cosine INR": """
        groups   a: 4 even phase(5)   b: 3 even phase(5)
        a.weight  a 2
        a.bias  a+
        b.weight  b a'
        b.bias  b+
        c.weight  1 b'
        c.bias  1""",
    "sines of one half, bias added apart": """
        groups   w.0: 4 sign phase(7)   w.1: 4 sign
        w  3 [w.0 | w.1]
        b  [w.0+ | w.1+]
        c.weight  2 [w.0' | w.1']
        c.bias  2""",
    "pre-norm transformer block": """
        groups   embed: 8   qkv.head: 2   qkv.qk: 3 under qkv.head   qkv.v: 3 under qkv.head   up: 5
        embed.weight  embed 3
        embed.bias  embed
        n1.weight  embed
        n1.bias  embed
        qkv.weight  [(qkv.head qkv.qk) | (qkv.head qkv.qk) | (qkv.head qkv.v)] embed
        qkv.bias  [(qkv.head qkv.qk) | (qkv.head qkv.qk) | (qkv.head qkv.v)]
        out.weight  embed (qkv.head qkv.v)
        out.bias  embed
        n2.weight  embed
        n2.bias  embed
        up.weight  up embed
        up.bias  up
        down.weight  embed up
        down.bias  embed
        head.weight  2 embed
        head.bias  2
        actions
        scale embed
        - n1.weight  embed^
        - n1.bias  embed^
        - qkv.weight  [(qkv.head qkv.qk) | (qkv.head qkv.qk) | (qkv.head qkv.v)] embed^-1
        scale embed
        - n2.weight  embed^
        - n2.bias  embed^
        - up.weight  up embed^-1
        linear qkv.head qkv.qk
        - qkv.weight  [(qkv.head^ qkv.qk^) | (qkv.head qkv.qk) | (qkv.head qkv.v)] embed
        - qkv.weight  [(qkv.head qkv.qk) | (qkv.head^ qkv.qk^-1) | (qkv.head qkv.v)] embed
        - qkv.bias  [(qkv.head^ qkv.qk^) | (qkv.head qkv.qk) | (qkv.head qkv.v)]
        - qkv.bias  [(qkv.head qkv.qk) | (qkv.head^ qkv.qk^-1) | (qkv.head qkv.v)]
        linear qkv.head qkv.v
        - qkv.weight  [(qkv.head qkv.qk) | (qkv.head qkv.qk) | (qkv.head^ qkv.v^)] embed
        - qkv.bias  [(qkv.head qkv.qk) | (qkv.head qkv.qk) | (qkv.head^ qkv.v^)]
        - out.weight  embed (qkv.head^ qkv.v^-1)
        shift qkv.head qkv.qk
        - qkv.bias  [(qkv.head qkv.qk) | (qkv.head^ qkv.qk^) | (qkv.head qkv.v)]""",
    "root mean square norm": """
        groups   embed: 6   up: 5
        n  embed
        embed.weight  embed 3
        embed.bias  embed
        up.weight  up embed
        up.bias  up
        down.weight  embed up
        down.bias  embed
        head.weight  2 embed
        head.bias  2
        actions
        scale embed
        - n  embed^
        - up.weight  up embed^-1
        sign embed
        - embed.weight  embed^ 3
        - embed.bias  embed^
        - up.weight  up embed^
        - down.weight  embed^ up
        - down.bias  embed^
        - head.weight  2 embed^""",
}


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_known_group(name: str) -> None:
    factory, x = MODELS[name]
    model = factory()
    spec = spec_of(model, x)
    assert str(spec) == str(WeightSpec.parse(KNOWN[name]))
    verification = verify(spec, model, x, draws=2)
    assert verification.ok, str(verification)
    assert not verification.dead, str(verification)
