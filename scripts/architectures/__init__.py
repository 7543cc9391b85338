"""The architecture families of the table: small random networks of every kind, with example inputs."""

from architectures import (
    attention,
    audio,
    convolutional,
    fields,
    generative,
    graphs,
    modular,
    multimodal,
    perceptrons,
    sequences,
    text,
    vision,
)
from architectures.family import Example, Family, collected

FAMILIES: dict[str, Family] = collected(
    *(
        module.FAMILIES
        for module in (
            *(text, vision, audio, multimodal, perceptrons, convolutional, generative, sequences),
            *(attention, fields, modular, graphs),
        )
    )
)
"""Name -> family, in the order of the table."""

__all__ = ["FAMILIES", "Example", "Family"]
