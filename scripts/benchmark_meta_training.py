"""How fast is meta-training, beside `torch.func.vmap(grad)` written the plain way?

The same inner task (an MLP 64-32-32-10 on random images, batches of 128), the same rule and the same number
of particles, each with meta-parameters of its own. The plain way writes one inner step of one network, its
loss differentiated by `torch.func.grad`, its rule term by term, and maps it over the particles. Both routes
take turns and must agree; particle-steps per core-second come from the smallest CPU time of all rounds.

    python scripts/benchmark_meta_training.py
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import UTC, datetime
from math import log, pi
from os import getloadavg
from pathlib import Path

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn import functional

from metanet.optim.meta.group import Group, apply
from metanet.optim.meta.tasks import Classification, MLPTask
from metanet.optim.pretrained import RULES
from metanet.optim.rule import ROLES, UpdateRule
from metanet.optim.rules.factored import DECAYS, RATE, SECOND_DECAY, TINY, FactoredRule
from metanet.optim.rules.network import FEATURES, FLOORS, PerParameterRule
from metanet.optim.rules.newton_schulz import COEFFICIENTS, STEPS
from metanet.optim.rules.pointwise import TIMES
from metanet.optim.rules.structured import BETAS, EPS, SECOND_BETA

RESULTS = Path(__file__).parent / "results" / "benchmark_meta_training.md"
HORIZON = 1000
Network = dict[str, Tensor]
Stepped = tuple[Network, Network, Tensor]


def loss_of(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of one network."""
    hidden = images
    for i in range(3):
        hidden = functional.linear(hidden, network[f"{i}.weight"], network[f"{i}.bias"])
        hidden = hidden.relu() if i < 2 else hidden
    return functional.cross_entropy(hidden, labels)


def plain_step(
    rule: UpdateRule,
    metas: Network,
    network: Network,
    states: Network,
    images: Tensor,
    labels: Tensor,
    step: int,
) -> tuple[Network, Network, Tensor]:
    """Take one inner step of one network with one vector of meta-parameters."""
    gradients, loss = grad_and_value(loss_of)(network, images, labels)
    progress = (step + 0.5) / HORIZON
    changed, kept = {}, {}
    for name, value in network.items():
        gradient = gradients[name]
        role = "vector" if value.ndim == 1 else "output" if name == "2.weight" else "hidden"
        place = ROLES.index(role)
        old = states[name]
        momenta = [b * old[i] + (1 - b) * gradient for i, b in enumerate(BETAS)]
        second = SECOND_BETA * old[3] + (1 - SECOND_BETA) * gradient**2
        kept[name] = torch.stack([*momenta, second])
        carried = [gradient, *[m / (1 - b ** (step + 1)) for m, b in zip(momenta, BETAS, strict=True)]]
        adam_weights = metas["adam_momentum"] + metas["adam_momentum_drift"] * (progress - 0.5)
        mixed = sum(w * t for w, t in zip(adam_weights, carried, strict=True))
        adam = mixed / ((second / (1 - SECOND_BETA ** (step + 1))).sqrt() + EPS)
        moved = adam
        if value.ndim == 2:
            weights = metas["momentum"] + metas["momentum_drift"] * (progress - 0.5)
            turned = orthogonal(sum(w * t for w, t in zip(weights, carried, strict=True)))
            squares = turned.square().mean(1, keepdim=True) + 1e-12
            turned = turned * (squares.mean() / squares) ** (0.5 * metas["row_power"])
            size = metas["log_orthogonal"][place].exp() * max(1.0, value.shape[0] / value.shape[1]) ** 0.5
            moved = metas["adam"][place] * adam + size * turned + metas["decay"] * value
        if isinstance(rule, PerParameterRule):
            features = torch.stack([gradient, *momenta, adam, moved, value])
            sizes = features.flatten(1).square().mean(1).sqrt()
            scaled = features / (sizes + sizes.new_tensor(FLOORS)).reshape(-1, *(1,) * value.ndim)
            times = torch.tensor([progress - 0.5, 4 * (progress - 0.5) ** 2])
            bias = metas["first_bias"] + metas["first_time"].reshape(-1, 2) @ times
            first = metas["first"].reshape(-1, FEATURES)
            units = torch.einsum("hf,f...->...h", first, scaled) + bias
            moved = moved + sizes[5] * (units.clamp(-1, 1) @ metas["own"])
        power = metas["log_cosine_power"][0].exp()
        basis = torch.tensor([progress - 0.5, (progress - 0.5) ** 2]).tolist()
        basis += [float(torch.tensor(-step / 10).exp()), float(torch.tensor(-step / 100).exp())]
        schedule = power * log(0.5 + 0.5 * torch.cos(torch.tensor(pi * progress)).item())
        schedule = schedule + sum(w * b for w, b in zip(metas["schedule"], basis, strict=True))
        changed[name] = value - (schedule + metas["log_rate"][place]).exp() * moved
    return changed, kept, loss


def published_step(
    rule: UpdateRule,
    metas: Network,
    network: Network,
    states: Network,
    images: Tensor,
    labels: Tensor,
    step: int,
) -> tuple[Network, Network, Tensor]:
    """Take one inner step of one network with Celo2's direction or with small_fc_lopt."""
    gradients, loss = grad_and_value(loss_of)(network, images, labels)
    celo2 = rule.name == "celo2"
    changed, kept = {}, {}
    for name, value in network.items():
        gradient, old = gradients[name], states[name]
        momenta = [b * old[i] + (1 - b) * gradient for i, b in enumerate(DECAYS)]
        second = SECOND_DECAY * old[3] + (1 - SECOND_DECAY) * gradient**2
        means, others = [gradient**2] * 3, [gradient**2] * 3
        if value.ndim == 2:
            means, others = [(gradient**2).mean(1)] * 3, [(gradient**2).mean(0)] * 3
        rows = [b * states[f"{name} rows"][i] + (1 - b) * means[i] for i, b in enumerate(DECAYS)]
        columns = [b * states[f"{name} columns"][i] + (1 - b) * others[i] for i, b in enumerate(DECAYS)]
        kept[name] = torch.stack([*momenta, second])
        kept[f"{name} rows"], kept[f"{name} columns"] = torch.stack(rows), torch.stack(columns)
        if celo2 and value.ndim == 1:
            corrected = (second / (1 - SECOND_DECAY ** (step + 1))).sqrt() + 1e-8
            changed[name] = value - RATE * momenta[0] / (1 - DECAYS[0] ** (step + 1)) / corrected
            continue
        if value.ndim == 2:
            shares = [(r / (r.mean() + TINY)).clamp_min(TINY).rsqrt()[:, None] for r in rows]
            factors = [s * c.clamp_min(TINY).rsqrt() for s, c in zip(shares, columns, strict=True)]
            rows = [r[:, None].expand_as(value) for r in rows]
            columns = [c.expand_as(value) for c in columns]
        else:
            factors = [(r + TINY).rsqrt() for r in rows]
        inverse = (second + 1e-6).rsqrt()
        found = [gradient, value, *momenta, second, *(m * inverse for m in momenta), inverse]
        found += [gradient.clamp(-0.1, 0.1), gradient * inverse] if celo2 else []
        found += [gradient * f for f in factors] + [m * f for m, f in zip(momenta, factors, strict=True)]
        found += [
            *rows,
            *columns,
            *((r + 1e-8).rsqrt() for r in rows),
            *((c + 1e-8).rsqrt() for c in columns),
        ]
        units = torch.stack([f / (f.square().mean().sqrt() + 1e-5) for f in found], -1)
        if not celo2:
            clock = torch.tanh(step / torch.tensor(TIMES) - 1).expand(*value.shape, len(TIMES))
            units = torch.cat([units, clock], -1)
        for i in range(3):
            weight = metas[f"weight_{i}"].reshape(len(metas[f"bias_{i}"]), -1)
            units = functional.linear(units, weight, metas[f"bias_{i}"])
            units = units.relu() if i < 2 else units
        if celo2:
            moved = units[..., 0] / (units[..., 0].square().mean().sqrt() + 1e-8)
        else:
            moved = units[..., 0] * (units[..., 1] * 1e-3).exp()
        changed[name] = value - RATE * moved
    return changed, kept, loss


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the orthogonal factor of one matrix."""
    a, b, c = COEFFICIENTS
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if matrix.shape[0] <= matrix.shape[1] else x.T
    return result


class Race:
    """Both routes through the same training.

    Args:
        rule: name of the rule.
        particles: networks at once.
    """

    def __init__(self, rule: str, particles: int, *, compiled: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(4096, 64, generator=generator)
        data = Classification(images, torch.randint(10, (4096,), generator=generator))
        self.rule, self.particles = RULES[rule](), particles
        self.rule.compiled = compiled
        self.task = MLPTask(data, (64, 32, 32, 10))
        changes = torch.randn(particles, self.rule.size, generator=generator) * 0.1
        self.metas = self.rule.unpack(changes)
        parameters = self.task.initialize(particles, generator)
        self.networks = {n: p.clone() for n, p in zip(self.task.entries, parameters, strict=True)}
        self.states = {n: p.new_zeros(len(p), 4, *p.shape[1:]) for n, p in self.networks.items()}
        self.plain_step = plain_step
        if isinstance(self.rule, FactoredRule):
            self.plain_step = published_step
            for name, p in self.networks.items():
                self.states[f"{name} rows"] = p.new_zeros(len(p), 3, p.shape[1])
                self.states[f"{name} columns"] = p.new_zeros(len(p), 3, p.shape[-1])
        self.group = Group(self.task, HORIZON, 0, [], [])
        self.group.lay(parameters, self.rule)
        self.step = 0

    def indices(self, step: int) -> Tensor:
        """Return the batches of a step."""
        generator = torch.Generator().manual_seed(step)
        return torch.randint(4096, (self.particles, 128), generator=generator)

    def ours(self, steps: int) -> float:
        """Run our route; return CPU seconds."""
        begun = time.process_time()
        for _ in range(steps):
            _, gradients = self.task.gradients(self.group.parameters, self.indices(self.group.step))
            apply(self.rule, self.metas, self.task.roles, self.group, gradients)
            self.group.step += 1
        return time.process_time() - begun

    def plain(self, steps: int) -> float:
        """Run the plain route; return CPU seconds."""
        begun = time.process_time()
        for _ in range(steps):
            images, labels = self.task.data.batch(self.indices(self.step))

            def one(metas: Network, network: Network, states: Network, x: Tensor, y: Tensor) -> Stepped:
                return self.plain_step(self.rule, metas, network, states, x, y, self.step)

            mapped: Stepped = vmap(one)(self.metas, self.networks, self.states, images, labels)
            self.networks, self.states, _ = mapped
            self.step += 1
        return time.process_time() - begun

    def error(self) -> float:
        """Return the largest difference of the routes' parameters."""
        pairs = zip(self.networks.values(), self.group.parameters, strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="inner steps per round")
    parser.add_argument("--rules", nargs="+", default=["structured", "per_parameter", "celo2", "small_fc"])
    parser.add_argument("--particles", type=int, nargs="+", default=[24, 96, 384])
    parser.add_argument("--no-compile", action="store_true", help="leave out the rows of compiled loops")
    parser.add_argument("--print", action="store_true", help="print alone, write no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = ", ".join(f"{value:.1f}" for value in getloadavg())
    lines = [
        "| rule | particles | plain vmap(grad) | metanet | ratio | first steps, s "
        "| largest difference after 2 steps |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = [
        (rule, compiled)
        for rule in options.rules
        for compiled in (False, True)
        if not compiled or (RULES[rule].compilable and not options.no_compile)
    ]
    for rule, compiled in kinds:
        for particles in options.particles:
            race = Race(rule, particles, compiled=compiled)
            first = race.ours(2)
            race.plain(2)
            error = race.error()
            ours = plain = float("inf")
            for _ in range(options.rounds):
                ours = min(ours, race.ours(options.steps))
                plain = min(plain, race.plain(options.steps))
            rates = [particles * options.steps / spent for spent in (plain, ours)]
            lines.append(
                f"| {rule}{', compiled' * compiled} | {particles} | {rates[0]:,.0f} | {rates[1]:,.0f} "
                f"| {rates[1] / rates[0]:.1f} | {first:.1f} | {error:.1e} |"
            )
            print(lines[-1], flush=True)
    if not options.print:
        header = (
            f"# Meta-training throughput\n\n{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, 1 thread, "
            f"torch {torch.__version__}, Python {platform.python_version()}; load averages at the start "
            f"{load}.\n\nParticle-steps per core-second on MLPs 64-32-32-10, batches of 128, smallest CPU "
            f"time of {options.rounds} rounds of {options.steps} steps.\n\n"
        )
        RESULTS.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
