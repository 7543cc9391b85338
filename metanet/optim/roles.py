"""Roles of parameters: what a learned optimizer takes a tensor for, read off the module that holds it."""

from __future__ import annotations

from torch import Tensor, nn

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def roles_of(model: nn.Module) -> dict[str, str]:
    """Return the role of every parameter by name: ``hidden``, ``output``, ``embedding`` or ``vector``.

    Vectors are what has one dimension longer than one; an embedding is the weight of an embedding module (a
    head tied to it is the same parameter and the same role); the output is the last matrix that was
    registered; all other tensors are hidden.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, EMBEDDINGS)
        for parameter in module.parameters(recurse=False)
    }
    roles: dict[str, str] = {}
    last: str | None = None
    for name, parameter in model.named_parameters():
        if not is_matrix(parameter):
            roles[name] = "vector"
        elif id(parameter) in embeddings:
            roles[name] = "embedding"
        else:
            roles[name], last = "hidden", name
    if last is not None:
        roles[last] = "output"
    return roles


def is_matrix(tensor: Tensor) -> bool:
    """Return whether a tensor has at least two dimensions longer than one; kernel offsets are columns."""
    return tensor.ndim >= 2 and tensor.shape[0] > 1 and tensor[0].numel() > 1
