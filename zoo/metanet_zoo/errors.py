"""The package's error: input that is not what it claims to be."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read as named tensors: what was found, what was expected, what to do."""
