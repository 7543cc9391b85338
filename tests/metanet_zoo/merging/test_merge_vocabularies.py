"""Models of different vocabularies: one tokenizer, and every token's rows where its id says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metanet.merging.recipe import RecipeError
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.run import merge_checkpoints
from metanet_zoo.merging.vocabulary import Tokenizer, unite

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def write(folder: Path, words: list[str], added: list[str], rows: int, seed: int) -> dict[str, Tensor]:
    """Write a model whose tokenizer knows ``words``, then ``added`` tokens, in this order of ids."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(rows, 4, generator=generator) for name in TABLES}
    tensors["model.norm.weight"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "vocab_size": rows, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": len(words) + i, "content": token, **plain} for i, token in enumerate(added)]
    tokenizer = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
    )
    return tensors


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    return {
        "a": write(tmp_path / "a", ["<unk>", "red", "green"], ["<a>"], 6, 0),
        "b": write(tmp_path / "b", ["blue", "green", "<unk>"], ["<b>", "<a>"], 5, 1),
    }


def merged(tmp_path: Path, tokenizer: object, *, base: str | None = None) -> dict[str, Tensor]:
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "models": [{"model": str(tmp_path / name)} for name in "ab"],
        "parameters": {"weight": 1},
    }
    if base is not None:
        recipe["base_model"] = str(tmp_path / base)
    if tokenizer is not None:
        recipe["tokenizer"] = tokenizer
    merge_checkpoints(recipe, tmp_path / "out", overwrite=True)
    return load_file(tmp_path / "out" / "model.safetensors")


def ids(tmp_path: Path) -> Mapping[str, int]:
    content = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    added = {str(token["content"]): int(token["id"]) for token in content["added_tokens"]}
    return dict(content["model"]["vocab"]) | added


def test_a_union_keeps_the_first_ids_and_appends_the_rest(
    pair: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    out = merged(tmp_path, "union")
    assert ids(tmp_path) == {"<unk>": 0, "red": 1, "green": 2, "<a>": 3, "blue": 4, "<b>": 5}
    for table in TABLES:
        a, b = pair["a"][table], pair["b"][table]
        # Rows of both where both know a token; else the row of the one that does, standing for both.
        rows = [(a[0] + b[2]) / 2, a[1], (a[2] + b[1]) / 2, (a[3] + b[4]) / 2, b[0], b[3]]
        torch.testing.assert_close(out[table], torch.stack(rows))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 6


def test_the_base_decides_and_its_padding_stays(pair: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    out = merged(tmp_path, "base")
    assert ids(tmp_path) == {"<unk>": 0, "red": 1, "green": 2, "<a>": 3}
    for table in TABLES:
        a, b = pair["a"][table], pair["b"][table]
        rows = [(a[0] + b[2]) / 2, a[1], (a[2] + b[1]) / 2, (a[3] + b[4]) / 2, (a[4] + b[4]) / 2, a[5] / 2]
        torch.testing.assert_close(out[table], torch.stack(rows))
    by_name = merged(tmp_path, {"source": str(tmp_path / "b"), "pad_to_multiple_of": 4})
    assert ids(tmp_path) == {"blue": 0, "green": 1, "<unk>": 2, "<b>": 3, "<a>": 4}
    assert by_name[TABLES[0]].shape == (8, 4)
    assert not by_name[TABLES[0]][6:].any()


def test_transformers_reads_the_united_tokenizer(pair: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    merged(tmp_path, "union")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("red blue <b> green <a> yellow")["input_ids"] == [1, 4, 5, 2, 3, 0]


def test_without_a_tokenizer_vocabularies_must_agree(
    pair: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="vocabularies differ; set tokenizer_source: union"):
        merged(tmp_path, None)
    with pytest.raises(RecipeError, match="names no model 'unoin'; did you mean 'union'"):
        merged(tmp_path, "unoin")
    with pytest.raises(RecipeError, match="'tokns' is not supported; did you mean 'tokens'"):
        merged(tmp_path, {"source": "union", "tokns": {}})
    (tmp_path / "b" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"b: no tokenizer\.json"):
        merged(tmp_path, "union")


def test_kinds_that_cannot_be_united(pair: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    file = tmp_path / "b" / "tokenizer.json"
    file.write_text(file.read_text().replace("WordLevel", "BPE"))
    with pytest.raises(CheckpointError, match="kinds BPE, WordLevel, which cannot be united"):
        merged(tmp_path, "union")


def test_pieces_with_scores_are_united() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

    def pieces(words: list[str], added: list[str]) -> Tokenizer:
        content = {
            "version": "1.0",
            "added_tokens": [
                {"id": len(words) + i, "content": token, **special} for i, token in enumerate(added)
            ],
            "model": {
                "type": "Unigram",
                "unk_id": 0,
                "vocab": [[word, -1.0 - i] for i, word in enumerate(words)],
            },
        }
        return Tokenizer(content, {token: i for i, token in enumerate([*words, *added])})

    united = unite([pieces(["<unk>", "ab"], ["<a>"]), pieces(["<unk>", "ab", "cd"], ["<b>"])])
    assert united.ids == {"<unk>": 0, "ab": 1, "<a>": 2, "cd": 3, "<b>": 4}
    loaded = tokenizers.Tokenizer.from_str(json.dumps(united.content))
    assert loaded.encode("abcd<a>cd<b>").ids == [1, 3, 2, 3, 4]


def test_single_tokens_take_their_rows_from_where_they_are_told(
    pair: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    model = str(tmp_path / "b")
    tokens = {
        "<new>": {"source": {"kind": "model_token", "model": model, "token": "blue"}},
        "<row>": {"source": {"kind": "model_token", "model": {"model": {"path": model}}, "token_id": 2}},
        "<none>": {"source": {"kind": "zero"}},
        "<b>": {"source": model},
        "green": {"source": model, "force": True},
        "red": {"source": {"kind": "zero"}},
        "<unk>": {},
    }
    out = merged(tmp_path, {"source": "base", "tokens": tokens})
    assert ids(tmp_path) == {
        "<unk>": 0, "red": 1, "green": 2, "<a>": 3, "<new>": 4, "<row>": 5, "<none>": 6, "<b>": 7
    }  # fmt: skip
    for table in TABLES:
        a, b = pair["a"][table], pair["b"][table]
        # red: zeros stand for the model that lacks it; green: b's own row stands for both.
        rows = [(a[0] + b[2]) / 2, a[1] / 2, b[1], (a[3] + b[4]) / 2, b[0], b[2], torch.zeros(4), b[3]]
        torch.testing.assert_close(out[table], torch.stack(rows))
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("red <new> <none> green")["input_ids"] == [1, 4, 6, 2]


def test_a_tokenizer_mapping_without_a_source_is_a_union(
    pair: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    merged(tmp_path, {"tokens": {"<new>": {"source": {"kind": "zero"}}}})
    assert list(ids(tmp_path))[-1] == "<new>"
    assert set(ids(tmp_path)) == {"<unk>", "red", "green", "<a>", "blue", "<b>", "<new>"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"sorce": "a"}, "unknown key 'sorce'; did you mean 'source'"),
        ({"force": True}, "force needs a source"),
        ({"source": "c"}, "the recipe names no model 'c'"),
        ({"source": {"kind": "mean"}}, "kind: found 'mean', expected model_token or zero"),
        ({"source": {"kind": "model_token", "model": "a"}}, "expected either token .* or token_id"),
        ({"source": {"kind": "zero", "model": "a"}}, "unknown key 'model'"),
        ({"source": {"kind": "model_token", "model": "a", "token": "gren"}}, "no token 'gren'; did you mean"),
        ({"source": "b"}, "b has no token 'red'"),
        ({"source": {"kind": "model_token", "model": "a", "token_id": 77}}, "row 77 .* there is 6 rows"),
        ("a", "expected source and perhaps force"),
        ({"source": "a", "force": "yes"}, "force: found 'yes'"),
    ],
)
def test_choices_of_tokens_are_read_strictly(
    pair: dict[str, dict[str, Tensor]], tmp_path: Path, choice: Any, message: str
) -> None:
    def located(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: located(inner) for key, inner in value.items()}
        return str(tmp_path / value) if value in ("a", "b", "c") else value

    message = message.replace("'c'", f"'{tmp_path}/c'")
    with pytest.raises((RecipeError, CheckpointError), match=message):
        merged(tmp_path, {"source": "base", "tokens": {"red": located(choice)}})
