"""Meta-train an update rule on small MLPs: the script behind the weights that ship with the package.

    python scripts/meta_train.py --data ../shared/data --rule structured --out runs/meta/structured

Inner tasks are MLPs with one to three hidden layers of 16–64 units and several activations on Fashion-MNIST
averaged to 8×8; checkpoints are chosen on MNIST, which is no task of the benchmark. The same command
continues a run that was killed. One core suffices: about 2,000 particle-steps per second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional

from metanet.optim.meta.tasks import Classification, MLPTask
from metanet.optim.meta.trainer import ESTIMATORS, MetaSettings
from metanet.optim.pretrained import RULES, load_meta_weights
from metanet_tasks.optim.meta_task import MLPFamily, meta_train


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion-mnist/ and mnist/")
    parser.add_argument("--rule", choices=list(RULES), default="structured")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=600, help="meta-steps")
    parser.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        default="pes",
        help="of the meta-gradient: persistent, truncated or full evolution strategies, truncated "
        "backpropagation, or that with inner gradients as constants",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=12,
        help="antithetic pairs per group; half the networks of backpropagation",
    )
    parser.add_argument("--stretch", type=int, default=50, help="inner steps per meta-step; full-es: all")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=0.06)
    parser.add_argument("--start", help="meta-weights of the structured rule to begin from")
    for option, what in (
        ("--scales", "weights are stored divided by a number drawn between these"),
        ("--widenings", "networks are parametrised as if this many times as wide (µP)"),
    ):
        parser.add_argument(
            option,
            nargs=2,
            type=float,
            default=(1.0, 1.0),
            metavar=("LOW", "HIGH"),
            help=f"augmentation: {what}",
        )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compiled loops, for rules that have them")
    options = parser.parse_args()
    made = RULES[options.rule]()
    start = None
    if options.start is not None:
        start = torch.zeros(made.size)
        begun = load_meta_weights(options.start)
        position = 0
        for name, meta in made.metas.items():
            width = len(meta.initial)
            if name in begun.metas:
                start[position : position + width] = (
                    begun.metas[name][0] - torch.tensor(meta.initial)
                ) / meta.scale
            position += width
    fashion, mnist = images(options.data / "fashion-mnist"), images(options.data / "mnist")
    selection = [
        (MLPTask(mnist, (64, 24, 10), "tanh"), 1000),
        (MLPTask(mnist, (64, 48, 48, 10), "relu"), 1000),
    ]
    settings = MetaSettings(
        groups=options.groups,
        pairs=options.pairs,
        stretch=options.stretch,
        sigma=options.sigma,
        horizons=(300, 2000),
        estimator=options.estimator,
    )
    weights = meta_train(
        options.rule,
        MLPFamily([fashion], scales=tuple(options.scales), widenings=tuple(options.widenings)),
        selection,
        options.out,
        steps=options.steps,
        settings=settings,
        learning_rate=options.learning_rate,
        seed=options.seed,
        start=start,
        compile=options.compile,
        description={
            "inner_data": "Fashion-MNIST, 60,000 training images averaged to 8×8",
            "selection": "MNIST 8×8, MLPs 64-24-10 tanh and 64-48-48-10 relu, 1,000 steps",
            "started_from": options.start or "the rule's initial values",
        },
    )
    print(f"{weights.name}: {weights.hash}")


def images(folder: Path) -> Classification:
    """Return the training images of an IDX folder, averaged to 8×8."""
    from metanet_zoo.images import open_images

    found = open_images(folder / "train-images-idx3-ubyte.gz")
    assert found.labels is not None
    pixels = found.images[:, None].float() / 255
    return Classification(functional.interpolate(pixels, size=(8, 8), mode="area").flatten(1), found.labels)


if __name__ == "__main__":
    main()
