"""What a report keeps of a tensor's differences: bounded, and right where it can be counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from alignment import Options, check, compare_captures, explain_traces
from alignment.capture import capture_candidate, capture_reference
from alignment.compare import Pair, Tolerance, measure
from alignment.details import BINS, CELLS, INFINITE, MOST_WHOLE, POINTS, WORST, Detail, detail_of
from alignment.foreign import compare_dumps
from alignment.report import StageResult
from alignment.stages import bounded, result_of
from alignment.trees import module_of, nodes

NUMBERS = st.one_of(
    st.floats(width=64, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1e-320, 5e-324, 1.7e308, -1e300, math.inf, -math.inf, math.nan]),
)


def detail(reference, candidate, **more) -> Detail:
    pair = Pair(None, None, np.asarray(reference), np.asarray(candidate), **more)
    found = detail_of(pair, measure(pair, Tolerance()))
    assert found is not None
    return found


def within_bounds(found: Detail) -> bool:
    return (
        len(found.counts) <= BINS
        and len(found.edges) == (len(found.counts) + 1 if found.counts else 0)
        and len(found.heat) == math.prod(found.cells or (0,)) <= CELLS * CELLS
        and len(found.points) <= POINTS
        and len(found.worst) <= WORST
    )


@given(st.data())
def test_every_element_is_counted_once_and_all_is_bounded(data) -> None:
    shape = data.draw(array_shapes(max_dims=3, max_side=40))
    one = data.draw(arrays(np.float64, shape, elements=NUMBERS, fill=NUMBERS))
    two = data.draw(st.one_of(st.just(one), arrays(np.float64, shape, elements=NUMBERS, fill=NUMBERS)))
    found = detail(one, two)
    assert found.elements == one.size == found.equal + sum(found.counts) + found.non_finite
    assert within_bounds(found)
    assert list(found.edges) == sorted(found.edges)
    assert all(math.isfinite(log) for log in (*found.edges, *(log for log in found.heat if log is not None)))
    assert all(math.isfinite(x) and math.isfinite(y) for x, y in found.points)
    # A cell is filled exactly where something in it differs.
    assert (found.equal < one.size) == any(log is not None for log in found.heat)
    assert (found.non_finite > 0) == (INFINITE in found.heat)


def test_the_histogram_is_numpys() -> None:
    generator = np.random.default_rng(1)
    one = generator.standard_normal((50, 60))
    two = one + 10.0 ** generator.uniform(-9, 1, one.shape)
    found = detail(one, two)
    difference, edges = np.abs(two - one), 10.0 ** np.array(found.edges)
    # Edges are kept rounded to hundredths of a decade: a few elements may lie on the other side.
    counts, _ = np.histogram(difference, edges)
    assert np.abs(np.cumsum(counts) - np.cumsum(found.counts)).max() < 30
    assert sum(found.counts) == 3000


def test_the_map_shows_where_and_the_list_shows_what() -> None:
    one = np.arange(96 * 64, dtype=np.float64).reshape(96, 64)
    two = one.copy()
    two[50, 33] += 0.5
    two[0, 0] -= 1e-6
    found = detail(one, two)
    assert (found.plane, found.cells) == ((96, 64), (32, 32))
    filled = {place: log for place, log in enumerate(found.heat) if log is not None}
    assert filled == {0: -6.0, (50 // 3) * 32 + 33 // 2: -0.3}
    assert [element.index for element in found.worst] == [(50, 33), (0, 0)]
    assert (found.worst[0].reference64, found.worst[0].candidate64) == (50 * 64 + 33, 50 * 64 + 33.5)
    assert found.equal == 96 * 64 - 2


@pytest.mark.parametrize(
    ("shape", "plane"),
    [((), (1, 1)), ((5,), (1, 5)), ((7, 1), (1, 7)), ((2, 3, 4), (6, 4)), ((2, 3, 4, 1), (6, 4)), ((1, 1), (1, 1))],
)
def test_the_map_has_the_last_axis_that_is_one_as_columns(shape, plane) -> None:
    found = detail(np.zeros(shape), np.ones(shape))
    assert (found.plane, found.cells) == (plane, plane)


def test_what_is_not_finite_on_one_side_only_comes_first() -> None:
    one, two = np.ones((3, 4)), np.ones((3, 4))
    one[0, 1] = two[0, 1] = math.nan
    one[1, 1] = two[1, 1] = math.inf
    two[2, 3] = math.inf
    two[0, 0] = 9
    found = detail(one, two)
    assert (found.non_finite, found.equal) == (1, 10)
    assert [element.index for element in found.worst] == [(2, 3), (0, 0)]
    assert found.worst[0].candidate64 is None
    assert found.heat.count(INFINITE) == 1


def test_rounding_is_shown_in_float32_and_briefly() -> None:
    truth = np.random.default_rng(0).standard_normal((40, 40))
    one = truth.astype(np.float32)
    two = np.nextafter(one, np.float32(9))
    pair = Pair(one, two, truth, truth + 1e-17)
    found = detail_of(pair, measure(pair, Tolerance()))
    assert found is not None
    assert (found.dtype, found.heat, found.points, len(found.worst)) == ("float32", (), (), 1)
    assert sum(found.noise) + int((one == truth).sum()) == truth.size
    error = np.sqrt(np.mean((two - truth) ** 2) / np.mean(truth**2))
    assert found.error32 == pytest.approx(error, rel=1e-2)
    assert found.floor64 == pytest.approx(found.noise32 * 2.0**-29, rel=1e-2)


def test_a_float32_error_that_is_no_rounding_is_shown_whole() -> None:
    truth = np.random.default_rng(0).standard_normal((40, 40))
    one = truth.astype(np.float32)
    two = truth.astype(np.float16).astype(np.float32)
    pair = Pair(one, two, truth, truth)
    found = detail_of(pair, measure(pair, Tolerance()))
    assert found is not None
    assert (found.dtype, found.cells) == ("float32", (32, 32))
    assert found.worst[0].candidate32 != found.worst[0].reference32


@pytest.mark.parametrize(
    ("one", "two"),
    [(None, np.ones(3)), (np.ones(3), None), (np.ones(3), np.ones(4)), (np.ones(0), np.ones(0))],
)
def test_there_is_none_without_two_tensors_of_one_shape(one, two) -> None:
    pair = Pair(None, None, one, two)
    assert detail_of(pair, measure(pair, Tolerance())) is None


def test_integers_and_booleans_have_details() -> None:
    found = detail(np.array([[True, False]]), np.array([[False, False]]))
    assert (found.dtype, found.equal, found.worst[0].index) == ("bool", 1, (0, 0))


def test_a_report_keeps_so_many_whole_ones_the_roots_first() -> None:
    pair = Pair(None, None, np.zeros((4, 4)), np.ones((4, 4)))
    comparison = measure(
        Pair(np.zeros((4, 4), "f"), np.ones((4, 4), "f"), np.zeros((4, 4)), np.ones((4, 4))), Tolerance()
    )
    kept = detail_of(pair, comparison)
    rows = [
        replace(result_of("activation", f"m{n}", f"m{n}", comparison, "init"), detail=kept, root=n == 149)
        for n in range(150)
    ]
    (stage,) = bounded((StageResult(3, "forward", tuple(rows)),))
    whole = [n for n, row in enumerate(stage.tensors) if row.detail is not None and row.detail.heat]
    assert whole == [*range(MOST_WHOLE - 1), 149]
    assert all(row.detail is not None and row.detail.counts for row in stage.tensors)


# ------------------------------------------------------------------------------------------------------- of whole checks


@pytest.fixture(scope="module")
def options():
    sizes = {"num_tokens": 30, "dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 12, "ff_mult": 2}
    return Options(settings=sizes, data="fake", batch_size=3, length=8, steps=(1, 3, 5), details=True)


TWIN = "fast-transformer"


def test_a_check_keeps_them_where_they_are_asked_for(options) -> None:
    faulty = replace(options, faults=("mask-inverted",))
    (twin,) = check(TWIN, faulty).twins
    (without,) = check(TWIN, replace(faulty, details=False)).twins
    assert all(tensor.detail is None for tensor in without.tensors)
    stripped = [replace(tensor, detail=None) for tensor in twin.tensors]
    assert stripped == list(without.tensors)  # they change no verdict and no figure
    assert twin.roots
    for tensor in twin.tensors:
        if tensor.record in ("activation", "gradient", "input"):
            assert tensor.detail is not None
            assert within_bounds(tensor.detail)
            assert bool(tensor.detail.heat) == (tensor.verdict == "diverged")
        if (
            tensor.detail is not None
            and tensor.detail.worst
            and tensor.decided_by == "semantics"
            and tensor.verdict == "diverged"
        ):
            worst = tensor.detail.worst[0]
            assert abs(worst.candidate64 - worst.reference64) == tensor.max_abs


def test_both_trees_are_told_with_their_lines_and_tensors(options) -> None:
    (twin,) = check(TWIN, replace(options, faults=("stale-bias-gradient",), steps=(1, 5))).twins
    for side in ("reference", "candidate"):
        found = nodes(twin, side)
        assert found[0].module.path == ""
        assert (found[0].below, found[0].roots) == ("diverged", len(twin.roots))
        assert sum(len(node.tensors) for node in found) == len(twin.tensors)
        assert all(node.module.counterpart == node.module.path for node in found)
        source = f"fastformer_{'torch' if side == 'reference' else 'paddle'}/fast_transformer.py:"
        # The criterion is the toolkit's, and in no line of the user's.
        assert [node.module.path for node in found if source not in (node.module.site or "")] == ["criterion"]
        lines = {node.module.path: (node.module.site or "").rpartition(":")[2] for node in found}
        assert lines["layers.0.1.fn"] == lines["layers.0.1.fn.2"] != lines["layers.0.1.norm"]
    guilty = {twin.tensors[number].name for node in found for number in node.tensors if node.verdict == "diverged"}
    assert {root.name for root in twin.roots} <= guilty


@pytest.mark.parametrize(
    ("record", "name", "path"),
    [
        ("module", "(root)", ""),
        ("module", "a.b", "a.b"),
        ("module", "gone", None),
        ("activation", "a.b#2[1]", "a.b"),
        ("gradient", "a.b.weight", "a.b"),
        ("update", "a.c.d.bias", "a"),
        ("logits", "logits", ""),
        ("metric", "accuracy", ""),
    ],
)
def test_a_tensor_belongs_to_a_module(record, name, path) -> None:
    assert module_of(record, name, {"", "a", "a.b"}) == path


def test_captures_and_traces_have_them_too(options, tmp_path) -> None:
    ours, theirs = tmp_path / "reference.safetensors", tmp_path / "candidate.safetensors"
    capture_reference(TWIN, ours, options)
    capture_candidate(ours, theirs, faults=("mask-inverted",))
    for report in (compare_captures(ours, theirs, details=True), explain_traces(ours, theirs, details=True)):
        (twin,) = report.twins
        assert any(tensor.detail is not None and tensor.detail.heat for tensor in twin.roots)
        assert [module.path for module in twin.reference_tree] == [module.path for module in twin.candidate_tree]
        assert all(module.site is None for module in twin.reference_tree)
    (twin,) = compare_captures(ours, theirs).twins
    assert all(tensor.detail is None for tensor in twin.tensors)


def test_dumps_have_them_too(tmp_path) -> None:
    files = [tmp_path / "one.npy", tmp_path / "two.npy"]
    for file, shift in zip(files, (0.0, 0.5), strict=True):
        np.save(file, {"logits": np.arange(12, dtype=np.float32).reshape(3, 4) + np.float32(shift)}, allow_pickle=True)  # type: ignore[arg-type]
    (twin,) = compare_dumps(*files, details=True).twins
    (found,) = (tensor.detail for tensor in twin.tensors)
    assert found is not None
    assert (found.dtype, found.cells, set(found.heat)) == ("float32", (3, 4), {-0.3})
