"""The barrier between two language models on a text, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metanet import GroupElement, spec_of
from metanet_tasks.cli import main
from tests.metanet_zoo.huggingface import transformers

TEXT = "to be, or not to be: that is the question\n" * 20


def tokenizer_of(text: str) -> Any:
    """One token for every character."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {character: i for i, character in enumerate(["<unk>", *sorted(set(text))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A Llama with tied embeddings, a copy with its units permuted, and a text."""
    folder = tmp_path_factory.mktemp("llamas")
    torch.manual_seed(0)
    tokenizer = tokenizer_of(TEXT)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=48,
        initializer_range=0.3,
        tie_word_embeddings=True,
        dtype="float32",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    spec = spec_of(model, input_ids=torch.arange(6)[None], use_cache=False)
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    for name, state in (("a", model.state_dict()), ("b", planted @ model.state_dict())):
        model.load_state_dict(state)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "text.txt").write_text(TEXT)
    return folder / "a", folder / "b", folder / "text.txt"


def run(*arguments: object) -> int:
    return main(["barrier", *map(str, arguments)])


def test_a_permuted_copy_has_no_barrier_once_aligned(
    llamas: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, text = llamas
    # A file of a folder is as good as the folder; windows are as long as the model takes.
    assert run(a / "model.safetensors", b, "--text", text, "--points", 3, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    naive, aligned = report["paths"]["naive"], report["paths"]["aligned"]
    assert naive["loss"][0] == pytest.approx(naive["loss"][2], abs=1e-4)
    assert abs(naive["loss"][1] - naive["loss"][0]) > 0.1
    assert aligned["loss"] == pytest.approx([naive["loss"][0]] * 3, abs=1e-4)
    assert report["squared_distance"][1] < 1e-6 * report["squared_distance"][0]

    model = transformers.AutoModelForCausalLM.from_pretrained(str(a))
    ids = torch.tensor(transformers.AutoTokenizer.from_pretrained(str(a))(TEXT)["input_ids"])
    windows = ids[: 16 * 48].reshape(16, 48)
    with torch.no_grad():
        expected = float(model(input_ids=windows, labels=windows).loss)
    assert naive["loss"][0] == pytest.approx(expected, abs=1e-4)
    assert naive["perplexity"][0] == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-3)


def test_texts_that_a_model_cannot_take_are_refused(
    llamas: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, text = llamas
    (tmp_path / "short.txt").write_text("to be")
    for arguments, message in (
        (("--text", text, "--context", 49), "at most the 48"),
        (("--text", tmp_path / "short.txt"), "5 tokens"),
    ):
        assert run(a, b, *arguments, "--points", 3, "--no-align") == 2
        assert message in capsys.readouterr().err


def test_a_network_that_predicts_no_next_token_is_refused(
    llamas: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _, text = llamas
    config = transformers.AutoConfig.from_pretrained(str(a))
    config.num_hidden_layers = 1
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    assert run(tmp_path, tmp_path, "--text", text, "--points", 3) == 2
    assert "LlamaModel" in (shown := capsys.readouterr().err)
    assert "no causal language model" in shown
