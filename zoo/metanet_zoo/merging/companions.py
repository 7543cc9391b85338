"""What makes merged weights a model: configuration, generation configuration, tokenizer, chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.model import EMBEDDINGS, HEADS, LAYER_KEYS
from metanet_zoo.merging.modules import part_config
from metanet_zoo.merging.sources import Entry

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
OTHER_FILES = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% endif %}"
    ),
    "alpaca": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
}
"""Chat templates that recipes may name."""


def config_text(
    config: Mapping[str, Any],
    entries: Mapping[str, Entry],
    layers: int | None,
    dtype: str | None,
    parts: Mapping[str, int] | None = None,
) -> str:
    """Return the output's ``config.json``: the base's, with what the merge changed.

    Args:
        config: the base's configuration.
        entries: the output's tensors.
        layers: its number of layers, if slices changed it.
        dtype: safetensors name of its dtype, if all its floats have one.
        parts: part of a multi-part model -> its number of layers, where slices changed it.

    Raises:
        CheckpointError: the configuration has none for such a part.
    """
    patched = dict(config)
    if layers is not None:
        patched = _with_layers(patched, layers)
    for part, count in (parts or {}).items():
        key = part_config(patched, part)
        if key is None:
            raise CheckpointError(
                f"config.json has no configuration of the part {part!r}, whose layers the recipe spells out; "
                "give the part's models instead of slices"
            )
        patched[key] = _with_layers(patched[key], count)
    if dtype in DTYPE_NAMES:
        for key in ("torch_dtype", "dtype"):
            if key in patched:
                patched[key] = DTYPE_NAMES[dtype]
        if "torch_dtype" not in patched and "dtype" not in patched:
            patched["torch_dtype"] = DTYPE_NAMES[dtype]
    embedding = next((entry for name, entry in entries.items() if name.endswith(EMBEDDINGS)), None)
    if embedding is not None and "vocab_size" in patched:
        patched["vocab_size"] = embedding.shape[0]
    if patched.get("tie_word_embeddings") and any(name in HEADS for name in entries):
        patched["tie_word_embeddings"] = False
    patched.pop("_name_or_path", None)
    return json.dumps(patched, indent=2, ensure_ascii=False) + "\n"


def _with_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    patched = dict(config)
    for key in LAYER_KEYS:
        if key in patched:
            patched[key] = layers
    if isinstance(patched.get("layer_types"), list) and len(patched["layer_types"]) != layers:
        kinds = patched["layer_types"]
        patched["layer_types"] = [kinds[i % len(kinds)] for i in range(layers)]
    return patched


def copied_files(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Return those of the named files that a folder has."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def set_chat_template(files: dict[str, bytes], template: str, templates: list[str]) -> None:
    """Put a chat template into a tokenizer's files.

    Args:
        files: the tokenizer's files by name; changed.
        template: Jinja text, the name of a known one, or ``auto``.
        templates: those of the models, for ``auto``: the most frequent one is taken.

    Raises:
        CheckpointError: there is no tokenizer to put it into, or no such template.
    """
    if "tokenizer_config.json" not in files:
        raise CheckpointError("chat_template was given, but the output has no tokenizer_config.json")
    if template == "auto":
        if not templates:
            return
        text = max(dict.fromkeys(templates), key=templates.count)
    elif template in TEMPLATES:
        text = TEMPLATES[template]
    elif "{" in template:
        text = template
    else:
        raise CheckpointError(
            f"there is no chat template {template!r}; expected auto, {', '.join(TEMPLATES)} or Jinja text"
        )
    if "chat_template.jinja" in files:
        files["chat_template.jinja"] = text.encode()
    config = json.loads(files["tokenizer_config.json"])
    config["chat_template"] = text
    files["tokenizer_config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def chat_template(folder: Path) -> str | None:
    """Return a model's chat template, None if it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    value = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.is_file() else None
    return value if isinstance(value, str) else None
