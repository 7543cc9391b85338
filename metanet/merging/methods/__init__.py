"""The merge methods: pure functions of stretches, one family per file; importing this registers them."""

from metanet.merging.methods import agents as agents
from metanet.merging.methods import fusion as fusion
from metanet.merging.methods import importance as importance
from metanet.merging.methods import linear as linear
from metanet.merging.methods import regression as regression
from metanet.merging.methods import spherical as spherical
from metanet.merging.methods import stock as stock
from metanet.merging.methods import task_vectors as task_vectors
