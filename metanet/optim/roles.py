"""Roles of parameters: what a learned optimizer takes a tensor for, read off the module that holds it."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from metanet.axis import Perm, atoms
from metanet.spec import WeightSpec

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
TABLE = re.compile(r"(^|_)(pos|positions?|positional|tokens?|embeds?|embeddings?)(_|$)")
"""Own names of parameters that are looked up or added, not multiplied with: ``pos_embed``, ``cls_token``."""
WHOLE = (_ConvNd, nn.Bilinear)
"""Modules whose tensors of three or more dimensions are one matrix: (first dimension, all others)."""


def roles_of(model: nn.Module) -> dict[str, str]:
    """Return the role of every parameter by name: ``hidden``, ``output``, ``embedding`` or ``vector``.

    Vectors are what has one dimension longer than one; an embedding is the weight of an embedding module (a
    head tied to it is the same parameter and the same role) or a table of positions or tokens that a module
    holds itself; the output is the last matrix that was registered; all other tensors are hidden. Of stacked
    tensors (`stacked_of`) the slices decide.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, EMBEDDINGS)
        for parameter in module.parameters(recurse=False)
    }
    stacked = stacked_of(model)
    roles: dict[str, str] = {}
    last: str | None = None
    for name, parameter in model.named_parameters():
        if not is_matrix(parameter[0] if name in stacked else parameter):
            roles[name] = "vector"
        elif id(parameter) in embeddings or is_table(name):
            roles[name] = "embedding"
        else:
            roles[name], last = "hidden", name
    if last is not None:
        roles[last] = "output"
    return roles


def stacked_of(model: nn.Module, spec: WeightSpec | None = None) -> set[str]:
    """Return the names of parameters whose first dimension counts tensors: stacked experts ``[E, out, in]``.

    Those are tensors of three or more dimensions that a module holds which is no convolution, their biases
    ``[E, out]`` beside them, and what a spec says (`stacked_entries`); a spec also tells kernels that a
    module of another kind convolves with.
    """
    found: set[str] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, WHOLE):
            continue
        own = dict(module.named_parameters(recurse=False))
        deep = {n: p for n, p in own.items() if p.ndim >= 3 and p.shape[0] > 1 and not is_table(n)}
        counts = {p.shape[0] for p in deep.values()}
        biases = {n: p for n, p in own.items() if p.ndim == 2 and "bias" in n and p.shape[0] in counts}
        found |= {f"{prefix}.{name}" if prefix else name for name in (*deep, *biases)}
    if spec is None:
        return found
    kernels = {entry for op in spec.operations if "conv" in op.kind for _, entry in op.parameters}
    return (found | stacked_entries(spec)) - kernels


def stacked_entries(spec: WeightSpec) -> set[str]:
    """Return the entries whose first dimension is a group that groups of later ones are nested under."""
    found = set()
    for name, axes in spec.entries:
        if len(axes) < 2 or not isinstance(axes[0], Perm):
            continue
        later = {atom.group for axis in axes[1:] for atom in atoms(axis) if isinstance(atom, Perm)}
        if any(axes[0].group in spec.ancestors(group) for group in later):
            found.add(name)
    return found


def is_table(name: str) -> bool:
    """Return whether the own name of a parameter is that of a table of positions or tokens."""
    return TABLE.search(name.rpartition(".")[2]) is not None


def is_matrix(tensor: Tensor) -> bool:
    """Return whether a tensor has at least two dimensions longer than one; kernel offsets are columns."""
    return tensor.ndim >= 2 and tensor.shape[0] > 1 and tensor[0].numel() > 1
