"""The merge methods: pure functions of stretches, one family per file; importing this registers them."""

from metanet.merging.methods import linear as linear
from metanet.merging.methods import spherical as spherical
from metanet.merging.methods import task_vectors as task_vectors
