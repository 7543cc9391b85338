"""Slow, independent oracles for the equivariant engine, and the specs its tests run on."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from metanet.features import BlockLayout, WeightFeatures, feature_layout
from metanet.nn.basis import View
from metanet.nn.linear import EquivariantLinear
from metanet.spec import WeightSpec

SPECS: dict[str, WeightSpec] = {
    "siren": WeightSpec.parse(
        """
        groups   h1: 4 sign phase(30)   h2: 3 sign phase(30)
        0.weight   h1 2
        0.bias     h1+
        1.weight   h2 h1'
        1.bias     h2+
        2.weight   1 h2'
        2.bias     1
        """
    ),
    "mlp": WeightSpec.parse(
        """
        groups   h1: 2   h2: 3
        0.weight   h1 2
        0.bias     h1
        1.weight   h2 h1
        1.bias     h2
        2.weight   2 h2
        2.bias     2
        """
    ),
    "rnn": WeightSpec.parse(
        """
        groups   h: 4
        ih   h 2
        hh   h h
        b    h
        out  2 h
        """
    ),
    "attention": WeightSpec.parse(
        """
        groups   e: 3   head: 2   qk: 2   v: 3
        q   (head qk) e
        k   (head qk) e
        v   (head v) e
        o   e (head v)
        """
    ),
    "fused": WeightSpec.parse(
        """
        groups   e: 3   head: 2   d: 2
        in_proj   [(head d) | (head d) | (head d)] e
        bias      [(head d) | (head d) | (head d)]
        out       e (head d)
        """
    ),
    "nested": WeightSpec.parse(
        """
        groups   e: 2   head: 2   qk: 3 under head
        q   (head qk) e
        b   (head qk)
        g   head
        """
    ),
    "apart": WeightSpec.parse(
        """
        groups   e: 2   head: 3   qk: 2 under head
        q   (head e qk) 2
        k   e (head 2 qk)
        """
    ),
    "chain": WeightSpec.parse(
        """
        groups   head: 2   query: 2 under head   qk: 2 under query   v: 2 under head
        q   (head query qk) 3
        o   (head query v)
        k   (head v)
        """
    ),
    "experts": WeightSpec.parse(
        """
        groups   d: 2   f: 3 under e   e: 2
        up      e [f | f] d
        down    d f e
        router  e d
        """
    ),
    "cells": WeightSpec.parse(
        """
        groups   head: 2   unit: 4 under head
        recurrent   unit head unit
        bias        (head unit)
        """
    ),
    "conv": WeightSpec.parse(
        """
        groups   c1: 3   c2: 2
        0.weight   c1 2 3 3
        0.bias     c1
        1.weight   c2 c1 3 3
        1.num_batches_tracked
        2.weight   3 (c2 4)
        """
    ),
    "square": WeightSpec.parse(
        """
        groups   h: 5
        w    h h 2 h
        """
    ),
}
"""Small specs; every group has at least as many units as one term has distinct indices of it."""


def random_features(
    spec: WeightSpec, batch: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> WeightFeatures:
    """Return a batch of random weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.arange(batch)
        if name.endswith("num_batches_tracked")
        else torch.randn(batch, *shape, generator=generator, dtype=dtype)
        for name, shape in spec.shapes.items()
    }
    return WeightFeatures.from_state_dict(spec, tensors, batched=True)


def group_elements(spec: WeightSpec) -> Iterator[dict[str, Tensor]]:
    """Yield every permutation of every group, nested ones in every unit of their parent on its own."""
    choices = []
    for group in spec.groups:
        copies = spec.copies(group.name)
        single = [torch.tensor(p) for p in itertools.permutations(range(group.size))]
        choices.append(
            [
                torch.stack(rows) if group.parent else rows[0]
                for rows in itertools.product(single, repeat=copies)
            ]
        )
    for combination in itertools.product(*choices):
        yield dict(zip((group.name for group in spec.groups), combination, strict=True))


def fixed_points(element: Mapping[str, Tensor], block: BlockLayout, sizes: Mapping[str, int]) -> int:
    """Return how many indices of a block's group axes an element leaves in place."""
    stays = torch.ones([sizes[g] for g in block.groups], dtype=torch.bool)
    for axis, group in enumerate(block.groups):
        chain = [axis]
        while block.parents[chain[0]] >= 0:
            chain.insert(0, block.parents[chain[0]])
        shape = [sizes[block.groups[a]] for a in chain]
        same = (element[group] == torch.arange(sizes[group])).reshape(shape)
        for index in itertools.product(*map(range, shape)):
            if not same[index]:
                where: list[int | slice] = [slice(None)] * stays.ndim
                for place, i in zip(chain, index, strict=True):
                    where[place] = i
                stays[tuple(where)] = False
    return int(stays.sum())


def dim_hom(spec: WeightSpec, before: Sequence[int] | None = None, after: Sequence[int] | None = None) -> int:
    """Return dim Hom_G = mean over g of tr(g on V) · tr(g on W), with widths (1 by default) per block."""
    layout = feature_layout(spec)
    total, count = 0, 0
    for element in group_elements(spec):
        traces = [fixed_points(element, block, spec.sizes) for block in layout]
        v = sum(t * w for t, w in zip(traces, before or [1] * len(layout), strict=True))
        w = sum(t * w for t, w in zip(traces, after or [1] * len(layout), strict=True))
        total, count = total + v * w, count + 1
    assert total % count == 0
    return total // count


def equivariant_space(matrices: Sequence[Tensor]) -> Tensor:
    """Return an orthonormal basis ``[dim, n·n]`` of all X with P X = X P for the given permutations P."""
    n = matrices[0].shape[0]
    quadratic = torch.zeros(n * n, n * n, dtype=torch.float64)
    for p in matrices:
        conjugation = torch.kron(p, p)
        quadratic += 2 * torch.eye(n * n, dtype=torch.float64) - conjugation - conjugation.T
    values, vectors = torch.linalg.eigh(quadratic)
    space: Tensor = vectors[:, values < 1e-8].T
    return space


def flatten(features: WeightFeatures) -> Tensor:
    """Return all values of every network in a row: ``[b, n]``."""
    return torch.cat([features.tensors[block.key].flatten(1) for block in features.layout], 1)


def unflatten(like: WeightFeatures, rows: Tensor) -> list[Tensor]:
    """Undo `flatten`, giving the blocks' tensors."""
    shapes = [like.tensors[block.key].shape[1:] for block in like.layout]
    parts = rows.split([prod(shape) for shape in shapes], 1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def layer_maps(layer: EquivariantLinear, like: WeightFeatures) -> Tensor:
    """Return the matrix of every coefficient of a layer: ``[coefficients, n_in · n_out]``."""
    n = flatten(like).shape[1]
    inputs = unflatten(like, torch.eye(n, dtype=torch.float64))
    maps = []
    for number, weight in enumerate(layer.weights):
        for at in range(weight.numel()):
            for other, w in enumerate(layer.weights):
                w.data.zero_()
                if other == number:
                    w.data.view(-1)[at] = 1.0
            with torch.no_grad():
                maps.append(torch.cat([y.flatten(1) for y in layer(inputs)], 1).flatten())
    return torch.stack(maps)


def naive_linear(layer: EquivariantLinear, blocks: Sequence[Tensor]) -> list[Tensor]:
    """Apply a layer with one einsum per term, i.e. per pair of a reading and a writing."""
    plan = layer.plan
    outputs = [
        torch.zeros(*block.shape[:-1], width, dtype=block.dtype)
        for block, width in zip(blocks, layer.out_widths, strict=True)
    ]
    for signature, weight in zip(plan.basis.signatures, layer.weights, strict=True):
        row = 0
        for reading in signature.readings:
            column = 0
            width = layer.in_widths[reading.block]
            for writing in signature.writings:
                out = layer.out_widths[writing.block]
                matrix = weight[row : row + width, column : column + out]
                pooled = _read(blocks[reading.block], reading) @ matrix
                if not signature.groups:
                    pooled = pooled + layer.bias[column : column + out] / len(signature.readings)
                outputs[writing.block] += _write(pooled, writing, outputs[writing.block].shape)
                column += out
            row += width
    return outputs


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _read(block: Tensor, view: View) -> Tensor:
    names = {axis: LETTERS[c] for c, members in enumerate(view.merged) for axis in members}
    count = prod(block.shape[1 + view.merged[c][0]] for c in view.dropped)
    source = "".join(names[axis] for axis in range(block.ndim - 2))
    kept = "".join(LETTERS[c] for c in view.kept)
    pooled: Tensor = torch.einsum(f"y{source}z->y{kept}z", block)
    return pooled / count


def _write(values: Tensor, view: View, shape: torch.Size) -> Tensor:
    operands, texts = [values], ["Y" + "".join(LETTERS[c] for c in view.kept) + "Z"]
    for c, members in enumerate(view.merged):
        n = shape[1 + members[0]]
        delta = torch.zeros([n] * (len(members) + 1), dtype=values.dtype)
        for i in range(n):
            delta[(i,) * (len(members) + 1)] = 1
        if c not in view.kept:
            delta = delta.sum(0)
        operands.append(delta)
        kept = LETTERS[c] if c in view.kept else ""
        texts.append(kept + "".join(LETTERS[axis].upper() for axis in members))
    target = "".join(LETTERS[axis].upper() for axis in range(len(shape) - 2))
    written: Tensor = torch.einsum(f"{','.join(texts)}->Y{target}Z", *operands)
    return written


def joint_partition_maps(spec: WeightSpec) -> Tensor:
    """Return every term of UNF's Algorithm 1 as a matrix: ``[terms, n · n]``, one channel, no fixed axes.

    A term is a set partition of the slots of one output and one input block that joins equal groups only;
    its matrix is one where slots of a class agree.
    """
    layout = feature_layout(spec)
    sizes = [prod(spec.sizes[g] for g in block.groups) for block in layout]
    maps = []
    for target, out in enumerate(layout):
        for source, inp in enumerate(layout):
            slots = (*inp.groups, *out.groups)
            shape = [spec.sizes[g] for g in slots]
            indices = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
            for classes in _set_partitions(slots):
                value = torch.ones(shape, dtype=torch.float64)
                for members in classes:
                    for axis in members[1:]:
                        value = value * (indices[axis] == indices[members[0]])
                whole = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
                rows = slice(sum(sizes[:source]), sum(sizes[: source + 1]))
                columns = slice(sum(sizes[:target]), sum(sizes[: target + 1]))
                whole[rows, columns] = value.reshape(sizes[source], sizes[target])
                maps.append(whole.flatten())
    return torch.stack(maps)


def _set_partitions(slots: Sequence[str]) -> Iterator[list[list[int]]]:
    def grow(at: int, classes: list[list[int]]) -> Iterator[list[list[int]]]:
        if at == len(slots):
            yield classes
            return
        for i, members in enumerate(classes):
            if slots[members[0]] == slots[at]:
                yield from grow(at + 1, [*classes[:i], [*members, at], *classes[i + 1 :]])
        yield from grow(at + 1, [*classes, [at]])

    return grow(0, [])
