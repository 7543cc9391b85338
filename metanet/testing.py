"""The test kit: laws to hold your own specs, layers and networks to.

    from metanet import testing
    testing.assert_function_preserved(spec, model, x)
    testing.assert_equivariant(layer, features)

Every assertion reports the worst error and where it is, and works in the precision of what it is given
(use float64).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metanet.axis import Axis, Fixed, Perm, concat, product
from metanet.group import GroupElement
from metanet.spec import KINDS, Freedom, Group, Kind, WeightSpec

TOLERANCE = 1e-9


def random_spec(
    generator: torch.Generator,
    *,
    num_groups: int = 3,
    num_entries: int = 5,
    max_size: int = 5,
    freedoms: bool = True,
) -> WeightSpec:
    """Draw a spec that uses every axis type, for property tests.

    Args:
        generator: source of randomness.
        num_groups: number of groups.
        num_entries: number of entries.
        max_size: largest size of a group or fixed axis (the smallest is 2).
        freedoms: whether groups may have freedoms beside permutation.

    Returns:
        A valid spec; it belongs to no real network, so only its algebra means something.
    """

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    groups = []
    for i in range(num_groups):
        chosen: tuple[Freedom, ...] = ()
        if freedoms and draw(2):
            menu = [
                (Freedom("sign"), Freedom("phase", 30.0)),
                (Freedom("even"),),
                (Freedom("positive_scale"),),
            ]
            chosen = menu[draw(len(menu))]
        groups.append(Group(f"g{i}", 2 + draw(max_size - 1), chosen))

    def atom() -> Axis:
        if draw(3) == 0:
            return Fixed(2 + draw(max_size - 1))
        role: Literal["out", "in"] = "in" if draw(2) else "out"
        return Perm(f"g{draw(num_groups)}", role)

    def axis() -> Axis:
        choice = draw(6)
        if choice == 0:
            return product(atom(), atom())
        if choice == 1:
            return concat(atom(), product(atom(), atom()))
        return atom()

    entries: list[tuple[str, tuple[Axis, ...]]] = [
        (f"entry.{i}", tuple(axis() for _ in range(1 + draw(3)))) for i in range(num_entries)
    ]
    entries += [(f"bias.{g.name}", (Perm(g.name, "bias" if g.freedoms else "out"),)) for g in groups]
    return WeightSpec(tuple(groups), tuple(entries))


def random_weights(
    spec: WeightSpec,
    generator: torch.Generator | None = None,
    *,
    leading: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Draw generic normal weights ``[*leading, *shape]`` for every entry of a spec."""
    return {
        name: torch.randn((*leading, *shape), generator=generator, dtype=dtype)
        for name, shape in spec.shapes.items()
    }


def assert_close(
    actual: object, expected: object, *, tolerance: float = TOLERANCE, what: str = "result"
) -> None:
    """Raise unless two tensors, mappings of tensors or features agree; report the worst error and where.

    The error is relative to the largest expected magnitude of each tensor (absolute below one).
    """
    __tracebackhide__ = True
    mine, theirs = _named(actual), _named(expected)
    if mine.keys() != theirs.keys():
        raise AssertionError(f"{what}: tensors {sorted(mine)} where {sorted(theirs)} were expected")
    worst, where = 0.0, ""
    for name, tensor in mine.items():
        other = theirs[name]
        if tensor.shape != other.shape:
            raise AssertionError(
                f"{what}: {name} has shape {list(tensor.shape)}, expected {list(other.shape)}"
            )
        if tensor.numel() == 0:
            continue
        error = (tensor.double() - other.double()).abs()
        error = torch.where(error.isnan(), torch.inf, error) / max(1.0, float(other.double().abs().max()))
        if float(error.max()) > worst:
            worst = float(error.max())
            index = torch.unravel_index(error.argmax(), error.shape)
            where = f"{name}{[int(i) for i in index]}"
    if worst > tolerance:
        raise AssertionError(f"{what}: worst relative error {worst:.3g} at {where} exceeds {tolerance:.1g}")


def assert_function_preserved(
    spec: WeightSpec,
    model: nn.Module,
    *args: Any,
    draws: int = 3,
    kinds: Iterable[Kind] | Literal["all"] = "all",
    seed: int = 0,
    tolerance: float = TOLERANCE,
    **kwargs: Any,
) -> None:
    """Law 1: raise unless random group elements leave the model's outputs unchanged.

    Unlike `metanet.verify` this uses the weights the model has.
    """
    __tracebackhide__ = True
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    expected = _floats(functional_call(model, state, args, kwargs))
    for draw in range(draws):
        element = GroupElement.random(spec, generator, kinds=kinds)
        actual = _floats(functional_call(model, element @ state, args, kwargs))
        assert_close(actual, expected, tolerance=tolerance, what=f"function under draw {draw} of {element!r}")


def assert_group_laws(
    spec: WeightSpec, weights: Mapping[str, Tensor], *, seed: int = 0, tolerance: float = TOLERANCE
) -> None:
    """Law 2: raise unless elements compose and invert as a group does, and the notation is read back."""
    __tracebackhide__ = True
    generator = torch.Generator().manual_seed(seed)
    for kinds in ((), KINDS):
        g = GroupElement.random(spec, generator, kinds=kinds)
        h = GroupElement.random(spec, generator, kinds=kinds)
        assert_close((g @ h) @ weights, g @ (h @ weights), tolerance=tolerance, what="composition")
        assert_close(g.inverse() @ (g @ weights), dict(weights), tolerance=tolerance, what="inverse")
        if not (g @ g.inverse()).allclose(GroupElement.identity(spec)):
            raise AssertionError(f"g ∘ g⁻¹ is not the identity for {g!r}")
    if WeightSpec.parse(str(spec)) != spec:
        raise AssertionError(f"the notation is not read back:\n{spec}\nbecame\n{WeightSpec.parse(str(spec))}")
    if WeightSpec.from_json(spec.to_json()) != spec:
        raise AssertionError("the JSON form is not read back")


def assert_equivariant(
    function: Callable[[Any], Any],
    features: Any,
    *,
    draws: int = 3,
    kinds: Iterable[Kind] = (),
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> None:
    """Law 3: raise unless ``function(g · x) == g · function(x)`` for random ``g``.

    Args:
        function: maps what a group element acts on (features, a state dict) to such a thing.
        features: the argument; features know their spec.
        draws: number of elements.
        kinds: freedoms beside permutation that the function declares.
        seed: of the elements.
        tolerance: relative.
    """
    __tracebackhide__ = True
    generator = torch.Generator().manual_seed(seed)
    expected = function(features)
    for draw in range(draws):
        element = GroupElement.random(features.spec, generator, kinds=kinds)
        actual = function(element @ features)
        assert_close(actual, element @ expected, tolerance=tolerance, what=f"equivariance, draw {draw}")


def assert_invariant(
    function: Callable[[Any], Any],
    features: Any,
    *,
    draws: int = 3,
    kinds: Iterable[Kind] = (),
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> None:
    """Law 3 for invariants: raise unless ``function(g · x) == function(x)`` for random ``g``."""
    __tracebackhide__ = True
    generator = torch.Generator().manual_seed(seed)
    expected = function(features)
    for draw in range(draws):
        element = GroupElement.random(features.spec, generator, kinds=kinds)
        assert_close(
            function(element @ features), expected, tolerance=tolerance, what=f"invariance, draw {draw}"
        )


def _floats(output: object) -> dict[str, Tensor]:
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not leaves:
        raise ValueError("the model returns no floating-point tensor, so there is nothing to compare")
    return {f"output[{i}]": leaf.detach() for i, leaf in enumerate(leaves)}


def _named(value: Any) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {"tensor": value.detach()}
    tensors: Mapping[str, Tensor] = value if isinstance(value, Mapping) else value.tensors
    return {name: tensor.detach() for name, tensor in tensors.items()}


def peak_allocation(function: Callable[[], object]) -> int:
    """Return the most bytes that tensors made during a call hold at a time; a library's own are not seen."""
    allocations = _Allocations()
    with allocations:
        function()
    return allocations.most


class _Allocations(TorchDispatchMode):
    """Counts the bytes of storages that are made under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held, self.most = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if id(storage) in given or id(storage) in self.known:
                continue
            self.known.add(id(storage))
            self.held += storage.nbytes()
            self.most = max(self.most, self.held)
            weakref.finalize(storage, self._free, id(storage), storage.nbytes())
        return result

    def _free(self, key: int, count: int) -> None:
        self.known.discard(key)
        self.held -= count


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
