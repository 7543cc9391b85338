"""The grammar of recipes, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metanet.merging.alignment import Align
from metanet.merging.layers import Layers, find_layers
from metanet.merging.recipe import RecipeError, load_recipe, parse_recipe
from metanet.merging.reference import Location, ModelReference
from metanet.merging.setting import Choice, Gradient, evaluate, parse_setting

TIES = """\
merge_method: ties
base_model: org/base@v1
models:
  - model: a+lora/one@main
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: b
    parameters:
      weight:
        - filter: mlp
          value: [0, 0.3]
        - value: 0.5
parameters: {normalize: true, int8_mask: true, lambda: 1e-1}
dtype: float16
out_dtype: bfloat16
tokenizer_source: union
chat_template: auto
align: auto
"""

SLICES = """\
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {scale: 0.5}}
  - sources:
      - {model: b, layer_range: [1, 4]}
merge_method: passthrough
"""


def test_a_recipe_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "ties.yml"
    file.write_text(TIES)
    recipe = load_recipe(file)
    assert recipe.method == "ties"
    assert recipe.base == ModelReference(Location("org/base", "v1"))
    first, second = recipe.models
    assert first.model == ModelReference(Location("a"), Location("lora/one", "main"))
    assert first.parameters == {"density": Gradient((1.0, 0.7, 0.1)), "weight": 1.0}
    assert second.parameters["weight"] == Choice((("mlp", Gradient((0.0, 0.3))), (None, 0.5)))
    assert recipe.parameters == {"normalize": True, "int8_mask": True, "lambda": 0.1}
    assert (recipe.dtype, recipe.out_dtype) == ("F16", "BF16")
    assert (recipe.tokenizer, recipe.chat_template, recipe.align) == ("union", "auto", Align())
    assert [str(reference) for reference in recipe.references()] == ["org/base@v1", "a+lora/one@main", "b"]
    assert recipe.text == TIES


def test_slices_are_read(tmp_path: Path) -> None:
    file = tmp_path / "slices.yml"
    file.write_text(SLICES)
    first, second = load_recipe(file).slices
    assert first.sources[0].layers == (0, 2)
    assert first.sources[0].parameters == {"scale": 0.5}
    assert second.sources[0].layers == (1, 4)


def linear(**more: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": "a"}], **more}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (linear(dtyp="float16"), "unknown key 'dtyp'; did you mean 'dtype'"),
        ({"merge_method": "linear", "models": [{"modle": "a"}]}, r"models\[0\]: unknown key 'modle'"),
        ({"merge_method": "linear"}, "neither models, slices nor modules"),
        (linear(slices=[]), "models and slices; give exactly one"),
        (linear(models=[]), "models is empty"),
        ({"models": [{"model": "a"}]}, "no merge_method"),
        (linear(dtype="int8"), "found 'int8', expected one of float32"),
        (linear(parameters=[1]), "expected a mapping of names to values"),
        (linear(parameters={"weight": "much"}), "parameters.weight: found 'much'"),
        (linear(parameters={"weight": [{"filtr": "x", "value": 1}]}), "expected filter and value"),
        (linear(models=[{"model": "a", "layer_range": [0, 2]}]), "give layers under slices"),
        (
            linear(tokenizer={"source": "union"}, tokenizer_source="base"),
            "both tokenizer and tokenizer_source",
        ),
        (linear(base_model=3), "base_model: found 3"),
        (linear(name="first"), "'name' is a key of mergekit's that is not supported: of a file of several"),
        (
            {"merge_method": "p", "slices": [{"sources": [], "residual_weight": 0.5}]},
            r"slices\[0\]: 'residual_weight' is a key of mergekit's that is not supported",
        ),
        (
            linear(models=[{"model": {"model": "a", "override_architecture": "X"}}]),
            "'override_architecture' is a key of mergekit's that is not supported",
        ),
        ({"merge_method": "linear", "models": "a"}, "expected a list"),
        (["linear"], "the recipe: found list"),
        (
            {"merge_method": "p", "slices": [{"sources": [{"model": "a", "layer_range": [2, 1]}]}]},
            r"layer_range: found \[2, 1\]",
        ),
        (
            {
                "merge_method": "p",
                "slices": [
                    {
                        "sources": [
                            {"model": "a", "layer_range": [0, 2]},
                            {"model": "b", "layer_range": [0, 3]},
                        ]
                    }
                ],
            },
            "expected one of the same length",
        ),
    ],
)
def test_what_is_no_recipe_is_refused(value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: linear\nmerge_method: ties\n", "'merge_method' is given twice"),
        ("merge_method: [", "no YAML"),
        ("merge_method: !!python/object/apply:os.getcwd []\n", "no YAML"),
    ],
)
def test_yaml_is_read_safely(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=rf"bad\.yml: .*{message}"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b@v1", (("a/b", "v1"), None)),
        ("/x@y/z", (("/x@y/z", None), None)),
        ("m+l", (("m", None), ("l", None))),
        ("m@1+l@2", (("m", "1"), ("l", "2"))),
    ],
)
def test_references(text: str, expected: Any) -> None:
    reference = ModelReference.parse(text)
    lora = reference.lora and (reference.lora.path, reference.lora.revision)
    assert ((reference.model.path, reference.model.revision), lora) == expected
    assert ModelReference.parse(str(reference)) == reference


@pytest.mark.parametrize(("t", "value"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.75), (1.0, 0.5)])
def test_gradients_are_linear_between_their_values(t: float, value: float) -> None:
    assert evaluate(parse_setting([0, 1, 0.5]), "w", t) == pytest.approx(value)


def test_settings_choose_by_name() -> None:
    setting = parse_setting([{"filter": "attn", "value": 1}, {"filter": "*", "value": 2}])
    assert evaluate(setting, "layer.attn.w", 0) == 1
    assert evaluate(setting, "layer.mlp.w", 0) == 2
    only = parse_setting([{"filter": "attn", "value": 1}])
    assert evaluate(only, "layer.mlp.w", 0) is None
    with pytest.raises(ValueError, match="no numbered layers"):
        evaluate(parse_setting([0, 1]), "w", None)


def test_layers_are_the_longest_run() -> None:
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    names += [f"model.layers.{i}.experts.{j}.w" for i in range(3) for j in range(8)]
    layers = find_layers(names)
    assert layers == Layers("model.layers.", 3)
    assert [layers.depth(name) for name in (names[0], names[1], names[2], names[-1])] == [0, 0, 0, 1]
    assert find_layers(["a.weight", "fc1.weight"]) is None
    assert find_layers(["enc.0.w", "enc.1.w", "dec.0.w", "dec.1.w", "dec.2.w"], 2) == Layers("enc.", 2)
