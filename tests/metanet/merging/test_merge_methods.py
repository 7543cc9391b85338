"""Merge methods: laws that all of them keep, and each against its formula written out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import metanet.merging.methods
from metanet.merging.method import METHODS
from metanet.merging.stretch import STRETCH, Settings
from metanet.merging.tensor import ArrayIO, Mapper, NonFiniteError, TensorTask, merge_tensor

assert metanet.merging.methods

Array = Any
SHAPE = (40, 48)
HALF: Any = {"lambda": 0.5}
OTHERS = {"weight": 1.0, "density": 0.6, "t": 0.3, "gamma": 0.05}


def merge(
    name: str,
    models: list[Array],
    base: Array | None = None,
    *,
    seed: int = 0,
    each: Mapping[str, list[float]] | None = None,
    mapper: Mapper | None = None,
    importances: list[Array] | None = None,
    grams: list[Array] | None = None,
    **parameters: Any,
) -> Array:
    """Merge arrays by a method, its parameters at their defaults where not given."""
    method = METHODS[name]
    chosen: dict[str, Any] = {
        key: parameters.get(key, OTHERS.get(key) if item.default is None else item.default)
        for key, item in method.parameters.items()
    }
    shared = {key: value for key, value in chosen.items() if not method.parameters[key].per_model}
    per_model = tuple(
        {
            key: (each or {}).get(key, [value] * len(models))[i]
            for key, value in chosen.items()
            if key not in shared
        }
        for i in range(len(models))
    )
    shape = models[0].shape
    dtype = np.float64 if models[0].dtype == np.float64 else np.float32
    task = TensorTask(
        "w",
        shape,
        method,
        Settings(shared, per_model),
        len(models),
        base is not None,
        seed,
        dtype,
        grams=grams is not None,
    )
    flat = [array.reshape(-1) for array in (*models, *([] if base is None else [base]))]
    if method.importances:
        flat += [array.reshape(-1) for array in importances or [np.ones_like(model) for model in models]]
    flat += [array.reshape(-1) for array in grams or []]
    out = np.full(models[0].size, np.nan, dtype)
    merge_tensor(task, ArrayIO(flat, out), mapper)
    return out.reshape(shape)


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[Array, Array, Array, Array]:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape)
    a, b, c = (base + 0.1 * rng.standard_normal(shape) for _ in range(3))
    return base, a, b, c


def inputs(name: str, same: bool, shape: tuple[int, ...] = SHAPE) -> tuple[list[Array], Array | None]:
    method = METHODS[name]
    base, a, b, c = draw(0, shape)
    count = min(3, method.models[1] or 3)
    models = [base] * count if same else [a, b, c][:count]
    return models, base if method.base == "required" else None


@pytest.mark.parametrize("name", METHODS)
def test_equal_models_give_themselves(name: str) -> None:
    models, base = inputs(name, same=True)
    np.testing.assert_allclose(merge(name, models, base), models[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", METHODS)
def test_threads_do_not_matter(name: str) -> None:
    shape = (200, 700)
    models, base = inputs(name, same=False, shape=shape)
    alone = merge(name, models, base)
    with ThreadPoolExecutor(3) as pool:

        def reversed_order(function: Callable[[Any], Any], spans: Iterable[Any]) -> Iterable[Any]:
            listed = [(stretch,) for span in spans for stretch in span]
            futures = {item: pool.submit(function, item) for item in reversed(listed)}
            return [futures[item].result() for item in listed]

        together = merge(name, models, base, mapper=reversed_order)
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 2, 2, 2), (0, 4)])
def test_every_shape_is_merged(name: str, shape: tuple[int, ...]) -> None:
    models, base = inputs(name, same=False, shape=shape)
    if 0 in shape:
        return
    merged = merge(name, models, base)
    assert merged.shape == shape
    assert np.isfinite(merged).all()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.base == "required"])
def test_inputs_with_nan_are_refused(name: str) -> None:
    models, base = inputs(name, same=False)
    models = [model.copy() for model in models]
    models[-1][3, 5] = np.nan
    with pytest.raises(NonFiniteError) as caught:
        merge(name, models, base)
    assert (caught.value.model, caught.value.first, caught.value.count) == (len(models) - 1, 3 * 48 + 5, 1)


def test_linear_is_the_weighted_mean() -> None:
    _, a, b, c = draw(0)
    each = {"weight": [0.2, 0.5, 0.6]}
    np.testing.assert_allclose(
        merge("linear", [a, b, c], each=each), (0.2 * a + 0.5 * b + 0.6 * c) / 1.3, rtol=1e-12
    )
    np.testing.assert_allclose(
        merge("linear", [a, b, c], each=each, normalize=False), 0.2 * a + 0.5 * b + 0.6 * c, rtol=1e-12
    )
    with pytest.raises(ValueError, match="sum to 0"):
        merge("linear", [a, b], each={"weight": [1.0, -1.0]})


def slerp_oracle(first: Array, second: Array, t: float) -> Array:
    cosine = np.vdot(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
    angle = np.arccos(cosine)
    result: Array = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)
    return result


def test_slerp_walks_the_great_circle_and_the_chord_where_it_is_short() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(SHAPE), rng.standard_normal(SHAPE)
    np.testing.assert_allclose(merge("slerp", [b], a, t=0.3), slerp_oracle(a, b, 0.3), rtol=1e-9, atol=1e-12)
    near = a + 1e-4 * b
    np.testing.assert_allclose(merge("slerp", [near], a, t=0.3), 0.7 * a + 0.3 * near, rtol=1e-12)
    unit_a, unit_b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    assert np.linalg.norm(merge("slerp", [unit_b], unit_a, t=0.5)) == pytest.approx(1)


def test_nuslerp_weighs_and_takes_rows_or_columns() -> None:
    base, a, b, _ = draw(0)
    each = {"weight": [1.0, 3.0]}
    np.testing.assert_allclose(
        merge("nuslerp", [a, b], base, each=each), base + slerp_oracle(a - base, b - base, 0.75), rtol=1e-8
    )
    rows = np.stack([slerp_oracle(x, y, 0.75) for x, y in zip(a, b, strict=True)])
    columns = np.stack([slerp_oracle(x, y, 0.75) for x, y in zip(a.T, b.T, strict=True)], axis=1)
    flat: Any = {"nuslerp_flatten": False}
    np.testing.assert_allclose(merge("nuslerp", [a, b], each=each, **flat), rows, rtol=1e-8)
    np.testing.assert_allclose(
        merge("nuslerp", [a, b], each=each, **flat, nuslerp_row_wise=True), columns, rtol=1e-8
    )


def test_karcher_mean_of_two_is_their_midpoint_and_of_many_is_stationary() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (x / np.linalg.norm(x) for x in rng.standard_normal((3, *SHAPE)))
    np.testing.assert_allclose(merge("karcher", [a, b]), slerp_oracle(a, b, 0.5), rtol=1e-6, atol=1e-9)
    mean = merge("karcher", [a, b, c], tol=1e-12, max_iter=100)
    assert np.linalg.norm(mean) == pytest.approx(1)
    logs = []
    for x in (a, b, c):
        cosine = np.vdot(mean, x)
        logs.append(np.arccos(cosine) / np.sqrt(1 - cosine**2) * (x - cosine * mean))
    assert np.linalg.norm(np.sum(logs, axis=0)) < 1e-9


def test_multislerp_is_the_mean_direction_at_the_mean_norm() -> None:
    _, a, b, c = draw(0)
    weights = np.array([0.2, 0.5, 0.3])
    norms = np.array([np.linalg.norm(x) for x in (a, b, c)])
    direction = sum(w * x / n for w, x, n in zip(weights, (a, b, c), norms, strict=True))
    expected = direction / np.linalg.norm(direction) * (weights @ norms)
    np.testing.assert_allclose(
        merge("multislerp", [a, b, c], each={"weight": list(weights)}), expected, rtol=1e-9
    )


def test_model_stock_follows_the_angle() -> None:
    base, a, b, c = draw(0)
    deltas = [x - base for x in (a, b, c)]
    cosines = [
        np.vdot(deltas[i], deltas[j]) / np.linalg.norm(deltas[i]) / np.linalg.norm(deltas[j])
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    cosine = np.mean(cosines)
    t = 3 * cosine / (1 + 2 * cosine)
    np.testing.assert_allclose(
        merge("model_stock", [a, b, c], base), base + t * np.mean(deltas, axis=0), rtol=1e-9
    )


def test_task_arithmetic_adds_differences() -> None:
    base, a, b, _ = draw(0)
    merged = merge("task_arithmetic", [a, b], base, each={"weight": [0.3, 0.8]}, **HALF)
    np.testing.assert_allclose(merged, base + 0.5 * (0.3 * (a - base) + 0.8 * (b - base)), rtol=1e-12)


def elected(sparse: list[Array], weights: list[float], normalize: bool) -> Array:
    weighted = [w * d for w, d in zip(weights, sparse, strict=True)]
    sign = np.where(np.sum(weighted, axis=0) >= 0, 1, -1)
    agree = [np.sign(d) == sign for d in weighted]
    total: Array = np.sum([d * g for d, g in zip(weighted, agree, strict=True)], axis=0)
    if normalize:
        divisor = np.sum([w * g for w, g in zip(weights, agree, strict=True)], axis=0)
        total = np.divide(total, divisor, out=total, where=divisor != 0)
    return total


@pytest.mark.parametrize("weights", [[0.4, 0.9, 0.7], [1.0, -0.5, 0.3]])
def test_ties_trims_elects_and_averages(weights: list[float]) -> None:
    base, a, b, c = draw(0)
    sparse = []
    for model, density in zip((a, b, c), (0.3, 0.5, 1.0), strict=True):
        delta = model - base
        kept = np.sort(np.abs(delta).ravel())[::-1][: int(density * delta.size)].min()
        sparse.append(np.where(np.abs(delta) >= kept, delta, 0))
    merged = merge("ties", [a, b, c], base, each={"weight": weights, "density": [0.3, 0.5, 1.0]})
    np.testing.assert_allclose(merged, base + elected(sparse, weights, True), rtol=1e-9, atol=1e-12)


def test_breadcrumbs_drop_both_ends() -> None:
    base, a, _, _ = draw(0)
    delta = (a - base).ravel()
    order = np.argsort(-np.abs(delta))
    top, kept = int(0.05 * delta.size), int(0.6 * delta.size)
    expected = np.zeros_like(delta)
    expected[order[top : top + kept]] = delta[order[top : top + kept]]
    merged = merge("breadcrumbs", [a], base, density=0.6, gamma=0.05)
    np.testing.assert_allclose((merged - base).ravel(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_dropping_at_random_keeps_the_mean(name: str) -> None:
    shape = (64, 1024)
    base, a, _, _ = draw(0, shape)
    merged = merge(name, [a], base, density=0.4)
    kept = merged != base
    assert kept.mean() == pytest.approx(0.4, abs=0.01)
    delta = a - base
    assert np.vdot(merged - base, delta) / np.vdot(delta, delta) == pytest.approx(1, abs=0.02)
    if name == "dare_linear":
        np.testing.assert_allclose((merged - base)[kept], delta[kept] / 0.4, rtol=1e-6)
    np.testing.assert_array_equal(merged, merge(name, [a], base, density=0.4))
    assert (merged != merge(name, [a], base, density=0.4, seed=1)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_della_keeps_large_differences_more_often(dtype: Any) -> None:
    shape = (400, 500)
    base, a, _, _ = draw(0, shape)
    base, a = base.astype(dtype), a.astype(dtype)
    kept = merge("della_linear", [a], base, density=0.5, epsilon=0.4) != base
    ranks = np.argsort(np.argsort(np.abs(a - base), axis=1), axis=1)
    for low in range(0, 500, 100):
        inside = (ranks >= low) & (ranks < low + 100)
        assert kept[inside].mean() == pytest.approx(0.3 + 0.4 * (low + 50) / 500, abs=0.015)


def test_della_refuses_probabilities_beyond_one() -> None:
    base, a, _, _ = draw(0)
    with pytest.raises(ValueError, match="choose a smaller epsilon"):
        merge("della", [a], base, density=0.95, epsilon=0.2)


def test_nearswap_clips_and_fusion_takes_outliers() -> None:
    base, a, _, _ = draw(0)
    np.testing.assert_allclose(merge("nearswap", [a], base, t=0.05), base + np.clip(a - base, -0.05, 0.05))
    merged = merge("arcee_fusion", [a], base)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, base))
    score = np.abs(a - base) * (p * np.log(p / q)).sum(1, keepdims=True)
    low, middle, high = np.quantile(score, [0.25, 0.5, 0.75])
    expected = np.where(score > middle + 1.5 * (high - low), a, base)
    np.testing.assert_allclose(merged, expected, rtol=1e-9)


def test_sce_selects_weighs_and_erases() -> None:
    base, a, b, c = draw(0)
    deltas = np.stack([a - base, b - base, c - base])
    variance = deltas.var(0)
    kept = variance >= np.sort(variance.ravel())[::-1][: int(0.4 * variance.size)].min()
    deltas = deltas * kept
    weights = (deltas**2).sum((1, 2)) / (deltas**2).sum()
    agree = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1, -1)
    scaled = agree * weights[:, None, None]
    divisor = scaled.sum(0)
    expected = base + np.divide((scaled * deltas).sum(0), divisor, out=np.zeros(SHAPE), where=divisor > 0)
    np.testing.assert_allclose(merge("sce", [a, b, c], base, select_topk=0.4), expected, rtol=1e-9)


def test_ram_averages_shared_changes_and_keeps_unique_ones() -> None:
    base = np.zeros(6)
    a, b = np.array([1.0, 2.0, 0, 0, 5.0, 0]), np.array([3.0, 0, 0, 4.0, 0, 0])
    np.testing.assert_allclose(merge("ram", [a, b], base), [2, 2, 0, 4, 5, 0])
    # a: one shared, two unique; b: one of each; overlaps 1/2 and 1 are cut to alpha.
    plus = merge("ramplus_tl", [a, b], base, r=0.1, alpha=0.7)
    np.testing.assert_allclose(plus, [2, 2 * 1.05, 0, 4 * 1.07, 5 * 1.05, 0])


def test_fisher_weighs_every_value() -> None:
    _, a, b, _ = draw(0)
    rng = np.random.default_rng(1)
    f, g = rng.random(SHAPE), rng.random(SHAPE)
    f[0], g[0] = 0, 0
    merged = merge("fisher", [a, b], importances=[f, g], each={"weight": [0.5, 2.0]}, floor=1e-9)
    expected = (0.5 * f * a + 2 * g * b) / np.where(f + g > 0, 0.5 * f + 2 * g, 1)
    np.testing.assert_allclose(merged[1:], expected[1:], rtol=1e-6)
    np.testing.assert_allclose(merged[0], (0.5 * a[0] + 2 * b[0]) / 2.5, rtol=1e-9)
    with pytest.raises(ValueError, match="negative importances"):
        merge("fisher", [a, b], importances=[f, -g])


def test_stretches_cover_more_than_one() -> None:
    # The laws above would prove less if no tensor were cut.
    assert 2 * STRETCH < 200 * 700


def test_regmean_minimises_the_squared_error_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((7, 5)) for _ in range(2))
    x, y = (rng.standard_normal((20, 5)) @ rng.standard_normal((5, 5)) for _ in range(2))
    merged = merge("regmean", [a, b], grams=[x.T @ x, y.T @ y], alpha=1.0)
    # The same as one regression on all inputs, each with its own model's outputs.
    wanted = np.linalg.lstsq(np.vstack([x, y]), np.vstack([x @ a.T, y @ b.T]), rcond=None)[0].T
    np.testing.assert_allclose(merged, wanted, rtol=1e-9)
    twice = merge("regmean", [a, b], grams=[x.T @ x, y.T @ y], each={"weight": [2.0, 1.0]}, alpha=1.0)
    stacked = np.vstack([x, x, y]), np.vstack([x @ a.T, x @ a.T, y @ b.T])
    np.testing.assert_allclose(twice, np.linalg.lstsq(*stacked, rcond=None)[0].T, rtol=1e-9)


def test_regmean_shrinks_towards_weights_by_column() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((STRETCH // 64 + 3, 96)) for _ in range(2))
    x, y = rng.standard_normal((50, 96)), 3 * rng.standard_normal((50, 96))
    x[:, 4] = y[:, 4] = 0  # an input that nobody saw active is averaged
    grams = [x.T @ x, y.T @ y]
    diagonal = [np.diagonal(gram) + 1.0 * (np.arange(96) == 4) for gram in grams]
    merged = merge("regmean", [a, b], grams=[gram.copy() for gram in grams], alpha=0.0)
    wanted = (a * diagonal[0] + b * diagonal[1]) / (diagonal[0] + diagonal[1])
    np.testing.assert_allclose(merged, wanted, rtol=1e-9)
    shrunk = [
        0.9 * gram + 0.1 * np.diag(np.diagonal(gram)) + np.diag(1.0 * (np.arange(96) == 4)) for gram in grams
    ]
    solved = np.linalg.solve(sum(shrunk), shrunk[0] @ a.T + shrunk[1] @ b.T).T
    np.testing.assert_allclose(merge("regmean", [a, b], grams=grams), solved, rtol=1e-8)


def test_regmean_refuses_what_is_no_gram_matrix_and_too_little_data() -> None:
    rng = np.random.default_rng(2)
    a, x = rng.standard_normal((4, 6)), rng.standard_normal((3, 6))
    with pytest.raises(ValueError, match="collect them from more data, or lower alpha"):
        merge("regmean", [a, a], grams=[x.T @ x, x.T @ x], alpha=1.0)
    np.testing.assert_allclose(merge("regmean", [a, a], grams=[x.T @ x, x.T @ x]), a, rtol=1e-9)
    with pytest.raises(ValueError, match="Gram matrix that is none"):
        merge("regmean", [a, a], grams=[x.T @ x, -(x.T @ x)])
    with pytest.raises(ValueError, match="none below zero and one above"):
        merge("regmean", [a, a], grams=[x.T @ x, x.T @ x], each={"weight": [1.0, -1.0]})
    bad = x.T @ x
    bad[0, 0] = np.inf
    with pytest.raises(NonFiniteError):
        merge("regmean", [a, a], grams=[x.T @ x, bad])
