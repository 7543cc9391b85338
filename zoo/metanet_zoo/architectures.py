"""Networks that a zoo can rebuild from a few plain settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Convention = Literal["siren", "dws"]
"""How a SIREN is initialised, and whether its output is shifted by one half."""


class Siren(nn.Module):
    """Multilayer perceptron with sine activations: an implicit neural representation of a signal.

    y = W_L x_L + b_L (+ 1/2 in the convention "dws"),  x_{l+1} = sin(ω (W_l x_l + b_l)),  x_0 = coordinates.

    Its state dict has the keys `seq.0.weight`, `seq.0.bias`, `seq.1.weight`, … of the published zoos.

    Args:
        in_features: number of coordinates, 2 for an image.
        hidden_features: width of every hidden layer.
        hidden_layers: number of hidden layers, each followed by a sine.
        out_features: number of values per point, 1 for grey and 3 for colour images.
        omega: ω, the same for all hidden layers.
        convention: "siren" draws the first layer's weights from U(±1/d), the others from U(±√(6/d)/ω) and
            biases from U(±1/√d) (torch's default), where d is the layer's input width; "dws", the one of the
            published INR data sets, draws all weights from U(±√(6/d)/ω), has zero biases at the start
            and adds 1/2 to the output.
        generator: source of the initial values; torch's default one if None.

    Raises:
        ValueError: a size below one, an ω that is not positive and finite, or an unknown convention.

    References:
        Sitzmann et al. (2020), Implicit Neural Representations with Periodic Activation Functions,
        https://arxiv.org/abs/2006.09661, section 3.2 and supplement 1.5.
        Navon et al. (2023), Equivariant Architectures for Learning in Deep Weight Spaces,
        https://arxiv.org/abs/2301.12780, and its data sets, for the convention "dws".

    Example:
        >>> Siren()(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_features: int = 2,
        hidden_features: int = 32,
        hidden_layers: int = 2,
        out_features: int = 1,
        omega: float = 30.0,
        convention: Convention = "siren",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "in_features": in_features,
            "hidden_features": hidden_features,
            "hidden_layers": hidden_layers,
            "out_features": out_features,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, found {size}")
        if not (math.isfinite(omega) and omega > 0):
            raise ValueError(f"omega must be positive and finite, found {omega}")
        if convention not in get_args(Convention):
            raise ValueError(
                f"unknown convention {convention!r}; expected one of {', '.join(get_args(Convention))}"
            )
        self.omega = float(omega)
        self.convention: Convention = convention
        widths = [in_features, *[hidden_features] * hidden_layers, out_features]
        self.seq = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.reset_parameters(generator)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the signal at `x [..., in_features]`, giving `[..., out_features]`."""
        *hidden, last = self.seq
        for linear in hidden:
            x = torch.sin(self.omega * linear(x))
        x = last(x)
        return x + self.output_shift if self.output_shift else x

    @property
    def output_shift(self) -> float:
        """Constant added to the output, by convention."""
        return 0.5 if self.convention == "dws" else 0.0

    @property
    def config(self) -> dict[str, Any]:
        """Settings from which `build_architecture` makes this network again."""
        first, last = self.linears[0], self.linears[-1]
        return {
            "name": "siren",
            "in_features": first.in_features,
            "hidden_features": first.out_features,
            "hidden_layers": len(self.seq) - 1,
            "out_features": last.out_features,
            "omega": self.omega,
            "convention": self.convention,
        }

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers, first to last."""
        return [layer for layer in self.seq if isinstance(layer, nn.Linear)]

    def initial_bounds(self) -> list[tuple[float, float]]:
        """Half-widths `(weight, bias)` of each layer's initial uniform distributions, first to last."""
        bounds = []
        for depth, layer in enumerate(self.linears):
            weight = math.sqrt(6.0 / layer.in_features) / self.omega
            if self.convention == "dws":
                bounds.append((weight, 0.0))
            else:
                first = 1.0 / layer.in_features
                bounds.append((first if depth == 0 else weight, 1.0 / math.sqrt(layer.in_features)))
        return bounds

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all parameters anew, by convention.

        Args:
            generator: source of the values; torch's default one if None.
        """
        for layer, (weight, bias) in zip(self.linears, self.initial_bounds(), strict=True):
            layer.weight.uniform_(-weight, weight, generator=generator)
            layer.bias.uniform_(-bias, bias, generator=generator)

    def extra_repr(self) -> str:
        """Show what the layers do not."""
        return f"omega={self.omega:g}, convention={self.convention!r}"


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"siren": Siren}
"""Name -> factory; a zoo's manifest holds the name and the factory's keyword arguments."""


def build_architecture(config: Mapping[str, Any]) -> nn.Module:
    """Make a network from its plain settings.

    Args:
        config: `name`, a key of `ARCHITECTURES`, and the keyword arguments of the factory under that name.

    Returns:
        a freshly initialised module.

    Raises:
        ValueError: no such name, or the factory refuses the arguments.

    Example:
        >>> build_architecture({"name": "siren", "hidden_features": 8})(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {name!r}; known are {', '.join(sorted(ARCHITECTURES))}. A factory for "
            "another one can be added: metanet_zoo.architectures.ARCHITECTURES[name] = factory"
        )
    try:
        return ARCHITECTURES[name](**arguments)
    except TypeError as error:
        raise ValueError(f"architecture {name!r} does not take the settings {arguments}: {error}") from None
