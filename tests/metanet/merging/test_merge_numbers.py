"""Stored numbers, random masks and order statistics against slow oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import metanet.merging.methods  # noqa: F401  # registers them
from metanet.merging import radix
from metanet.merging.floats import FLOAT_DTYPES, Floats, decode, encode, round_to, stays_finite
from metanet.merging.masks import draw_key, draws, keep_mask
from metanet.merging.method import METHODS, Method, Pass, Statistics, merge_method
from metanet.merging.pairs import decode_pairs, encode_pairs
from metanet.merging.radix import Cut, largest
from metanet.merging.stretch import STRETCH, Settings, Stretch
from metanet.merging.tensor import ArrayIO, TensorTask, merge_tensor

TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_16_bit_pattern_decodes_and_encodes_as_torch_has_it(dtype: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(patterns.view(np.int16)).view(TORCH[dtype]).float().numpy()
    decoded = np.empty(patterns.size, np.float32)
    decode(patterns.view(np.uint8), dtype, decoded)
    np.testing.assert_array_equal(decoded, expected)
    stored = np.empty(2 * patterns.size, np.uint8)
    assert not encode(decoded.copy(), dtype, stored)
    again = np.empty_like(decoded)
    decode(stored, dtype, again)
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("working", [np.float32, np.float64])
def test_8_bit_floats_are_those_of_torch(dtype: str, working: type[np.float32] | type[np.float64]) -> None:
    patterns = np.arange(256, dtype=np.uint8)
    numbers = torch.from_numpy(patterns).view(TORCH[dtype]).float().numpy()
    decoded = np.empty(256, working)
    decode(patterns, dtype, decoded)
    np.testing.assert_array_equal(decoded, numbers)
    finite = np.sort(numbers[np.isfinite(numbers)])
    halfway = (finite[1:] + finite[:-1]) / 2
    rng = np.random.default_rng(0)
    # Every number, every tie, what lies just beside one, what overflows, and some of every size.
    values = np.concatenate(
        [
            finite,
            halfway,
            np.nextafter(halfway, np.float32(np.inf)),
            np.nextafter(halfway, np.float32(-np.inf)),
            np.array([449, 463.9, 464, 464.1, 480, 57345, 61439, 61440, 65536, 1e30, np.inf, np.nan]),
            rng.standard_normal(20_000) * 10.0 ** rng.integers(-9, 6, 20_000),
            [0.0, -0.0],
        ]
    ).astype(np.float32)
    values = np.concatenate([values, -values])
    stored = np.empty(values.size, np.uint8)
    assert not encode(values.astype(working), dtype, stored)
    expected = torch.from_numpy(values).to(TORCH[dtype])
    # Torch keeps 448 for all that is larger, infinity too; here it is an overflow, and NaN.
    beyond = (np.abs(values) > 464) if dtype == "F8_E4M3" else np.zeros(values.size, bool)
    nan = expected.isnan().numpy() | beyond
    np.testing.assert_array_equal(stored[~nan], expected.view(torch.uint8).numpy()[~nan])
    assert np.isnan(numbers[stored[nan]]).all()
    safe: Floats = values[np.abs(values) < 400].astype(working)
    assert encode(safe.copy(), dtype, np.empty(safe.size, np.uint8))
    rounded = torch.from_numpy(safe.astype(np.float32)).to(TORCH[dtype]).float().numpy()
    np.testing.assert_array_equal(round_to(safe.copy(), dtype), rounded.astype(working))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("working", [np.float32, np.float64])
def test_rounding_is_that_of_torch(dtype: str, working: type[np.float32] | type[np.float64]) -> None:
    rng = np.random.default_rng(0)
    values: Floats = (rng.standard_normal(20_000) * 10.0 ** rng.integers(-6, 3, 20_000)).astype(working)
    # Exact ties between neighbours in bf16, both ways.
    values[:4] = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 2**-140]
    expected = (
        torch.from_numpy(values).to(torch.float32 if dtype != "F64" else torch.float64).to(TORCH[dtype])
    )
    raw = np.empty(values.size * expected.element_size(), np.uint8)
    assert encode(values.copy(), dtype, raw)
    np.testing.assert_array_equal(raw, expected.view(torch.uint8).numpy())
    np.testing.assert_array_equal(
        round_to(values.copy(), dtype), expected.to(torch.float64).numpy().astype(working)
    )


@pytest.mark.parametrize(
    ("dtype", "value", "finite"),
    [
        ("F16", 65519.0, True),
        ("F16", 65520.0, False),
        ("BF16", 3.39e38, True),
        ("BF16", 3.4e38, False),
        ("F32", 3.4e38, True),
        ("F32", np.nan, False),
        ("BF16", -np.inf, False),
        ("F8_E4M3", 464.0, True),
        ("F8_E4M3", 464.01, False),
        ("F8_E5M2", 61439.0, True),
        ("F8_E5M2", 61440.0, False),
    ],
)
def test_overflow_is_seen_where_it_happens(dtype: str, value: float, finite: bool) -> None:
    values = np.full(9, 1.0, np.float32)
    values[4] = value
    assert stays_finite(values, dtype) == finite
    raw = np.empty(values.size * FLOAT_DTYPES[dtype], np.uint8)
    assert encode(values.copy(), dtype, raw) == finite
    back = np.empty(9, np.float32)
    decode(raw, dtype, back)
    assert bool(np.isfinite(back).all()) == finite


def test_draws_depend_on_the_index_and_not_on_where_a_stretch_begins() -> None:
    key = draw_key(3, "layer.weight", 1)
    whole = draws(key, 0, 1000)
    for start, count in [(0, 1), (7, 100), (16, 16), (31, 2), (500, 500)]:
        np.testing.assert_array_equal(draws(key, start, count), whole[start : start + count])
    probability = np.linspace(0.1, 0.9, 1000, dtype=np.float32)
    mask = keep_mask(key, 0, 1000, probability)
    np.testing.assert_array_equal(keep_mask(key, 300, 50, probability[300:350]), mask[300:350])
    others = [
        draws(draw_key(s, n, m), 0, 1000) for s, n, m in [(4, "layer.weight", 1), (3, "x", 1), (3, "x", 2)]
    ]
    assert all(np.mean(other == whole) < 0.01 for other in others)


@pytest.mark.parametrize("probability", [0.0, 1e-5, 0.1, 0.5, 0.999, 1.0])
def test_masks_keep_as_often_as_asked(probability: float) -> None:
    count = 1 << 20
    kept = int(keep_mask(draw_key(0, "w", 0), 0, count, probability).sum())
    sigma = np.sqrt(count * probability * (1 - probability))
    assert abs(kept - count * probability) <= 4 * sigma


def test_the_second_bits_of_a_draw_decide_where_the_first_tie() -> None:
    # 2⁻¹⁶ divides the draws by their first bits alone, half of that must keep half of the lowest ones.
    key = draw_key(0, "w", 0)
    low = keep_mask(key, 0, 1 << 22, 2.0**-16)
    half = keep_mask(key, 0, 1 << 22, 2.0**-17)
    assert 0 < half.sum() < low.sum()
    assert not (half & ~low).any()


def run_selection(values: Floats, counts: list[int]) -> list[Cut]:
    """The cuts that a method over these values is given."""
    found: list[Cut] = []

    def statistics(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
        found.extend((yield from largest(lambda s: [np.abs(s.values[0])] * len(counts), counts, values.size)))
        return None

    method = Method("probe", lambda stretch, _: stretch.values[0], "", "", {}, statistics=statistics)
    kind = np.float64 if values.dtype == np.float64 else np.float32
    task = TensorTask("w", values.shape, method, Settings({}, ({},)), 1, dtype=kind)
    merge_tensor(task, ArrayIO([values], np.empty_like(values)))
    return found


def check_selection(values: Floats, counts: list[int]) -> None:
    magnitudes = np.abs(values)
    order = np.sort(magnitudes)[::-1]
    for count, cut in zip(counts, run_selection(values, counts), strict=True):
        assert count == 0 or cut.threshold == order[count - 1]
        mask = np.concatenate(
            [
                cut.mask(magnitudes[start : start + STRETCH], i)
                for i, start in enumerate(range(0, values.size, STRETCH))
            ]
        )
        assert mask.sum() == count
        if 0 < count < values.size:
            assert magnitudes[mask].min() >= magnitudes[~mask].max()
        # Of those that tie, the first ones.
        tied = np.flatnonzero(magnitudes == cut.threshold)
        kept = mask[tied]
        assert not kept.size or kept[: kept.sum()].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_tensors_are_cut_exactly(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(3 * STRETCH + 5).astype(dtype)
    check_selection(values, [0, 1, 1000, values.size // 2, values.size])
    # Few distinct values, zeros among them.
    check_selection(np.round(values * 2).astype(dtype) / 2, [1, 5000, values.size // 2, values.size - 1])


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share of each pass that selections ask for."""
    asked: list[float] = []

    def counted(partial: Callable[[Stretch], Any], share: float = 1.0) -> Pass:
        asked.append(share)
        return Pass(partial, share)

    monkeypatch.setattr(radix, "Pass", counted)
    return asked


def test_large_tensors_take_a_sample_and_one_pass(passes: list[float]) -> None:
    values = np.random.default_rng(1).standard_normal(20 * STRETCH, dtype=np.float32)
    check_selection(values, [values.size // 2, values.size // 10])
    assert passes == [radix.SAMPLE, 1.0]


def test_a_sample_that_misleads_does_not_harm(passes: list[float]) -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal(20 * STRETCH, dtype=np.float32)
    # The beginning of each stretch, which the sample sees, is far smaller than the rest.
    values.reshape(20, STRETCH)[:, : STRETCH // 8] *= np.float32(1e-6)
    check_selection(values, [values.size // 2])
    assert len(passes) == 4


def test_many_equal_values_are_cut_exactly(passes: list[float]) -> None:
    values = np.random.default_rng(3).integers(0, 4, 20 * STRETCH).astype(np.float32)
    check_selection(values, [values.size // 3, values.size // 2])
    assert passes


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'linear' already"):

        @merge_method("linear", reference="")
        def linear(stretch: Stretch) -> Floats:
            return stretch.values[0]

    assert "linear" in METHODS


@pytest.mark.parametrize("size", [2, 4098, 1 << 17])
def test_pairs_are_rounded_as_single_values_are(size: int) -> None:
    rng = np.random.default_rng(size)
    values: Floats = (rng.standard_normal(size) * 10.0 ** rng.integers(-30, 20, size)).astype(np.float32)
    values[:2] = [1 + 2**-8, 1 + 3 * 2**-8]
    stored, paired = np.empty(2 * size, np.uint8), np.empty(2 * size, np.uint8)
    ordered = np.concatenate([values[0::2], values[1::2]])
    for special in (None, np.inf, np.nan, 3.4e38):
        if special is not None:
            values[size // 2] = special
            ordered = np.concatenate([values[0::2], values[1::2]])
        assert encode_pairs(ordered.copy(), paired) == encode(values.copy(), "BF16", stored)
        np.testing.assert_array_equal(paired, stored)
        single, double = np.empty(size, np.float32), np.empty(size, np.float32)
        decode(stored, "BF16", single)
        decode_pairs(stored, double)
        np.testing.assert_array_equal(double, np.concatenate([single[0::2], single[1::2]]))
