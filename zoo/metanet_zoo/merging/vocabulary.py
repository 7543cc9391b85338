"""Vocabularies brought together: one tokenizer for the output, every model's embeddings in its order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import FLOAT_DTYPES, Bytes, Floats, decode, encode
from metanet.merging.stretch import row_length
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.sources import Entry, TensorSource

Indices = NDArray[np.int64]
NO_ROW = -1


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer: what ``tokenizer.json`` says, and the id of every token."""

    content: Mapping[str, Any]
    ids: Mapping[str, int]


def read_tokenizer(folder: Path | None, label: str) -> Tokenizer:
    """Read a model's tokenizer.

    Raises:
        CheckpointError: the model has no ``tokenizer.json``, or one of a kind whose tokens have no ids.
    """
    path = None if folder is None else folder / "tokenizer.json"
    if path is None or not path.is_file():
        raise CheckpointError(
            f"{label}: no tokenizer.json, which bringing vocabularies together needs; save the tokenizer as "
            "a fast one, or leave tokenizer out"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = (content.get("model") or {}).get("vocab")
    if isinstance(vocabulary, dict):
        ids = {str(token): int(number) for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        ids = {str(piece[0]): number for number, piece in enumerate(vocabulary)}
    else:
        raise CheckpointError(
            f"{path}: no vocabulary under model.vocab; this kind of tokenizer is not merged"
        )
    for token in content.get("added_tokens") or ():
        ids[str(token["content"])] = int(token["id"])
    return Tokenizer(content, ids)


def unite(tokenizers: Sequence[Tokenizer]) -> Tokenizer:
    """Extend the first tokenizer by the tokens that only others have.

    New ids follow the largest one, in the order of the tokenizers and of their ids. Merge rules of byte-pair
    encodings that the first lacks are appended behind its own, so its own text is still cut as before.

    Args:
        tokenizers: that of the leading model first.

    Raises:
        CheckpointError: tokenizers of different kinds, of which one could not read the other's tokens.
    """
    first = tokenizers[0]
    content = json.loads(json.dumps(first.content))
    ids = dict(first.ids)
    kinds = {str(tokenizer.content["model"].get("type")) for tokenizer in tokenizers}
    vocabulary = content["model"]["vocab"]
    # An added token that is not in the vocabulary gets whatever id comes next when the file is read.
    for token in sorted(content.get("added_tokens") or (), key=lambda token: int(token["id"])):
        _enter(vocabulary, token["content"], ids[token["content"]])
    known_merges = {_merge(rule) for rule in content["model"].get("merges") or ()}
    for other in tokenizers[1:]:
        added = {str(token["content"]): token for token in other.content.get("added_tokens") or ()}
        scores = _scores(other)
        for token, _ in sorted(other.ids.items(), key=lambda item: item[1]):
            if token in ids:
                continue
            number = ids[token] = max(ids.values()) + 1
            if token in added:
                content.setdefault("added_tokens", []).append({**added[token], "id": number})
            elif len(kinds) > 1:
                raise CheckpointError(
                    f"the tokenizers are of kinds {', '.join(sorted(kinds))}, which cannot be united; name "
                    "one of the models under tokenizer_source instead"
                )
            _enter(vocabulary, token, number, scores.get(token))
        for rule in other.content["model"].get("merges") or ():
            if _merge(rule) not in known_merges:
                known_merges.add(_merge(rule))
                content["model"]["merges"].append(rule)
    return Tokenizer(content, ids)


def extend(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """Add tokens that a tokenizer lacks, behind its own.

    Args:
        tokenizer: the tokenizer; it stays as it is.
        tokens: the tokens.
    """
    missing = [token for token in dict.fromkeys(tokens) if token not in tokenizer.ids]
    if not missing:
        return tokenizer
    content = json.loads(json.dumps(tokenizer.content))
    ids = dict(tokenizer.ids)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    vocabulary = content["model"]["vocab"]
    for token in sorted(content.get("added_tokens") or (), key=lambda token: int(token["id"])):
        _enter(vocabulary, token["content"], ids[token["content"]])
    for token in missing:
        ids[token] = max(ids.values()) + 1
        content.setdefault("added_tokens", []).append({"id": ids[token], "content": token, **plain})
        _enter(vocabulary, token, ids[token])
    return Tokenizer(content, ids)


def _scores(tokenizer: Tokenizer) -> dict[str, float]:
    """Scores of a vocabulary's pieces, for the kind of vocabulary that has them."""
    vocabulary = tokenizer.content["model"]["vocab"]
    return {str(piece[0]): float(piece[1]) for piece in vocabulary} if isinstance(vocabulary, list) else {}


def _enter(vocabulary: Any, token: str, number: int, score: float | None = None) -> None:
    """Put a token into a vocabulary, a mapping to ids or a list of pieces and scores, unless it is there."""
    if isinstance(vocabulary, dict):
        vocabulary.setdefault(token, number)
    elif number == len(vocabulary):
        vocabulary.append([token, min(piece[1] for piece in vocabulary) if score is None else score])
    elif number > len(vocabulary) or vocabulary[number][0] != token:
        raise CheckpointError(
            f"token {token!r} has id {number}, which its place among {len(vocabulary)} pieces does not give; "
            "name one of the models under tokenizer_source instead of union"
        )


def _merge(rule: object) -> str:
    return rule if isinstance(rule, str) else " ".join(rule)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Donor:
    """Where a missing row comes from: a row of a source's tensor."""

    source: TensorSource
    name: str
    row: int


class VocabularySource:
    """A model's tensors, those over the vocabulary in the order of another tokenizer.

    Args:
        source: the model's tensors.
        rows: tensor -> ``[size]`` own row of every row of the result, `NO_ROW` where the model has none.
        donors: tensor -> row of the result -> the rows to average there; none gives zeros.
    """

    def __init__(
        self,
        source: TensorSource,
        rows: Mapping[str, Indices],
        donors: Mapping[str, Mapping[int, Sequence[Donor]]],
    ) -> None:
        self._source, self._rows, self._donors = source, dict(rows), donors
        self._entries = dict(source.entries())
        for name, index in rows.items():
            entry = self._entries[name]
            self._entries[name] = Entry(entry.dtype, (index.size, *entry.shape[1:]))

    def entries(self) -> Mapping[str, Entry]:
        """Every tensor, in the stored order."""
        return self._entries

    def close(self) -> None:
        """Release open files."""
        self._source.close()

    def read(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """Fill ``out`` with the bytes of values ``start:stop``."""
        index = self._rows.get(name)
        if index is None:
            self._source.read(name, start, stop, out)
            return
        entry = self._entries[name]
        columns = row_length(entry.shape) if len(entry.shape) > 1 else 1
        width = columns * entry.item_size
        first, last = start // columns, -(-stop // columns)
        table = np.zeros(((last - first), width), np.uint8)
        own = index[first:last]
        breaks = np.flatnonzero((np.diff(own) != 1) | (own[1:] == NO_ROW)) + 1
        for begin, end in zip([0, *breaks.tolist()], [*breaks.tolist(), own.size], strict=True):
            row = int(own[begin])
            if row == NO_ROW:
                for at in range(begin, end):
                    table[at] = self._given(name, first + at, entry, columns)
            else:
                part = table[begin:end].reshape(-1)
                self._source.read(name, row * columns, (row + end - begin) * columns, part)
        begin = (start - first * columns) * entry.item_size
        np.copyto(out, table.reshape(-1)[begin : begin + out.size])

    def _given(self, name: str, row: int, entry: Entry, columns: int) -> Bytes:
        donors = self._donors.get(name, {}).get(row, ())
        raw = np.zeros(columns * entry.item_size, np.uint8)
        if not donors:
            return raw
        total: Floats = np.zeros(columns, np.float64)
        values: Floats = np.empty(columns, np.float64)
        for donor in donors:
            theirs = donor.source.entries()[donor.name]
            found = np.empty(columns * theirs.item_size, np.uint8)
            donor.source.read(donor.name, donor.row * columns, (donor.row + 1) * columns, found)
            decode(found, theirs.dtype, values)
            total += values
        total /= len(donors)
        encode(total, entry.dtype, raw)
        return raw


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model with its tokenizer, and its tensors over the vocabulary by their role."""

    label: str
    source: TensorSource
    tokenizer: Tokenizer
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChosenRow:
    """The row that a token takes in models that lack it.

    Args:
        speaker: number of the model that has the row; None gives zeros.
        row: its number there.
        force: whether models that have the token take that row, too.
    """

    speaker: int | None
    row: int
    force: bool = False


def translate(
    speakers: Sequence[Speaker],
    ids: Mapping[str, int],
    size: int,
    chosen: Mapping[str, ChosenRow] = MappingProxyType({}),
) -> list[TensorSource]:
    """Bring models into the order of one vocabulary.

    A token that a model lacks gets the row of the first model (the leading one) if that has it, or else the
    mean over the models that do. A row that no token has keeps its own number.

    Args:
        speakers: the models, the leading one first.
        ids: token -> id in the output.
        size: rows of the output's embeddings.
        chosen: token -> the row that it takes instead.

    Returns:
        the models' sources, in the same order.

    Raises:
        CheckpointError: a model's embeddings have fewer rows than its tokenizer has ids, or are no floats.
    """
    result: list[TensorSource] = []
    names: list[str | None] = [None] * size
    for token, number in ids.items():
        names[number] = token
    for speaker in speakers:
        rows: dict[str, Indices] = {}
        donors: dict[str, dict[int, list[Donor]]] = {}
        for table in speaker.tables:
            index = np.array([_own_row(speaker, table, i, name) for i, name in enumerate(names)], np.int64)
            index[[ids[token] for token, row in chosen.items() if row.force]] = NO_ROW
            rows[table] = index
            donors[table] = {
                int(i): _donors(speakers, table, names[int(i)], chosen)
                for i in np.flatnonzero(index == NO_ROW)
            }
        same = all(
            np.array_equal(index, np.arange(speaker.source.entries()[table].shape[0]))
            for table, index in rows.items()
        )
        result.append(speaker.source if same else VocabularySource(speaker.source, rows, donors))
    return result


def _own_row(speaker: Speaker, table: str, number: int, token: str | None) -> int:
    entry = speaker.source.entries()[table]
    if entry.dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"{speaker.label}: {table} is {entry.dtype}, expected floats")
    row = speaker.tokenizer.ids.get(token, NO_ROW) if token is not None else number
    if row >= entry.shape[0]:
        if token is None:
            return NO_ROW
        raise CheckpointError(
            f"{speaker.label}: token {token!r} has id {row}, but {table} has {entry.shape[0]} rows; its "
            "tokenizer and weights do not belong together"
        )
    return row


def _donors(
    speakers: Sequence[Speaker], table: str, token: str | None, chosen: Mapping[str, ChosenRow]
) -> list[Donor]:
    if token is None:
        return []
    choice = chosen.get(token)
    if choice is not None:
        return [] if choice.speaker is None else [_chosen(speakers[choice.speaker], table, token, choice.row)]
    having = [
        Donor(speaker.source, table, speaker.tokenizer.ids[token])
        for speaker in speakers
        if token in speaker.tokenizer.ids and table in speaker.tables
    ]
    leading = speakers[0]
    if having and token in leading.tokenizer.ids and having[0].source is leading.source:
        return having[:1]
    return having


def _chosen(speaker: Speaker, table: str, token: str, row: int) -> Donor:
    entry = speaker.source.entries().get(table)
    if entry is None or not 0 <= row < entry.shape[0]:
        found = "no such tensor" if entry is None else f"{entry.shape[0]} rows"
        raise CheckpointError(
            f"token {token!r} is to take row {row} of {table} of {speaker.label}, where there is {found}"
        )
    return Donor(speaker.source, table, row)
