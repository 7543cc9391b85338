"""Rules: what each operation demands of the dimensions of its arguments, one family per file.

A rule is a function of one `Call`; `rule` registers it under the names of the operations in `RULES`. It
unifies what an operation contracts or adds, cuts and splits what it reshapes, fixes what it tells apart by
position, and returns its result with the operation's record for the skeleton. A user's own operation needs
one such function, in your own code; `rule` shows one. Integers that are indices of a dimension (which experts
a router chose) are its *labels*: a rule says with ``labels=`` what becomes of them. An operation without a
rule fixes all it touches, and the spec names it in `WeightSpec.lost`.

The vocabulary of the skeleton (`metanet.skeleton.Operation`). Every operation has one result; ``parameters``
are named by the role in brackets; a parameter that is computed first (weight norm), or used as a plain
tensor, is an input instead, the latter through an operation of kind ``parameter``.

=====================================  ======================================================================
kind                                   attributes
=====================================  ======================================================================
input; output                          name; slot (one operation for every tensor that is returned)
constant                               value (if it is the same everywhere) or values (up to 16), repeats
parameter (value)                      a state-dict entry used as a tensor
linear (weight, bias)                  weight ``[out, in]``
matmul (weight); addmm (weight, bias)  weight ``[in, out]``; matmul of two values has two inputs
einsum                                 equation
conv1d/2d/3d (weight, bias)            stride, padding, dilation, groups
conv_transpose1d/2d/3d (weight, bias)  stride, padding, output_padding, groups, dilation
batch_norm, instance_norm              eps, momentum; (weight, bias, running_mean, running_var)
layer_norm, rms_norm, group_norm       eps, normalized_shape; num_groups; (weight, bias)
embedding (weight)                     padding_idx
lstm, gru, rnn_tanh, rnn_relu          has_biases, num_layers, bidirectional, batch_first; (weight_ih_l0, …)
sdpa                                   is_causal, scale, heads, kv_heads; inputs q, k, v[, mask]
add, sub, mul, div, pow, …             scalar (the other operand if it is a number), alpha, reverse
relu, tanh, sin, gelu, …               their own (negative_slope, approximate, min, max, …)
softmax, log_softmax, cumsum           dim
max_pool1d/2d/3d, avg_pool1d/2d/3d     kernel_size, stride, padding, dilation, ceil_mode, count_include_pad
adaptive_avg_pool1d/2d/3d, …           output_size
mean, sum, amax, amin, var, norm, …    dims, keepdim
reshape, transpose                     –; dims, the permutation
expand, repeat, flip, roll, pad        dims, shifts; mode, value
sort, argsort, topk, kthvalue, median  dim, k, descending, largest; getitem 1 is where the values were
argmax, argmin, max, min               dims, keepdim; getitem 1 is where they were
gather, index, one_hot                 dim; inputs are the value and the places
scatter, index_add, index_copy, …      dim, reduce, value; inputs are the value, the places, what is written
index_put, masked_scatter              –; inputs are the value, places or mask, what is written
histc; grouped_mm                      –; rows [s, i], one matrix [i, o] per block of rows, where blocks end
fft, ifft, rfft, irfft, fft2, …        dims, norm: these are mixed
channel_shuffle, tensordot             groups; dims, a tuple per input
embedding_bag (weight)                 mode
cat, stack; select, slice              dim; index; start, stop, step (split and chunk give slices)
cond                                   –; inputs are the condition and the results of both branches
getitem                                index: a further result of an operation (final states of an lstm)
=====================================  ======================================================================

Dimensions of attributes are counted from the front. Dropout, casts and copies are left out.
"""

from metanet.rules import (
    attention,
    broadcast,
    complex_numbers,
    concat,
    conv,
    distance,
    embedding,
    experts,
    fourier,
    indexing,
    linear,
    matrices,
    norm,
    ordering,
    pointwise,
    pooling,
    recurrent,
    reduction,
    reshape,
    scatter,
    windows,
)
from metanet.rules.registry import RULES, Call, Value, rule

FAMILIES = (
    attention,
    broadcast,
    complex_numbers,
    concat,
    conv,
    distance,
    embedding,
    experts,
    fourier,
    indexing,
    linear,
    matrices,
    norm,
    ordering,
    pointwise,
    pooling,
    recurrent,
    reduction,
    reshape,
    scatter,
    windows,
)

__all__ = ["FAMILIES", "RULES", "Call", "Value", "rule"]
