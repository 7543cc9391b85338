"""`LearnedOptimizer`: a `torch.optim.Optimizer` whose update rule was meta-learned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from metanet.optim.bucket import Bucket, BucketMover, bucket_key, check_parameter, gradient_of
from metanet.optim.buffers import Buffers
from metanet.optim.pretrained import MetaWeights, load_meta_weights
from metanet.optim.roles import is_matrix, roles_of, stacked_entries, stacked_of
from metanet.optim.rule import ROLES, Item
from metanet.optim.rules.links import Links, sides_of
from metanet.spec import WeightSpec

Pending: TypeAlias = tuple[Bucket, list[Tensor], Item]
"""A bucket, those of its parameters that have a gradient, and what the rule sees of them."""
Rates: TypeAlias = dict[tuple[str, torch.dtype, int, int], float]
"""The rule's own step sizes by role, type, step and number of steps."""


class LearnedOptimizer(Optimizer):
    """An optimizer with a meta-learned update rule; replaces ``torch.optim.AdamW(...)`` by one line.

        optimizer = LearnedOptimizer.from_pretrained("default", model, total_steps=10_000)

    There is no learning rate to tune: ``lr`` is a multiplier of the rule's own schedule over ``total_steps``.
    Every scheduler works on it, and 1.0 is the default. Gradients are expected as ``loss.backward()`` leaves
    them; accumulation, closures, gradient scaling (torch.amp), Lightning's automatic optimisation and
    distributed data parallel work as with any optimizer.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or groups of them. ``"role"`` in a group sets it;
            ``"stacked": True`` says that the first dimension of its tensors counts tensors (stacked experts
            ``[E, out, in]``), each of which is moved as if it stood alone.
        total_steps: number of steps of the whole training.
        weights: the meta-weights (`load_meta_weights`).
        spec: of the network, whose entries carry the names of the parameters; without one, tensors are
            treated one by one (terms across tensors are off).
        lr: multiplier of the step size.
        weight_decay: decoupled, times the step size, as in AdamW.
        compile: the rule's loops over parameters are compiled (``torch.compile``): the same steps up to
            rounding, faster after the compiler's half minute or more at the first one. For rules that have
            such loops (celo2).

    Raises:
        ValueError: no steps, a negative rate or decay, an unknown role, no parameters, no spec for a rule
            that needs one, ``compile`` for a rule without loops.
        TypeError: a sparse, complex or sharded (FSDP2) parameter.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        total_steps: int,
        weights: MetaWeights,
        spec: WeightSpec | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        compile: bool = False,
    ) -> None:
        if not isinstance(total_steps, int) or total_steps < 1:
            raise ValueError(
                "total_steps is the number of optimizer steps of the whole training, which the schedule "
                f"needs; expected a positive integer, found {total_steps!r}"
            )
        if (isinstance(lr, float) and lr < 0) or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, found {lr} and {weight_decay}")
        if compile:
            weights = replace(weights, rule=weights.rule.compiling())
        self.weights = weights
        self.spec = spec
        self.links: Links | None = None
        self._nested = stacked_entries(spec) if spec is not None else set()
        self._buckets: list[Bucket] | None = None
        self._memory = Buffers()
        self._warned: set[str] = set()
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "total_steps": total_steps,
            "role": None,
            "stacked": None,
            "step": 0,
            "meta_weights": weights.hash,
        }
        super().__init__(params, defaults)
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        if spec is None and weights.rule.needs_spec:
            raise ValueError(
                f"the rule {weights.rule.name!r} works on the graph of the network, which a spec describes, "
                "and there is none; pass example_args to from_pretrained, or spec"
            )
        if spec is not None and weights.rule.linked:
            self.links = self._made_links(spec)
        if spec is not None and not any(name in spec.axes for name in names):
            raise ValueError(
                f"the spec has entries {_some(spec.axes)}, the parameters are named {_some(names)}: none "
                "agree. Pass model.named_parameters() of the very module that the spec was derived from"
            )

    @classmethod
    def from_pretrained(
        cls,
        name: str | MetaWeights,
        model: nn.Module,
        *,
        total_steps: int,
        example_args: Sequence[Any] | None = None,
        spec: WeightSpec | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        compile: bool = False,
    ) -> LearnedOptimizer:
        """Return the optimizer of a model's parameters that require gradients.

        Args:
            name: of shipped weights (``metanet optim list``), the path of a file of meta-weights, or
                meta-weights, such as `metanet_zoo.meta_weights.fetch_meta_weights` brings from the hub.
            model: the network; a distributed or compiled one is unwrapped.
            total_steps: number of steps of the whole training.
            example_args: inputs of the model to derive its spec from; by default those of a Lightning
                module's ``example_input_array``. Only needed by rules that link tensors.
            spec: of the model, if it is at hand.
            lr: multiplier of the step size.
            weight_decay: decoupled; for matrices only.
            compile: the rule's loops, see the class.

        Raises:
            ValueError: see the class; unknown weights.
        """
        model = unwrapped(model)
        weights = name if isinstance(name, MetaWeights) else load_meta_weights(name)
        if spec is None and weights.rule.linked:
            spec = derived_spec(model, example_args)
        roles, stacked = roles_of(model), stacked_of(model, spec)
        groups: dict[tuple[str, bool], list[tuple[str, Tensor]]] = {}
        for name_, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((roles[name_], name_ in stacked), []).append((name_, parameter))
        if not groups:
            raise ValueError(
                "the model has no parameter that requires a gradient, so there is nothing to train"
            )
        params = [
            {
                "params": groups[role, deep],
                "role": role,
                "stacked": deep,
                "weight_decay": weight_decay * (role != "vector"),
            }
            for role in ROLES
            for deep in (False, True)
            if (role, deep) in groups
        ]
        return cls(
            params,
            total_steps=total_steps,
            weights=weights,
            spec=spec,
            lr=lr,
            weight_decay=weight_decay,
            compile=compile,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters take their roles from ``"role"`` or, without one, from their shapes."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["role"] is not None and group["role"] not in ROLES:
            known = ", ".join(ROLES)
            self.param_groups.pop()
            raise ValueError(f"unknown role {group['role']!r}; the roles are {known}")
        for parameter in group["params"]:
            check_parameter(parameter)
            if group["stacked"] and parameter.ndim < 2:
                shape = list(parameter.shape)
                self.param_groups.pop()
                raise ValueError(f"a stacked tensor has two or more dimensions, found one of shape {shape}")
        if self.spec is not None:
            for name, parameter in zip(group.get("param_names", ()), group["params"], strict=False):
                if name in self.spec.axes and self.spec.shapes[name] != tuple(parameter.shape):
                    raise ValueError(
                        f"the spec says {name} is {list(self.spec.shapes[name])}, the parameter is "
                        f"{list(parameter.shape)}: derive the spec anew from this model"
                    )
        if len(self.param_groups) > 1:
            group["step"] = max(other["step"] for other in self.param_groups)
        if self.links is not None:
            self.links = self._made_links(self.links.spec)
        self._buckets = None

    def _made_links(self, spec: WeightSpec) -> Links:
        stacked = [n for g in self.param_groups for n in g.get("param_names", ()) if self._is_stacked(g, n)]
        return Links(spec, stacked)

    def _is_stacked(self, group: Mapping[str, Any], name: str | None) -> bool:
        """Return whether the first dimension of a parameter counts tensors: its group or the spec says so."""
        said = group.get("stacked")
        return name in self._nested if said is None else bool(said)

    @_disable_dynamo  # a compiled training step breaks here once instead of tracing every bucket
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Take one step.

        Args:
            closure: evaluates the model, calls backward and returns the loss.
            loss: the loss of this step, where it is at hand; this rule does not need it.

        Returns:
            The closure's value, or ``loss``.
        """
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        finite = self._finite_gradients()
        together: dict[tuple[torch.device, torch.dtype], list[Pending]] = {}
        rates: Rates = {}
        memory = self._memory if self.links is None else None  # linked buckets are all held at a time
        for bucket in self.buckets():
            for parameters, item in bucket.items(
                self.weights.rule, self.state, finite=finite, buffers=memory
            ):
                if self.links is None:
                    self._move([(bucket, parameters, item)], rates)
                else:
                    key = (item.values.device, item.values.dtype)
                    together.setdefault(key, []).append((bucket, parameters, item))
        for pending in together.values():
            self._move(pending, rates)
        for group in self.param_groups:
            group["step"] += 1
        return loss

    def _finite_gradients(self) -> bool:
        """Return whether all gradients are finite, with squares that add up to something finite."""
        gradients = [
            gradient_of(p) for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        return not gradients or bool(torch.nn.utils.get_total_norm(gradients).isfinite())

    def _move(self, pending: Sequence[Pending], rates: Rates) -> None:
        """Move buckets: all that exchange messages at once; ``rates`` are those of this step so far."""
        first, rule = self.param_groups[0], self.weights.rule
        progress = min((first["step"] + 0.5) / first["total_steps"], 1.0)
        metas = self.weights.as_type(pending[0][2].values.dtype)
        movers = []
        for bucket, parameters, item in pending:
            group = self.param_groups[bucket.group]
            step, total = int(group["step"]), int(group["total_steps"])
            if step >= total:
                self._warn_horizon(total)
            key = (item.role, item.values.dtype, min(step, total - 1), total)
            if key not in rates:
                rates[key] = float(rule.rate(metas, item.role, *key[2:]))
            rate = rates[key] * float(group["lr"])
            movers.append(BucketMover(rule, parameters, item, rate, group["weight_decay"]))
        rule.move(metas, [item for *_, item in pending], progress, self.links, movers)
        for mover in movers:
            mover.finish()

    def buckets(self) -> list[Bucket]:
        """Return the parameters by shape, role and device; the small ones of a bucket move at once."""
        if self._buckets is None:
            found: dict[Any, tuple[list[str], list[Tensor]]] = {}
            for number, group in enumerate(self.param_groups):
                names = group.get("param_names") or [None] * len(group["params"])
                for parameter, name in zip(group["params"], names, strict=True):
                    stacked = self._is_stacked(group, name)
                    matrix = is_matrix(parameter[0] if stacked else parameter)
                    role = (group["role"] or "hidden") if matrix else "vector"
                    entry = name if self.links is not None and self.links.knows(name) else None
                    shared = self.weights.rule.bucketed and not stacked
                    own = entry is not None if shared else entry
                    key = (number, role, stacked, own, *bucket_key(parameter, stacked=stacked))
                    names_, parameters = found.setdefault(key, ([], []))
                    names_ += [] if entry is None else [entry]
                    parameters.append(parameter)
            self._buckets = [
                bucket
                for (number, role, stacked, *_), (entries, parameters) in found.items()
                for bucket in Bucket(number, role, parameters, entries, stacked=stacked).split()
            ]
        return self._buckets

    def describe(self) -> str:
        """Return a table of which parameter is treated how, and over which units it is linked to others."""
        across = "tensors linked over shared units" if self.links else "tensors one by one"
        lines = [f"{self.weights.name} ({self.weights.hash[:12]}), rule {self.weights.rule.name}, {across}"]
        for bucket in self.buckets():
            names = self.param_groups[bucket.group].get("param_names")
            members = self.param_groups[bucket.group]["params"]
            for place, parameter in enumerate(bucket.parameters):
                at = next(i for i, p in enumerate(members) if p is parameter)
                label = names[at] if names else f"group {bucket.group}, parameter {at}"
                line = f"  {bucket.role:<10} {list(parameter.shape)!s:<20} {label}"
                line += f"  (a stack of {bucket.depth})" if bucket.stacked else ""
                if self.links is not None and bucket.entries:
                    groups = self.links.groups(bucket.entries[place], sides_of(len(bucket.shape)))
                    line += f"  [{', '.join(groups)}]" if groups else ""
                lines.append(line)
        return "\n".join(lines)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: it was made with other meta-weights.
        """
        for group in state_dict["param_groups"]:
            if group.get("meta_weights") != self.weights.hash:
                raise ValueError(
                    f"this state was made with the meta-weights {str(group.get('meta_weights'))[:12]}…, "
                    f"the optimizer has {self.weights.hash[:12]}… ({self.weights.name}); load those it was "
                    "begun with"
                )
        super().load_state_dict(state_dict)
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            saved = state_dict["state"].get(number, {})
            for name, value in saved.items():  # torch casts states to the parameter's type; ours are wider
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().to(parameter.device, copy=True)
        self._buckets = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickled optimizer."""
        super().__setstate__(state)
        self._buckets = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickled optimizer keeps: buckets are made anew."""
        kept = ("weights", "spec", "links", "_nested", "_memory", "_warned")
        return {**super().__getstate__(), **{k: self.__dict__[k] for k in kept}, "_buckets": None}

    def _warn_horizon(self, total: int) -> None:
        if "horizon" not in self._warned:
            self._warned.add("horizon")
            warnings.warn(
                f"the optimizer was made for total_steps={total} and is asked for more: its schedule has "
                "come to its end and further steps are tiny. Make it with the number of steps you train for.",
                stacklevel=3,
            )


def _some(names: Iterable[str]) -> str:
    """Return the first names of many, for a message."""
    found = [repr(name) for name in names]
    return ", ".join([*found[:3], *(["…"] if len(found) > 3 else [])]) or "not at all"


def derived_spec(model: nn.Module, example_args: Sequence[Any] | None) -> WeightSpec | None:
    """Return the spec of a model if inputs to derive it from are given or brought by the model.

    Those that it brings are a Lightning module's ``example_input_array``.
    """
    from metanet.derive import spec_of

    if example_args is not None:
        return spec_of(model, *example_args)
    own = getattr(model, "example_input_array", None)
    if own is None or isinstance(own, Mapping):
        return None
    try:
        return spec_of(model, *((own,) if isinstance(own, Tensor) else own))
    except (ValueError, TypeError, RuntimeError) as error:
        warnings.warn(
            f"no spec could be derived from the model's example_input_array ({error}); tensors are treated "
            "one by one. Pass example_args or spec to link them",
            stacklevel=3,
        )
        return None


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside distributed and compiled wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
