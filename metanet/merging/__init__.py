"""Merging weights: methods as pure functions, recipes, and what a stream of tensors needs. NumPy only."""

from metanet.merging.method import METHODS as METHODS
from metanet.merging.method import Method as Method
from metanet.merging.method import Parameter as Parameter
from metanet.merging.method import Pass as Pass
from metanet.merging.method import merge_method as merge_method
from metanet.merging.stretch import Settings as Settings
from metanet.merging.stretch import Stretch as Stretch
from metanet.merging.tensor import merge_tensor as merge_tensor
