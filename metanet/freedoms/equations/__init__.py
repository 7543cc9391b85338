"""Equations: what each operation demands of the exponents of a group, one family per file.

Suppose every entry that carries a group is multiplied, along each occurrence of the group, by powers of one
factor per unit (of one matrix, of one sign). A value is then multiplied by such powers too, and every
operation says linear equations of the exponents of what it reads and what it makes: a sum has equal ones, a
product adds them, what is contracted cancels, ReLU passes positive factors, tanh passes signs. A solution is
a freedom of the network (`metanet.freedoms.exponents`). An operation without an equation keeps all
that it touches at exponent zero, so that an omission costs a freedom and never soundness.
"""

from metanet.freedoms.equations import attention, contraction, norm, pointwise, recurrent, reduction, shape
from metanet.freedoms.equations.registry import EQUATIONS, Carrier, Mode, Step, Unfit, equation

FAMILIES = (attention, contraction, norm, pointwise, recurrent, reduction, shape)

__all__ = ["EQUATIONS", "FAMILIES", "Carrier", "Mode", "Step", "Unfit", "equation"]
