r"""`Nowcaster`: any `torch.optim` optimizer, and now and then a jump to where its weights are heading.

Of every ``every`` steps of the base optimizer c = 5 states are kept, at equal distances. After the last the
parameters are set to a forecast of their values some steps ahead, and the states are forgotten. How far ahead
decays from ``ahead`` steps at the beginning to nothing at the end of the training,

    ahead (1 - t/T)²

References:
    Knyazev et al. 2025, Accelerating training with neuron interaction and nowcasting networks (NiNo),
    https://arxiv.org/abs/2409.04434.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metanet.optim.bucket import check_parameter, matrix_shape
from metanet.optim.forecaster import STATES, Forecaster, History
from metanet.optim.optimizer import derived_spec, unwrapped
from metanet.optim.roles import is_matrix, roles_of, stacked_of
from metanet.optim.rules.links import Links
from metanet.spec import WeightSpec

STATES_KEY, STEP_KEY = "nowcast_states", "nowcast_step"
"""What a state of the base optimizer does not have."""
STATE_HOOKS = tuple(
    f"_optimizer_{kind}_hooks"
    for kind in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post")
)
"""Where torch keeps hooks that the base optimizer is to call, since it makes and takes the states."""


class Nowcaster(Optimizer):
    """An optimizer that forecasts its own weights.

        optimizer = Nowcaster("nowcast.safetensors", base, model, total_steps=10_000, example_args=(x,))

    It shares parameter groups and state with the base optimizer: schedulers, gradient scaling and hooks work
    on either; those of states see the state of the base. Its ``state_dict`` is that of the base and the
    states kept so far, so that a training resumes in the middle of a period. Buffers, such as running
    statistics, are not forecast.

    Args:
        forecaster: a `Forecaster` or the path of one.
        base: makes the steps.
        model: whose parameters they are; a distributed or compiled one is unwrapped.
        total_steps: number of steps of the whole training.
        every: steps between forecasts, a multiple of 5.
        ahead: steps that the first forecast looks ahead.
        example_args: inputs of the model to derive its spec from, for forecasts of the form ``graph``; by
            default those of a Lightning module's ``example_input_array``.
        spec: of the model, if it is at hand.

    Raises:
        ValueError: numbers that make no sense, parameters that are not the model's, no spec for a form that
            needs one.
        TypeError: a sparse, complex or sharded (FSDP2) parameter.
    """

    def __init__(
        self,
        forecaster: Forecaster | str | Path,
        base: Optimizer,
        model: nn.Module,
        *,
        total_steps: int,
        every: int = 100,
        ahead: int = 200,
        example_args: Sequence[Any] | None = None,
        spec: WeightSpec | None = None,
    ) -> None:
        if every < STATES or every % STATES:
            raise ValueError(f"every must be a positive multiple of {STATES}, found {every}")
        if total_steps < 1 or ahead < 1:
            raise ValueError(
                f"expected positive total_steps and ahead, in steps; found {total_steps} and {ahead}"
            )
        model = unwrapped(model)
        self.forecaster = forecaster if isinstance(forecaster, Forecaster) else Forecaster.load(forecaster)
        self.base = base
        self.total_steps, self.every, self.ahead = total_steps, every, ahead
        if spec is None and self.forecaster.needs_spec:
            spec = derived_spec(model, example_args)
        if spec is None and self.forecaster.needs_spec:
            raise ValueError(
                "forecasts of the form 'graph' need the spec of the network: pass example_args or spec"
            )
        stacked = stacked_of(model, spec)
        roles = roles_of(model)
        self.links = Links(spec, stacked) if spec is not None and self.forecaster.needs_spec else None
        self._places: dict[Tensor, tuple[str, str, bool]] = {
            p: (n, roles[n], n in stacked) for n, p in model.named_parameters()
        }
        self._kept: dict[Tensor, list[Tensor]] = {}
        self._made = False
        super().__init__(base.param_groups, base.defaults)
        self._made = True
        self._share()
        self._check(self.param_groups)
        self.steps = 0

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state
        for name in STATE_HOOKS:
            setattr(self, name, getattr(self.base, name))

    def _check(self, groups: Iterable[Mapping[str, Any]]) -> None:
        parameters = [p for group in groups for p in group["params"]]
        for parameter in parameters:
            check_parameter(parameter)
        unknown = [tuple(p.shape) for p in parameters if p not in self._places]
        if unknown:
            raise ValueError(
                f"the base optimizer has {len(unknown)} parameters that are not the model's (of shapes "
                f"{', '.join(map(str, unknown[:3]))}); pass the model that it trains"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        if not self._made:  # the base has its groups already
            super().add_param_group(param_group)
            return
        self._check([{**param_group, "params": _tensors(param_group["params"])}])
        self.base.add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        """Take a step of the base optimizer, which gets all arguments, and forecast if it is time.

        Returns:
            What the base optimizer returns.
        """
        found: Any = self.base.step(closure, **options)
        self.steps += 1
        apart = self.every // STATES
        if self.steps % apart == 0:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.requires_grad:
                        wide = torch.promote_types(parameter.dtype, torch.float32)
                        kept = parameter.detach().to(wide, copy=True)
                        self._kept.setdefault(parameter, []).append(kept)
        if self.steps % self.every == 0:
            self._forecast(apart)
            self._kept.clear()
        return found

    def look_ahead(self) -> float:
        """Return how many steps ahead a forecast at this step is."""
        return float(self.ahead * max(1 - self.steps / self.total_steps, 0.0) ** 2)

    def _forecast(self, apart: int) -> None:
        ahead = self.look_ahead() / apart
        if ahead < 1:
            return
        by_type: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, History]]] = {}
        for parameter, states in self._kept.items():
            if len(states) == STATES:
                history = self._history(parameter, states)
                key = (states[0].device, states[0].dtype)
                by_type.setdefault(key, []).append((parameter, history))
        for found in by_type.values():
            histories = [history for _, history in found]
            forecasts = self.forecaster(histories, ahead, self.steps / self.total_steps, self.links)
            ends = [f.to(p.dtype).reshape(p.shape) for (p, _), f in zip(found, forecasts, strict=True)]
            if all(bool(end.isfinite().all()) for end in ends):  # in the parameter's type: it may be narrow
                for (parameter, _), end in zip(found, ends, strict=True):
                    parameter.copy_(end)

    def _history(self, parameter: Tensor, states: Sequence[Tensor]) -> History:
        name, role, stacked = self._places[parameter]
        matrix = is_matrix(parameter[0] if stacked else parameter)
        shape = matrix_shape(parameter, stacked=stacked)
        depth = parameter.shape[0] if stacked else 1
        values = torch.stack([state.reshape(depth, *shape) for state in states])
        entry = name if self.links is not None and self.links.knows(name) else None
        return History(values, role if matrix else "vector", entry, stacked)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base optimizer, with the states kept so far and the number of steps."""
        found = self.base.state_dict()
        numbers = [i for group in found["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        state = {number: dict(values) for number, values in found["state"].items()}
        for number, parameter in zip(numbers, parameters, strict=True):
            if parameter in self._kept:
                state.setdefault(number, {})[STATES_KEY] = torch.stack(self._kept[parameter])
        groups = [{**group, STEP_KEY: self.steps} for group in found["param_groups"]]
        return {**found, "state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: it is the state of an optimizer that does not forecast.
        """
        groups = state_dict["param_groups"]
        if any(STEP_KEY not in group for group in groups):
            raise ValueError(
                "this state has no nowcast_step: it was saved by an optimizer without forecasts. Load it "
                "into the base optimizer before you wrap it"
            )
        plain = [{k: v for k, v in group.items() if k != STEP_KEY} for group in groups]
        states = {n: {k: v for k, v in s.items() if k != STATES_KEY} for n, s in state_dict["state"].items()}
        own = {number: values for number, values in states.items() if values}
        self.base.load_state_dict({**state_dict, "state": own, "param_groups": plain})
        self._share()
        self.steps = int(groups[0][STEP_KEY]) if groups else 0
        numbers = [i for group in groups for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._kept = {
            parameter: list(state_dict["state"][number][STATES_KEY].to(parameter.device, copy=True))
            for number, parameter in zip(numbers, parameters, strict=True)
            if STATES_KEY in state_dict["state"].get(number, {})
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickled optimizer keeps; schedulers attach what cannot be pickled."""
        return {name: self.__dict__[name] for name in (*_KEPT, "defaults")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickled optimizer."""
        super().__setstate__(state)
        self._share()


_KEPT = (
    *("forecaster", "base", "total_steps", "every", "ahead", "links", "steps"),
    *("_places", "_kept", "_made"),
)


def _tensors(params: Any) -> list[Tensor]:
    """Return the tensors of a group: one, several, or named ones."""
    many = [params] if isinstance(params, Tensor) else list(params)
    return [one[1] if isinstance(one, tuple) else one for one in many]
