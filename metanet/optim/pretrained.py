"""Meta-weights: what a rule learned, with the hash that a resumed training checks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from metanet.optim.metas_file import read_metas, save_metas
from metanet.optim.rule import UpdateRule
from metanet.optim.rules.celo2 import Celo2Rule
from metanet.optim.rules.graph_rule import GraphRule
from metanet.optim.rules.network import MixingRule, PerParameterRule
from metanet.optim.rules.nominal import DeepSetsRule, UNFRule
from metanet.optim.rules.small_fc import SmallFCRule
from metanet.optim.rules.structured import StructuredRule

RULES: dict[str, type[UpdateRule]] = {
    rule.name: rule
    for rule in (
        StructuredRule,
        PerParameterRule,
        MixingRule,
        SmallFCRule,
        Celo2Rule,
        DeepSetsRule,
        UNFRule,
        GraphRule,
    )
}
"""Update rules by the name that a file of meta-weights gives."""
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True, eq=False)
class MetaWeights:
    """A rule and what it learned.

    Args:
        name: what a user calls them.
        rule: the update rule.
        metas: meta-parameters, ``[1, n]`` float32 each.
        card: how they were made: tasks, steps, seeds, measured quality.
    """

    name: str
    rule: UpdateRule
    metas: dict[str, Tensor]
    card: dict[str, object] = field(default_factory=dict)
    _typed: dict[torch.dtype, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def hash(self) -> str:
        """SHA-256 of the rule's name and all values."""
        digest = hashlib.sha256(self.rule.name.encode())
        for name, tensor in sorted(self.metas.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def as_type(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the meta-parameters in some type, on the CPU: most become plain numbers."""
        if dtype not in self._typed:
            self._typed[dtype] = {name: meta.to("cpu", dtype) for name, meta in self.metas.items()}
        return self._typed[dtype]

    @classmethod
    def initial(cls, rule: UpdateRule) -> MetaWeights:
        """Return a rule as it is before any meta-training."""
        return cls(f"{rule.name} (initial)", rule, rule.initial())

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all; rule and card stand in its metadata."""
        save_metas(path, self.metas, {"rule": self.rule.name}, self.card)


def shipped() -> list[str]:
    """Return the names of the meta-weights that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def load_meta_weights(name: str) -> MetaWeights:
    """Return meta-weights by the name of shipped ones or by path.

    Raises:
        ValueError: no such weights, a damaged file or one of something else, or values that are not finite.
    """
    path = SHIPPED / f"{name}.safetensors" if name in shipped() else Path(name)
    if not path.is_file():
        known = ", ".join(shipped()) or "none"
        if name in RULES:
            raise ValueError(
                f"{name!r} is a rule, no meta-weights; the shipped ones are {known}, and "
                f"scripts/meta_train.py --rule {name} makes a file of others, which can be named instead"
            )
        raise ValueError(
            f"no meta-weights {name!r}: neither a file nor one of the shipped ones ({known}); those of a hub "
            "repository are fetched by metanet_zoo.meta_weights.fetch_meta_weights"
        )
    metas, metadata, card = read_metas(path, "meta-weights", "save or fetch it again")
    if metadata.get("rule") not in RULES:
        raise ValueError(
            f"{path} holds no meta-weights of a known rule: its metadata says {metadata.get('rule')!r}, "
            f"known are {', '.join(RULES)}"
        )
    rule = RULES[metadata["rule"]]()
    wanted = {key: (1, len(meta.initial)) for key, meta in rule.metas.items()}
    found = {key: tuple(tensor.shape) for key, tensor in metas.items()}
    if wanted != found:
        raise ValueError(f"{path}: the rule {rule.name!r} needs {wanted}, found {found}")
    return MetaWeights(name, rule, metas, card)
