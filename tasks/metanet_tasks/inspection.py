"""Inspecting a network: its spec, where it comes from, and the proof that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metanet.derive import spec_of
from metanet.explanation import explain
from metanet.spec import WeightSpec
from metanet.verification import Verification, verify
from metanet_tasks.objects import is_object, load_object, parse_input
from metanet_tasks.reduced_proof import prove_reduced
from metanet_zoo.spec_files import read_spec
from metanet_zoo.spec_source import find_spec


@dataclass(frozen=True)
class Inspection:
    """What is known of a network's symmetry.

    Args:
        source: what was inspected, as given.
        origin: where the spec comes from, one sentence.
        spec: the spec.
        notes: what was assumed or done on the way, one sentence each.
        verification: the proof in float64; None where none was asked for or possible.
        not_proven: why there is no proof, if one was asked for.
    """

    source: str
    origin: str
    spec: WeightSpec
    notes: tuple[str, ...] = ()
    verification: Verification | None = None
    not_proven: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        spec = self.spec
        where = spec.group_to_axes
        proof: dict[str, Any] | None = None
        if self.verification is not None:
            proof = {
                "proven": self.verification.ok,
                "max_error": self.verification.max_error,
                "errors": dict(self.verification.errors),
                "controls": dict(self.verification.controls),
                "dead": list(self.verification.dead),
                "unused": list(self.verification.unused),
                "draws": self.verification.draws,
            }
        elif self.not_proven is not None:
            proof = {"proven": None, "reason": self.not_proven}
        return {
            "source": self.source,
            "origin": self.origin,
            "notes": list(self.notes),
            "notation": str(spec),
            "groups": [
                {
                    "name": group.name,
                    "size": group.size,
                    "freedoms": [str(freedom) for freedom in group.freedoms],
                    "parent": group.parent,
                    "occurs": [list(place) for place in where[group.name]],
                }
                for group in spec.groups
            ],
            "entries": {
                name: {"axes": " ".join(map(str, axes)), "shape": list(spec.shapes[name])}
                for name, axes in spec.entries
            },
            "num_parameters": spec.num_parameters,
            "log2_size": spec.log2_size(),
            "phase_rank": spec.phase_rank(),
            "dimension": spec.dimension(),
            "lost": [
                {"operation": lost.operation, "entries": list(lost.entries), "reason": lost.reason}
                for lost in spec.lost
            ],
            "unused": list(spec.unused),
            "ties": [list(tie) for tie in spec.ties],
            "verification": proof,
            "explanation": explain(spec).to_dict(),
        }


def inspect(
    source: str,
    *,
    inputs: Sequence[str] = (),
    spec_file: Path | None = None,
    activation: str | None = None,
    prove: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    cache: bool = True,
) -> Inspection:
    """Find the spec of a network, and prove it if asked to.

    An object ``package.module:factory`` is traced on its inputs. A checkpoint takes the spec file beside it,
    is built from its Hugging Face ``config.json``, or is recognised as a plain sequential network.

    Args:
        source: an object, or whatever `metanet_zoo.open_checkpoint` opens.
        inputs: one description per argument of the network (`metanet_tasks.objects.parse_input`).
        spec_file: take this spec; with an object it is checked (and proven) against the object.
        activation: of a plain sequential network, e.g. ``relu`` or ``sine:30``.
        prove: draw random group elements and compare outputs in float64.
        seed: of the inputs.
        trust_remote_code: run the code that a Hugging Face folder brings along.
        cache: keep and use derived specs in the user's cache folder.

    Returns:
        The inspection; ``verification.ok`` says whether the proof succeeded.

    Raises:
        ValueError: unreadable source, inputs that the network does not take, a spec that does not fit.
    """
    if is_object(source):
        if activation is not None:
            raise ValueError(f"{source} is a network; its activation is read from it, leave out --activation")
        return _inspect_object(source, inputs, spec_file, prove, seed)
    if inputs:
        raise ValueError(
            f"{source} is a checkpoint, which cannot be run on inputs; leave out --input, or name the "
            "network that goes with it as package.module:factory"
        )
    return _inspect_checkpoint(source, spec_file, activation, prove, trust_remote_code, cache)


def _inspect_object(
    source: str, inputs: Sequence[str], spec_file: Path | None, prove: bool, seed: int
) -> Inspection:
    model = load_object(source)
    if not inputs:
        raise ValueError(
            f"{source} is traced on inputs: pass one --input per argument, such as f32[1,3,32,32]"
        )
    generator = torch.Generator().manual_seed(seed)
    arguments = tuple(parse_input(text, generator) for text in inputs)
    _run_once(source, model, arguments)
    if spec_file is not None:
        spec = read_spec(spec_file, {name: tuple(t.shape) for name, t in model.state_dict().items()})
        origin = f"read from {spec_file}"
    else:
        spec = spec_of(model, *arguments)
        origin = f"derived from {type(model).__name__} on {', '.join(inputs)}"
    proof = verify(spec, model, *arguments) if prove else None
    return Inspection(source, origin, spec, verification=proof)


def _run_once(source: str, model: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    try:
        with torch.no_grad():
            model(*arguments)
    except Exception as error:
        # Whatever the user's own code raises: the reason is in its message, our stack would hide it.
        raise ValueError(
            f"{source} does not run on inputs {', '.join(str(list(a.shape)) for a in arguments)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _inspect_checkpoint(
    source: str, spec_file: Path | None, activation: str | None, prove: bool, trust: bool, cache: bool
) -> Inspection:
    found = find_spec(
        source, spec_file=spec_file, activation=activation, trust_remote_code=trust, cache=cache
    )
    verification, reason, notes = None, None, found.notes
    if prove and found.kind == "sequential" and found.model is not None:
        verification = verify(found.spec, found.model, *found.inputs)
    elif prove and found.kind == "huggingface":
        verification, more, reason = prove_reduced(found, trust_remote_code=trust)
        notes += more
    elif prove:
        reason = "a checkpoint with a spec file cannot be run; inspect package.module:factory with --spec"
    return Inspection(source, found.origin, found.spec, notes, verification, reason)
