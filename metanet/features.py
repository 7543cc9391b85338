"""WeightFeatures: a batch of weights, or of anything shaped like them, as one tensor per block.

A block's tensor is ``[b, *group axes, width]``. Its fixed axes lie in the width, fixed-major and
channel-minor: ``width = prod(fixed) * channels``; hidden features have the fixed axes folded away, so that
``width = channels``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from metanet.axis import Fixed, Perm
from metanet.blocks import Block, blocks_of, join, split
from metanet.group import GroupElement, Representation
from metanet.spec import WeightSpec

COUNTERS = ("num_batches_tracked",)
"""Last parts of the names of entries that count and are carried along instead of being features."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """What a layer needs to know of one block.

    Args:
        key: the block's name.
        groups: of its group axes, in order; a group may occur more than once.
        parents: for every group axis, the position of the axis its group is nested under, or -1.
        fixed: number of fixed indices, ``prod(block.fixed)``.
    """

    key: str
    groups: tuple[str, ...]
    parents: tuple[int, ...]
    fixed: int


def feature_spec(spec: WeightSpec) -> WeightSpec:
    """Return the spec without its counters (`num_batches_tracked`), which are no features.

    It is not cached: specs of the same entries compare equal and may have different operations.
    """
    names = [name for name in spec if name.rpartition(".")[2] not in COUNTERS]
    return spec if len(names) == len(spec) else spec.select(names)


@lru_cache(maxsize=256)
def feature_layout(spec: WeightSpec) -> tuple[BlockLayout, ...]:
    """Return the layout of every block of a spec's features, in order."""
    return tuple(_layout(block, spec) for block in blocks_of(feature_spec(spec)))


def _layout(block: Block, spec: WeightSpec) -> BlockLayout:
    parents = block.parents(spec)
    units = [i for i, atom in enumerate(block.atoms) if isinstance(atom, Perm)]
    nested = tuple(units.index(parents[i]) if parents[i] >= 0 else -1 for i in units)
    return BlockLayout(block.key, block.groups, nested, prod(block.fixed))


@dataclass(frozen=True, eq=False)
class WeightFeatures:
    """A batch of features on the weights a spec describes.

    Args:
        spec: of the features; entries that are carried are not in it.
        tensors: block key -> ``[b, *group axes, width]``.
        channels: number of channels C.
        folded: hidden features: the fixed axes are folded away and width = C; otherwise prod(fixed) · C.
        representation: what parameter-like features are: parameters, gradients, momenta, second moments.
        batched: whether `to_state_dict` keeps the batch dimension.
        carried: entries without features (integers), ``[b, *shape]``, taken along.
        names: all entries in the order of the state dict.

    Raises:
        ValueError: a tensor is missing, unexpected or of the wrong shape.
    """

    spec: WeightSpec
    tensors: Mapping[str, Tensor]
    channels: int = 1
    folded: bool = False
    representation: Representation = "parameter"
    batched: bool = True
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        layout = feature_layout(self.spec)
        keys = [block.key for block in layout]
        if set(keys) != set(self.tensors):
            missing, extra = sorted(set(keys) - set(self.tensors)), sorted(set(self.tensors) - set(keys))
            raise ValueError(
                f"features have one tensor per block of the spec; missing {missing}, unexpected {extra}"
            )
        b = {tensor.shape[0] if tensor.ndim else None for tensor in self.tensors.values()}
        if len(b) > 1:
            raise ValueError(f"all blocks need one batch size; found {sorted(b, key=str)}")
        for block in layout:
            expected = (*(self.spec.sizes[group] for group in block.groups), self.width(block))
            found = tuple(self.tensors[block.key].shape[1:])
            if found != expected:
                raise ValueError(
                    f"block {block.key!r}: expected [b, {', '.join(map(str, expected))}], "
                    f"found {list(self.tensors[block.key].shape)}"
                )

    @property
    def layout(self) -> tuple[BlockLayout, ...]:
        """Layout of every block, in the order of the layers."""
        return feature_layout(self.spec)

    def width(self, block: BlockLayout) -> int:
        """Return the width of a block: C, or prod(fixed) · C where fixed axes are not folded away."""
        return self.channels if self.folded else block.fixed * self.channels

    @classmethod
    def from_state_dict(
        cls,
        spec: WeightSpec,
        state_dict: Mapping[str, Tensor],
        batched: bool = False,
        representation: Representation = "parameter",
    ) -> WeightFeatures:
        """Take a state dict apart into blocks; tied entries give theirs once.

        Args:
            spec: of the model that wrote it.
            state_dict: entry -> ``[*shape]``, or ``[models, *shape]`` if batched. Entries that are no
                floating-point numbers are carried along and have no features.
            batched: whether the tensors have a leading dimension of models; otherwise b = 1.
            representation: parameters, or how a gradient or moment of them transforms.

        Raises:
            ValueError: names or shapes do not fit the spec.
        """
        spec.check({name: tuple(t.shape) for name, t in state_dict.items()}, leading=int(batched))
        entries = {name: state_dict[name] if batched else state_dict[name][None] for name in spec}
        counts = {name: tensor.shape[0] for name, tensor in entries.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the entries stack different numbers of models: {counts}")
        usual = feature_spec(spec)
        named = [name for name in usual if entries[name].is_floating_point()]
        if not named:
            raise ValueError("the state dict holds no floating-point entries")
        kept = usual if len(named) == len(usual) else usual.select(named)
        tensors: dict[str, Tensor] = {}
        grouped = _by_entry(kept)
        for name, blocks in grouped.items():
            parts = split(entries[name], kept.axes[name], kept.sizes)
            tensors.update((block.key, _fold(t, block)) for block, t in zip(blocks, parts, strict=True))
        carried = {name: tensor for name, tensor in entries.items() if name not in kept.axes}
        return cls(
            kept,
            tensors,
            representation=representation,
            batched=batched,
            carried=carried,
            names=tuple(state_dict),
        )

    def to_state_dict(self) -> dict[str, Tensor]:
        """Return the state dict: the exact inverse of `from_state_dict`.

        Raises:
            ValueError: hidden features, or more than one channel per parameter.
        """
        if self.folded or self.channels != 1:
            kind = "hidden features" if self.folded else f"features with {self.channels} channels"
            raise ValueError(
                f"{kind} are no state dict: one channel per parameter is needed (out_channels=1)"
            )
        entries = dict(self.carried)
        for name, blocks in _by_entry(self.spec).items():
            parts = [_unfold(self.tensors[block.key], block) for block in blocks]
            entries[name] = join(parts, self.spec.axes[name], self.spec.sizes, leading=1)
        for tie in self.spec.ties:
            entries.update({name: entries[tie[0]] for name in tie[1:] if tie[0] in entries})
        names = self.names or tuple(self.spec)
        return {name: entries[name] if self.batched else entries[name][0] for name in names}

    @classmethod
    def cat(cls, features: Sequence[WeightFeatures]) -> WeightFeatures:
        """Lay features of one spec side by side as channels (weights, gradients, momenta, …)."""
        if not features or any(f.layout != features[0].layout or f.folded for f in features):
            raise ValueError("cat takes one or more parameter-like features of one spec")
        tensors = {}
        for block in features[0].layout:
            parts = [f.tensors[block.key].unflatten(-1, (block.fixed, f.channels)) for f in features]
            tensors[block.key] = torch.cat(parts, -1).flatten(-2)
        return replace(features[0], tensors=tensors, channels=sum(f.channels for f in features))

    def with_tensors(
        self, tensors: Mapping[str, Tensor], *, channels: int, folded: bool = False
    ) -> WeightFeatures:
        """Return features on the same weights with other tensors."""
        return replace(self, tensors=tensors, channels=channels, folded=folded)

    def map(self, function: Callable[[Tensor], Tensor]) -> WeightFeatures:
        """Apply a shape-preserving function to every block's tensor."""
        return replace(self, tensors={key: function(tensor) for key, tensor in self.tensors.items()})

    def to(self, target: torch.device | torch.dtype | str) -> WeightFeatures:
        """Convert to a device or a floating-point type; what is carried changes its device only."""
        if isinstance(target, torch.dtype):
            return replace(self, tensors={key: tensor.to(target) for key, tensor in self.tensors.items()})
        return replace(
            self,
            tensors={key: tensor.to(target) for key, tensor in self.tensors.items()},
            carried={name: tensor.to(target) for name, tensor in self.carried.items()},
        )

    def act(self, element: GroupElement) -> WeightFeatures:
        """Return the element's action ``g @ features``.

        Parameter-like features transform by all its freedoms, hidden ones by permutations. What is carried
        goes along where the element's spec knows it: a mask of integers is permuted with its units.

        Raises:
            ValueError: an element with signs, phases or scales meets hidden features, or it has actions.
        """
        if element.actions:
            kinds = ", ".join(sorted({element.spec.actions[number].kind for number in element.actions}))
            raise ValueError(
                f"features transform by permutations and freedoms of groups; this element also has {kinds}. "
                "Draw it with fewer kinds=…, or act on the state dict before making features of it"
            )
        if self.folded and element.freedoms:
            kinds = ", ".join(sorted({kind for _, kind in element.freedoms}))
            raise ValueError(
                f"hidden features transform by permutations only; this element also has {kinds}. "
                "Draw it without kinds=…, or canonicalize the weights first"
            )
        blocks = {block.key: block for block in blocks_of(self.spec)}
        tensors = {
            layout.key: _act(self.tensors[layout.key], layout, blocks[layout.key], element, self)
            for layout in self.layout
        }
        carried = {
            name: element.act_tensor(tensor, element.spec.axes[name]) if name in element.spec.axes else tensor
            for name, tensor in self.carried.items()
        }
        return replace(self, tensors=tensors, carried=carried)

    def allclose(self, other: WeightFeatures, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
        """Return whether two features agree; ``atol`` counts in units of a block's largest entry."""
        return self.layout == other.layout and all(
            tensor.shape == other.tensors[key].shape
            and torch.allclose(
                tensor,
                other.tensors[key].to(tensor),
                rtol=rtol,
                atol=atol * float(tensor.detach().abs().max()) if tensor.numel() else 0.0,
            )
            for key, tensor in self.tensors.items()
        )

    def __add__(self, other: WeightFeatures) -> WeightFeatures:
        """Add features of the same spec and width."""
        if self.layout != other.layout or (self.channels, self.folded) != (other.channels, other.folded):
            raise ValueError("only features of one spec, with the same channels, add up")
        return replace(self, tensors={key: t + other.tensors[key] for key, t in self.tensors.items()})

    def __mul__(self, factor: float) -> WeightFeatures:
        """Multiply by a number."""
        return self.map(lambda tensor: tensor * factor)

    __rmul__ = __mul__

    def __len__(self) -> int:
        """Return the batch size."""
        return next(iter(self.tensors.values())).shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> WeightFeatures:
        """Select networks of the batch; an integer gives one network, unbatched."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"network {index} of a batch of {len(self)}")
            start = index % len(self)
            return replace(self[start : start + 1], batched=False)
        take = index if isinstance(index, (slice, Tensor)) else list(index)
        return replace(
            self,
            tensors={key: tensor[take] for key, tensor in self.tensors.items()},
            carried={name: tensor[take] for name, tensor in self.carried.items()},
            batched=True,
        )

    def __repr__(self) -> str:
        kind = "hidden" if self.folded else self.representation
        return f"WeightFeatures({len(self)} x {len(self.tensors)} blocks, {self.channels} channels, {kind})"


def stack_features(features: Iterable[WeightFeatures]) -> WeightFeatures:
    """Put batches of features of one spec end to end."""
    batches = list(features)
    if not batches or any(f.layout != batches[0].layout for f in batches):
        raise ValueError("stacking takes one or more features of one spec")
    first = batches[0]
    return replace(
        first,
        tensors={key: torch.cat([f.tensors[key] for f in batches]) for key in first.tensors},
        carried={name: torch.cat([f.carried[name] for f in batches]) for name in first.carried},
        batched=True,
    )


def _by_entry(spec: WeightSpec) -> dict[str, list[Block]]:
    grouped: dict[str, list[Block]] = {}
    for block in blocks_of(spec):
        grouped.setdefault(block.entry, []).append(block)
    return grouped


def _order(block: Block) -> list[int]:
    return sorted(range(len(block.atoms)), key=lambda i: isinstance(block.atoms[i], Fixed))


def _fold(tensor: Tensor, block: Block) -> Tensor:
    """``[b, *block shape]`` -> ``[b, *group axes, prod(fixed)]``."""
    moved = tensor.permute(0, *(i + 1 for i in _order(block)))
    return moved.reshape(*moved.shape[: 1 + len(block.groups)], prod(block.fixed))


def _unfold(tensor: Tensor, block: Block) -> Tensor:
    """Undo `_fold`."""
    shape = (*tensor.shape[:-1], *block.fixed)
    order = _order(block)
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensor.reshape(shape).permute(0, *(i + 1 for i in back))


def _act(
    tensor: Tensor, layout: BlockLayout, block: Block, element: GroupElement, features: WeightFeatures
) -> Tensor:
    units = [atom for atom in block.atoms if isinstance(atom, Perm)]
    return element.act_block(tensor, units, layout.parents, start=1, representation=features.representation)
