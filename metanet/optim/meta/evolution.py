r"""Persistent evolution strategies: unbiased meta-gradients of long trainings from short stretches of them.

Particles come in antithetic pairs θ ± σε. A pair keeps the sum ξ of all its perturbations since its training
began, and after every stretch with losses L⁺ and L⁻ the gradient is estimated by

    ĝ = mean over pairs of ξ (L⁺ - L⁻) / (2σ²),  ξ in units of θ

With ``persistent=False`` ξ is the last perturbation alone: truncated evolution strategies, biased to short
horizons. One stretch over the whole training is the full evolution strategy (``full-es``).

References:
    Vicol, Metz and Sohl-Dickstein 2021, Unbiased gradient estimation in unrolled computation graphs with
    persistent evolution strategies, https://arxiv.org/abs/2112.13835.
"""

from __future__ import annotations

import torch
from torch import Tensor


class PersistentES:
    """The estimator for one group of antithetic pairs.

    Args:
        size: number of meta-parameters.
        pairs: number of antithetic pairs.
        sigma: standard deviation of the perturbations, in units of θ.
        generator: a CPU generator.
        persistent: keep ξ between stretches.
    """

    def __init__(
        self, size: int, pairs: int, sigma: float, generator: torch.Generator, *, persistent: bool = True
    ) -> None:
        if pairs < 1 or sigma <= 0:
            raise ValueError(f"expected pairs >= 1 and sigma > 0, found pairs={pairs}, sigma={sigma}")
        self.sigma = sigma
        self.generator = generator
        self.persistent = persistent
        self.accumulated = torch.zeros(pairs, size)
        self._noise = torch.zeros(pairs, size)

    def perturb(self, theta: Tensor) -> Tensor:
        """Return ``[2 pairs, size]`` copies of θ for the next stretch: all θ + σε, then all θ - σε."""
        self._noise = self.sigma * torch.randn(self.accumulated.shape, generator=self.generator)
        if self.persistent:
            self.accumulated += self._noise
        else:
            self.accumulated = self._noise.clone()
        return torch.cat([theta + self._noise, theta - self._noise])

    def gradient(self, losses: Tensor) -> Tensor:
        """Return the ``[size]`` estimate from the ``[2 pairs]`` losses of the stretch."""
        upper, lower = losses.chunk(2)
        return (self.accumulated * (upper - lower)[:, None]).mean(0) / (2 * self.sigma**2)

    def reset(self) -> None:
        """Forget the perturbations: all trainings of the group begin anew."""
        self.accumulated.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {"accumulated": self.accumulated}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` returned."""
        self.accumulated = state["accumulated"].clone()
