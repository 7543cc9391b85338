"""Networks that a task can name: one visible dict from name to factory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from metanet.features import WeightFeatures
from metanet.nn.classifier import WeightClassifier
from metanet.nn.gmn import GMN, Message
from metanet.spec import WeightSpec
from metanet_tasks.baselines import FlatMLP


class GMNClassifier(GMN):
    """Graph metanetwork as a classifier; it needs the spec for nothing but its features.

    Args:
        spec: of the weights.
        out_features: number of classes.
        hidden_channels: of nodes, edges and graphs.
        num_layers: rounds of message passing.
        readout_channels: width of the readout; None for 4 times the hidden channels.
        num_frequencies: sines and cosines of the parameters as further input.
        message: ``"product"`` (unit times weight) or ``"mlp"`` (the paper's).
        bidirectional: units collect from their readers too.
        dropout: in the readout.
    """

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        hidden_channels: int = 32,
        num_layers: int = 4,
        readout_channels: int | None = None,
        num_frequencies: int = 0,
        message: Message = "product",
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            hidden_channels,
            num_layers,
            out_features,
            readout_channels=readout_channels,
            num_frequencies=num_frequencies,
            message=message,
            bidirectional=bidirectional,
            dropout=dropout,
        )

    def fit_encoding(self, features: WeightFeatures) -> GMNClassifier:
        """Take statistics from the training networks; returns this module."""
        self.fit(features)
        return self


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unf": partial(WeightClassifier, network="unf"),
    "dws": partial(WeightClassifier, network="dws"),
    "gmn": GMNClassifier,
    "flat_mlp": FlatMLP,
}
"""Name in a configuration -> factory ``(spec, out_features, **options)``."""


def build_network(name: str, spec: WeightSpec, out_features: int, options: Mapping[str, Any]) -> nn.Module:
    """Build a network by its name.

    Args:
        name: a key of `NETWORKS`.
        spec: of the weights it reads.
        out_features: number of classes.
        options: keyword arguments of the factory.

    Raises:
        ValueError: no such name or option; the message lists the ones there are.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; the known ones are {', '.join(NETWORKS)}")
    known = set(network_options(name))
    if unknown := sorted(set(options) - known):
        raise ValueError(f"network {name!r} has no options {unknown}; it has {', '.join(sorted(known))}")
    return NETWORKS[name](spec, out_features, **options)


def network_options(name: str) -> dict[str, Any]:
    """Return the options of a network with their defaults."""
    factory = NETWORKS[name]
    taken = set(factory.keywords) if isinstance(factory, partial) else set()
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in taken}
