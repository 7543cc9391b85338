"""The matching methods that come with the toolkit, by name; importing this registers them.

Each takes a `Problem` apart for a function that can be called by itself, too.
"""

from __future__ import annotations

from typing import Any, cast

from metanet.matching.activations import activation_matching
from metanet.matching.method import Loss, Problem, Setting, matcher
from metanet.matching.orthogonal import orthogonal_matching
from metanet.matching.sinkhorn_rebasin import sinkhorn_matching
from metanet.matching.soft_map import SoftMatching
from metanet.matching.starts import Start
from metanet.matching.straight_through import straight_through_matching
from metanet.matching.transport import transport_matching
from metanet.matching.weights import DEFAULT_STARTS, Matching, weight_matching
from metanet.matching.zipping import zip_matching


@matcher(
    "weights",
    reference="Ainsworth et al. 2023, Git Re-Basin, https://arxiv.org/abs/2209.04836, §3.2",
    streams=True,
    settings={
        "starts": Setting(DEFAULT_STARTS, "where to start: greedy, identity, sorted, random"),
        "max_sweeps": Setting(100, "passes over all groups, for each start"),
    },
)
def _weights(
    problem: Problem, *, starts: tuple[str, ...] = DEFAULT_STARTS, max_sweeps: int = 100
) -> Matching:
    """Weights alone, by coordinate descent: signs, phases and nested groups too."""
    return weight_matching(
        problem.spec,
        problem.a,
        problem.b,
        fixed=problem.fixed,
        starts=cast(tuple[Start, ...], starts),
        max_sweeps=max_sweeps,
        seed=problem.seed,
        progress=problem.progress,
    )


@matcher(
    "activations",
    reference="Li et al. 2016, Convergent Learning, https://arxiv.org/abs/1511.07543",
    needs="inputs",
)
def _activations(problem: Problem) -> Matching:
    """Correlations of activations on data."""
    assert problem.model is not None
    return activation_matching(
        problem.spec,
        problem.model,
        problem.a,
        problem.b,
        *problem.inputs,
        fixed=problem.fixed,
        seed=problem.seed,
    )


@matcher(
    "straight-through",
    reference="Ainsworth et al. 2023, Git Re-Basin, https://arxiv.org/abs/2209.04836, §3.3",
    needs="loss",
    settings={
        "steps": Setting(100, "of Adam"),
        "learning_rate": Setting(1e-3, "of Adam"),
    },
)
def _straight_through(problem: Problem, *, steps: int = 100, learning_rate: float = 1e-3) -> Matching:
    """The loss at the midpoint, its gradient going straight through weight matching."""
    return straight_through_matching(
        problem.spec,
        problem.a,
        problem.b,
        _loss(problem),
        fixed=problem.fixed,
        steps=steps,
        learning_rate=learning_rate,
        seed=problem.seed,
    )


SINKHORN = {
    "steps": Setting(100, "of Adam"),
    "learning_rate": Setting(0.3, "of Adam"),
    "temperature": Setting(1.0, "of Sinkhorn's operator: smaller is nearer to permutations"),
}


@matcher(
    "sinkhorn",
    reference="Peña et al. 2023, Sinkhorn re-basin, https://arxiv.org/abs/2212.12042",
    settings={
        **SINKHORN,
        "begin": Setting("barycentre", "where to begin", ("barycentre", "weights")),
    },
)
def _sinkhorn(problem: Problem, **settings: Any) -> Matching:
    """Weights alone, by gradient descent over doubly stochastic matrices."""
    return sinkhorn_matching(
        problem.spec, problem.a, problem.b, fixed=problem.fixed, seed=problem.seed, **settings
    )


@matcher(
    "sinkhorn-loss",
    reference="Peña et al. 2023, Sinkhorn re-basin, https://arxiv.org/abs/2212.12042",
    needs="loss",
    settings={
        **SINKHORN,
        "begin": Setting("weights", "where to begin", ("barycentre", "weights")),
        "objective": Setting("midpoint", "where on the path the loss is lowered", ("midpoint", "random")),
    },
)
def _sinkhorn_loss(problem: Problem, **settings: Any) -> Matching:
    """The loss between the networks, by gradient descent over doubly stochastic matrices."""
    return sinkhorn_matching(
        problem.spec, problem.a, problem.b, _loss(problem), fixed=problem.fixed, seed=problem.seed, **settings
    )


@matcher(
    "orthogonal",
    reference="Theus et al. 2025, Generalized Linear Mode Connectivity, https://arxiv.org/abs/2506.22712",
    folds=True,
    settings={"max_rounds": Setting(20, "turns of Procrustes and weight matching")},
)
def _orthogonal(problem: Problem, *, max_rounds: int = 20) -> Matching:
    """Weights alone: residual streams of RMSNorm transformers turned, everything else permuted."""
    return orthogonal_matching(
        problem.spec,
        problem.a,
        problem.b,
        fixed=problem.fixed,
        max_rounds=max_rounds,
        seed=problem.seed,
    )


@matcher(
    "transport",
    reference="Singh and Jaggi 2020, Model Fusion via Optimal Transport, https://arxiv.org/abs/1910.05653",
    returns="soft map",
    widths=True,
    settings={
        "regularization": Setting(0.0, "entropy of couplings, by the mean cost; 0 solves exactly"),
    },
)
def _transport(problem: Problem, *, regularization: float = 0.0) -> SoftMatching:
    """Weights alone, by optimal transport layer by layer: onto other widths too."""
    return transport_matching(
        problem.spec,
        problem.a,
        problem.b,
        spec_a=problem.spec_a,
        fixed=problem.fixed,
        regularization=regularization,
    )


ZIP = {
    "stop_after": Setting("", "layer behind which the networks stay apart: two heads on one trunk"),
    "again": Setting(0.3, "what the similarity of merged units is multiplied by, 0 to 1"),
    "within": Setting(0.125, "largest share of merges of two units of one network"),
}


@matcher(
    "zip",
    reference="Stoica et al. 2024, ZipIt!, https://arxiv.org/abs/2305.03053",
    needs="inputs",
    returns="soft map",
    settings=ZIP,
)
def _zip(problem: Problem, **settings: Any) -> SoftMatching:
    """Correlations of activations, within a network as well as across; both networks are merged."""
    return zip_matching(
        problem.spec,
        problem.a,
        problem.b,
        problem.model,
        *problem.inputs,
        fixed=problem.fixed,
        seed=problem.seed,
        **settings,
    )


@matcher(
    "zip-weights",
    reference="Stoica et al. 2024, ZipIt!, https://arxiv.org/abs/2305.03053, by weights instead of data",
    returns="soft map",
    settings=ZIP,
)
def _zip_weights(problem: Problem, **settings: Any) -> SoftMatching:
    """Weights alone, within a network as well as across; both networks are merged."""
    return zip_matching(problem.spec, problem.a, problem.b, fixed=problem.fixed, **settings)


def _loss(problem: Problem) -> Loss:
    assert problem.loss is not None
    return problem.loss
