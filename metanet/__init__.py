"""Weight-space metanetworks: the symmetry of any traceable network, derived, proven and used."""

__version__ = "0.1.0"
