"""Learned optimizers: `torch.optim` optimizers whose update rules were meta-learned on many trainings."""

from metanet.optim.forecaster import Forecaster
from metanet.optim.nowcaster import Nowcaster
from metanet.optim.optimizer import LearnedOptimizer
from metanet.optim.pretrained import MetaWeights, load_meta_weights
from metanet.optim.rule import UpdateRule
from metanet.optim.rules.structured import StructuredRule

__all__ = [
    "Forecaster",
    "LearnedOptimizer",
    "MetaWeights",
    "Nowcaster",
    "StructuredRule",
    "UpdateRule",
    "load_meta_weights",
]
