"""`LearnedOptimizer`: a `torch.optim.Optimizer` whose update rule was meta-learned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metanet.optim.bucket import Bucket, bucket_key, check_parameter
from metanet.optim.links import Links
from metanet.optim.pretrained import MetaWeights, load_meta_weights
from metanet.optim.roles import is_matrix, roles_of
from metanet.optim.rule import ROLES, Item, Metas
from metanet.spec import WeightSpec


class LearnedOptimizer(Optimizer):
    """An optimizer with a meta-learned update rule; replaces ``torch.optim.AdamW(...)`` by one line.

        optimizer = LearnedOptimizer.from_pretrained("default", model, total_steps=10_000)

    There is no learning rate to tune: ``lr`` is a multiplier of the rule's own schedule over ``total_steps``.
    Every scheduler works on it, and 1.0 is the default. Gradients are expected as ``loss.backward()`` leaves
    them; accumulation, closures, gradient scaling (torch.amp), Lightning's automatic optimisation and
    distributed data parallel work as with any optimizer.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or groups of them (``"role"`` in a group sets it).
        total_steps: number of steps of the whole training.
        weights: the meta-weights (`load_meta_weights`).
        spec: of the network, whose entries carry the names of the parameters; without one, tensors are
            treated one by one (terms across tensors are off).
        lr: multiplier of the step size.
        weight_decay: decoupled, times the step size, as in AdamW.

    Raises:
        ValueError: no steps, a negative rate or decay, an unknown role, no parameters.
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
    ) -> None:
        if not isinstance(total_steps, int) or total_steps < 1:
            raise ValueError(
                "total_steps is the number of optimizer steps of the whole training, which the schedule "
                f"needs; expected a positive integer, found {total_steps!r}"
            )
        if (isinstance(lr, float) and lr < 0) or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, found {lr} and {weight_decay}")
        self.weights = weights
        self.links = None if spec is None else Links(spec)
        self._buckets: list[Bucket] | None = None
        self._warned: set[str] = set()
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "total_steps": total_steps,
            "role": None,
            "step": 0,
            "meta_weights": weights.hash,
        }
        super().__init__(params, defaults)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        model: nn.Module,
        *,
        total_steps: int,
        example_args: Sequence[Any] | None = None,
        spec: WeightSpec | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
    ) -> LearnedOptimizer:
        """Return the optimizer of a model's parameters that require gradients.

        Args:
            name: of shipped weights (``metanet optim list``), or the path of a file of meta-weights.
            model: the network; a distributed or compiled one is unwrapped.
            total_steps: number of steps of the whole training.
            example_args: inputs of the model to derive its spec from; by default those of a Lightning
                module's ``example_input_array``. Only needed by rules that link tensors.
            spec: of the model, if it is at hand.
            lr: multiplier of the step size.
            weight_decay: decoupled; for matrices only.

        Raises:
            ValueError: see the class; unknown weights.
        """
        model = unwrapped(model)
        weights = load_meta_weights(name)
        if spec is None and weights.rule.linked:
            spec = _derived(model, example_args)
        roles = roles_of(model)
        groups: dict[str, list[tuple[str, Tensor]]] = {}
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(roles[parameter_name], []).append((parameter_name, parameter))
        if not groups:
            raise ValueError(
                "the model has no parameter that requires a gradient, so there is nothing to train"
            )
        params = [
            {"params": groups[role], "role": role, "weight_decay": weight_decay * (role != "vector")}
            for role in ROLES
            if role in groups
        ]
        return cls(
            params,
            total_steps=total_steps,
            weights=weights,
            spec=spec,
            lr=lr,
            weight_decay=weight_decay,
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
        if len(self.param_groups) > 1:
            group["step"] = max(other["step"] for other in self.param_groups)
        self._buckets = None

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
        rule = self.weights.rule
        pending = [
            (bucket, parameters, item)
            for bucket in self.buckets()
            for parameters, item in bucket.items(rule, self.state)
        ]
        if pending:
            first = self.param_groups[0]
            progress = min((first["step"] + 0.5) / first["total_steps"], 1.0)
            metas = self.weights.like(pending[0][2].values)
            moves = rule.directions(metas, [item for *_, item in pending], progress, self.links)
            for (bucket, parameters, item), moved in zip(pending, moves, strict=True):
                bucket.move(parameters, self._change(metas, bucket, item, moved))
        for group in self.param_groups:
            group["step"] += 1
        return loss

    def _change(self, metas: Metas, bucket: Bucket, item: Item, moved: Tensor) -> Tensor:
        """Return the rate times the rule's direction, or times Adam's where that is not finite."""
        group = self.param_groups[bucket.group]
        step, total = int(group["step"]), int(group["total_steps"])
        if step >= total:
            self._warn_horizon(total)
        fallback = item.state["momenta"][1] / (item.state["second"][0].sqrt() + 1e-8)
        moved = torch.where(moved.isfinite().all(), moved, fallback)
        if group["weight_decay"]:
            moved = moved.add(item.values, alpha=group["weight_decay"])
        eta = self.weights.rule.rate(metas, item.role, min(step, total - 1), total)
        change: Tensor = moved * (eta * group["lr"]).reshape(-1, *(1,) * (moved.ndim - 1))
        return change

    def buckets(self) -> list[Bucket]:
        """Return the parameters by shape, role and device; the small ones of a bucket move at once."""
        if self._buckets is None:
            found: dict[Any, tuple[str | None, list[Tensor]]] = {}
            for number, group in enumerate(self.param_groups):
                names = group.get("param_names") or [None] * len(group["params"])
                for parameter, name in zip(group["params"], names, strict=True):
                    role = (group["role"] or "hidden") if is_matrix(parameter) else "vector"
                    entry = name if self.links is not None and self.links.knows(name) else None
                    key = (number, role, entry, *bucket_key(parameter))
                    found.setdefault(key, (entry, []))[1].append(parameter)
            self._buckets = [Bucket(key[0], key[1], ps, entry) for key, (entry, ps) in found.items()]
        return self._buckets

    def describe(self) -> str:
        """Return a table of which parameter is treated how."""
        across = "" if self.links else ", tensors one by one"
        lines = [f"{self.weights.name} ({self.weights.hash[:12]}), rule {self.weights.rule.name}{across}"]
        for bucket in self.buckets():
            names = self.param_groups[bucket.group].get("param_names")
            members = self.param_groups[bucket.group]["params"]
            for parameter in bucket.parameters:
                at = next(i for i, p in enumerate(members) if p is parameter)
                label = names[at] if names else f"group {bucket.group}, parameter {at}"
                lines.append(f"  {bucket.role:<10} {list(parameter.shape)!s:<20} {label}")
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
        return {**super().__getstate__(), "weights": self.weights, "_warned": self._warned, "_buckets": None}

    def _warn_horizon(self, total: int) -> None:
        if "horizon" not in self._warned:
            self._warned.add("horizon")
            warnings.warn(
                f"the optimizer was made for total_steps={total} and is asked for more: its schedule has "
                "come to its end and further steps are tiny. Make it with the number of steps you train for.",
                stacklevel=3,
            )


def _derived(model: nn.Module, example_args: Sequence[Any] | None) -> WeightSpec | None:
    """Return the spec of a model if there are inputs to derive it from."""
    if example_args is None:
        example_args = getattr(model, "example_input_array", None)
        if isinstance(example_args, Tensor):
            example_args = (example_args,)
    if example_args is None or isinstance(example_args, Mapping):
        return None
    from metanet.derive import spec_of

    return spec_of(model, *example_args)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside distributed and compiled wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
