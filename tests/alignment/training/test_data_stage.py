"""Two loaders compared: what differs is found, named, and does not hide what else differs; what does not, is not."""

from __future__ import annotations

import hashlib
import re
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import orjson
import paddle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import AlignmentError, Report, compare_feeds
from alignment.cli import run
from alignment.training.feeding import Order, OrderSampler, review_feed
from alignment.training.streams import array_hash, batch_hashes
from alignment.views.html import to_html
from alignment.views.json import SCHEMA, from_dict, to_dict, to_json
from alignment.views.junit import to_junit
from examples.port import loaders
from fake_data.amazon import encode_reviews, synthetic_reviews

ROWS, BATCH, SEED, LENGTH = 75, 8, 7, 300
REVIEWS = encode_reviews(synthetic_reviews(ROWS, seed=1), length=LENGTH)
IDS, LABELS = REVIEWS.ids.astype(np.int64), REVIEWS.labels
Batches = list[tuple[np.ndarray, ...]]


def batches(*arrays: np.ndarray, order: Any = None, size: int = BATCH) -> Batches:
    rows = np.arange(len(arrays[0])) if order is None else np.asarray(order)
    return [tuple(array[rows[start : start + size]] for array in arrays) for start in range(0, len(rows), size)]


def found(report: Report) -> tuple[dict[str, str], list[str | None]]:
    """The rows that are not aligned, and the causes, in order."""
    (twin,) = report.twins
    (stage,) = twin.stages
    rows = {f"{row.record} {row.name}": row.verdict for row in stage.tensors if row.verdict != "aligned"}
    roots = {f"{row.record} {row.name}" for row in stage.tensors if row.root}
    assert {root for finding in twin.findings for root in finding.roots} <= roots <= set(rows)
    return rows, [finding.cause for finding in twin.findings]


def reason(report: Report, name: str) -> str:
    return next(row.reason for row in report.twins[0].tensors if row.name == name)


SHUFFLED = np.random.RandomState(3).permutation(ROWS)
OTHER = np.random.RandomState(4).permutation(ROWS)
REFERENCE = batches(IDS, LABELS, order=SHUFFLED)


def left_padded(ids: np.ndarray, pad: int = 0) -> np.ndarray:
    return np.stack([np.concatenate([row[row == 0] + pad, row[row != 0]]) for row in ids])


def with_one(array: np.ndarray, place: tuple[int, ...], value: int) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


D, DS = {"data order": "diverged"}, {"data batches": "diverged"}
I0, I1 = {"input 0": "diverged"}, {"input 1": "diverged"}


@pytest.mark.parametrize(
    ("candidate", "rows", "causes"),
    [
        pytest.param(REFERENCE, {}, [], id="equal"),
        pytest.param(batches(IDS, LABELS, order=OTHER), D, ["data-order"], id="another order"),
        pytest.param(batches(IDS, LABELS, order=SHUFFLED, size=10), DS, ["batch-size"], id="another batch size"),
        pytest.param(REFERENCE[:-1], DS, ["drop-last"], id="the last batch left out"),
        pytest.param(batches(IDS, LABELS, order=OTHER)[:-1], D | DS, ["drop-last", "data-order"], id="both"),
        pytest.param(
            batches(IDS, LABELS, order=[*SHUFFLED, *SHUFFLED[:5]]),
            DS,
            ["last-batch-padded"],
            id="the last one filled up",
        ),
        pytest.param(batches(left_padded(IDS), LABELS, order=SHUFFLED), I0, ["data-padding"], id="padded on the left"),
        pytest.param(
            batches(np.where(IDS == 0, 9999, IDS), LABELS, order=SHUFFLED),
            I0,
            ["data-padding"],
            id="another padding id",
        ),
        pytest.param(batches(IDS[:, :9], LABELS, order=SHUFFLED), I0, ["data-padding"], id="cut shorter"),
        pytest.param(
            batches(np.pad(IDS, ((0, 0), (0, 6))), LABELS, order=SHUFFLED), I0, ["data-padding"], id="padded to more"
        ),
        pytest.param(
            batches(np.pad(left_padded(IDS, 9999), ((0, 0), (6, 0)), constant_values=9999), LABELS, order=SHUFFLED),
            I0,
            ["data-padding"],
            id="padded otherwise in every way",
        ),
        pytest.param(
            [(ids[:, : max(1, (ids != 0).sum(1).max())], labels) for ids, labels in REFERENCE],
            I0,
            ["data-padding"],
            id="padded to the longest of each batch",
        ),
        pytest.param(batches(IDS, LABELS + 1, order=SHUFFLED), I1, ["data-offset"], id="labels from 1"),
        pytest.param(batches(IDS, LABELS.astype(np.int32), order=SHUFFLED), I1, ["data-dtype"], id="int32 labels"),
        pytest.param(batches(IDS, LABELS[:, None], order=SHUFFLED), I1, ["data-shape"], id="labels in a column"),
        pytest.param(
            batches(IDS, (LABELS[:, None] + 1).astype(np.int32), order=SHUFFLED),
            I1,
            ["data-dtype", "data-shape", "data-offset"],
            id="labels otherwise in every way",
        ),
        pytest.param(
            batches(left_padded(IDS, 9999), LABELS + 1, order=OTHER)[:-1],
            D | DS | I0 | I1,
            ["drop-last", "data-order", "data-padding", "data-offset"],
            id="order, the last batch, padding and labels",
        ),
        pytest.param(
            batches(IDS[:, :40], LABELS, order=OTHER), D | I0, ["data-order", "data-padding"], id="another order, cut"
        ),
        pytest.param(
            batches(IDS, with_one(LABELS, (3,), LABELS[3] ^ 1), order=OTHER),
            D | I1,
            ["data-order", None],
            id="another order, and one label",
        ),
        pytest.param(
            batches(IDS, LABELS[:, None].astype(np.int32), order=OTHER, size=10),
            D | DS | I1,
            ["batch-size", "data-order", "data-dtype", "data-shape"],
            id="order, sizes and labels",
        ),
        pytest.param(
            [(one[0], two[1]) for one, two in zip(REFERENCE, batches(IDS, LABELS, order=OTHER), strict=True)],
            {"data pairing": "diverged"},
            ["data-pairing"],
            id="labels of other samples",
        ),
        pytest.param(
            [
                (one[0], two[1])
                for one, two in zip(
                    batches(IDS, LABELS, order=OTHER), batches(IDS, LABELS, order=OTHER[::-1]), strict=True
                )
            ],
            D | {"data pairing": "diverged"},
            ["data-order", "data-pairing"],
            id="another order, and labels of other samples",
        ),
        pytest.param(batches(with_one(IDS, (3, 2), 77), LABELS, order=SHUFFLED), I0, [None], id="one token of one row"),
        pytest.param(batches(IDS, with_one(LABELS, (3,), LABELS[3] ^ 1), order=SHUFFLED), I1, [None], id="one label"),
        pytest.param(batches(IDS + 1000, LABELS, order=SHUFFLED), I0, ["data-offset"], id="another vocabulary's start"),
        pytest.param([(ids,) for ids, _ in REFERENCE], {"input 1": "diverged"}, [], id="no labels"),
    ],
)
def test_what_differs_is_named_and_nothing_else(candidate: Batches, rows: dict, causes: list) -> None:
    report = compare_feeds(REFERENCE, candidate)
    assert found(report) == (rows, causes)
    assert report.verdict == ("diverged" if rows else "aligned")
    # The other way round the same things differ.
    again, _ = found(compare_feeds(candidate, REFERENCE))
    assert again == rows


MISTAKES = ("drop-last", "data-order", "data-padding", "data-dtype", "data-shape", "data-offset")


@settings(max_examples=40)
@given(st.sets(st.sampled_from(MISTAKES)), st.integers(0, 2**32 - 1), st.sampled_from(["left", "id", "cut", "more"]))
def test_no_mistake_hides_another_and_none_is_made_up(made: set[str], seed: int, how: str) -> None:
    ids, labels = IDS, LABELS
    if "data-padding" in made:
        ids = {
            "left": left_padded(IDS),
            "id": np.where(IDS == 0, 9999, IDS),
            "cut": IDS[:, :100],
            "more": np.pad(IDS, ((0, 0), (0, 3))),
        }[how]
    labels = labels + 1 if "data-offset" in made else labels
    labels = labels.astype(np.int32) if "data-dtype" in made else labels
    labels = labels[:, None] if "data-shape" in made else labels
    order = np.random.RandomState(seed).permutation(ROWS) if "data-order" in made else SHUFFLED
    candidate = batches(ids, labels, order=order)
    _, causes = found(compare_feeds(REFERENCE, candidate[:-1] if "drop-last" in made else candidate))
    assert sorted(map(str, causes)) == sorted(made)


def test_the_reason_says_the_first_batch_and_what_it_is() -> None:
    report = compare_feeds(REFERENCE, batches(with_one(IDS, (int(SHUFFLED[21]), 2), 77), LABELS, order=SHUFFLED))
    said = reason(report, "0")
    due = IDS[SHUFFLED[21], 2]
    assert (
        f"1 of 75 rows differ, with other values; first in batch 2, row 5 at [2]: the reference has {due}, the candidate 77"
        in said
    )
    assert array_hash(REFERENCE[2][0])[:12] in said
    padded = compare_feeds(REFERENCE, batches(left_padded(IDS), LABELS, order=SHUFFLED))
    assert "padding on the right, not on the left" in reason(padded, "0")
    cut = compare_feeds(REFERENCE, batches(IDS[:, :9], LABELS, order=SHUFFLED))
    assert "padding to the reference's length, or cut to it on the right;" in reason(cut, "0")
    dropped = compare_feeds(REFERENCE, REFERENCE[:-1])
    assert "the first that differs is batch 9: 3 rows on the reference side, no such batch" in reason(
        dropped, "batches"
    )
    other = compare_feeds(REFERENCE, batches(IDS, LABELS, order=OTHER))
    assert "over the epoch they are the same samples" in reason(other, "order")


def test_rows_that_lost_their_start() -> None:
    tail = np.stack([np.pad(row[row != 0][-9:], (0, max(0, 9 - (row != 0).sum()))) for row in IDS])
    report = compare_feeds(REFERENCE, batches(tail, LABELS, order=SHUFFLED))
    assert found(report) == (I0, ["data-padding"])
    assert "cut to it on the left" in reason(report, "0")


def test_padding_alone_tells_another_order_from_other_samples() -> None:
    """Not one row is equal, and nothing but the ids is there to tell the order by."""
    padded = np.pad(left_padded(IDS), ((0, 0), (6, 0)))
    report = compare_feeds(batches(IDS, order=SHUFFLED), batches(padded, order=OTHER))
    assert found(report)[0] == D | I0
    assert found(report)[1] == ["data-order", "data-padding"]


def test_an_input_that_hardly_varies_tells_no_order() -> None:
    ones, few = np.ones((ROWS, 4), dtype=bool), np.arange(ROWS) == 5
    reference = batches(IDS, ones, few)
    order = np.array([*range(5), 5, *np.random.RandomState(1).permutation(np.arange(6, ROWS))])
    report = compare_feeds(reference, batches(IDS, ones, few, order=order))
    assert found(report) == (D, ["data-order"])


def test_other_samples_are_not_called_another_order() -> None:
    strangers = np.random.default_rng(0).integers(1, 90, IDS.shape)
    report = compare_feeds(batches(IDS), batches(strangers))
    assert found(report) == ({"input 0": "diverged"}, [None])
    mixed = np.concatenate([strangers[:30], IDS[SHUFFLED[30:]]])
    report = compare_feeds(batches(IDS), batches(mixed))
    assert found(report) == ({"data order": "diverged"}, [None])
    assert reason(report, "order").endswith("the samples themselves differ, too: 45 of 75 are on both sides")
    assert "30 come on the reference side alone, 30 on the candidate's" in str(report)
    assert "equal bits in 45 samples that were found on both sides" in str(report)
    assert "the samples themselves differ, too" in reason(report, "order")


@settings(max_examples=40)
@given(st.permutations(range(20)), st.integers(1, 7), st.integers(1, 7), st.booleans())
def test_rows_are_compared_however_batches_are_cut(order: list[int], one: int, two: int, as_dict: bool) -> None:
    ids = np.arange(40).reshape(20, 2)
    candidate: Any = batches(ids, order=order, size=two)
    if as_dict:
        candidate = [{"ids": part[0]} for part in candidate]
    rows, _ = found(compare_feeds(batches(ids, size=one), candidate))
    sizes = [len(part[0]) for part in batches(ids, size=one)] != [len(part[0]) for part in batches(ids, size=two)]
    assert ("data batches" in rows) == sizes
    assert ("data order" in rows) == (order != list(range(20)))
    assert not any(name.startswith("input") for name in rows)


def test_floats_that_differ_by_rounding() -> None:
    values = np.random.default_rng(0).normal(size=(ROWS, 5))
    rounded = compare_feeds(batches(values), batches(values * (1 + 1e-16) + 1e-17))
    assert found(rounded) == ({"input 0": "diverged"}, ["data-rounding"])
    narrow = compare_feeds(batches(values), batches(values.astype(np.float32)))
    assert found(narrow) == ({"input 0": "diverged"}, ["data-dtype"])
    scaled = compare_feeds(batches(values), batches(values * 1.001))
    assert found(scaled) == ({"input 0": "diverged"}, [None])
    holes = np.where(values > 1, np.nan, values)
    assert compare_feeds(batches(holes), batches(holes.copy())).verdict == "aligned"


def test_nothing_to_compare_is_inconclusive() -> None:
    assert compare_feeds([], []).verdict == "inconclusive"
    assert compare_feeds(REFERENCE, []).verdict == "diverged"


def test_a_batch_without_rows_is_one_all_the_same() -> None:
    empty = (IDS[:0], LABELS[:0])
    for place in (0, 3, 10):
        report = compare_feeds(REFERENCE, [*REFERENCE[:place], empty, *REFERENCE[place:]])
        assert found(report)[0] == {"data batches": "diverged"}
        assert compare_feeds(*[[*REFERENCE[:place], empty, *REFERENCE[place:]]] * 2).verdict == "aligned"
    assert compare_feeds([empty], [empty]).verdict == "inconclusive"


def test_a_limit_reads_no_more() -> None:
    def endless() -> Iterator[tuple[np.ndarray, ...]]:
        while True:
            yield from REFERENCE

    report = compare_feeds(endless, endless, limit=25)
    assert report.verdict == "aligned"
    assert "25 batches of 8" in report.twins[0].notes[0]
    cut = compare_feeds(REFERENCE, batches(IDS, LABELS, order=OTHER), limit=3)
    assert "in what was read" in reason(cut, "order")


def test_progress_is_told_with_the_number_of_batches_where_it_is_known() -> None:
    told: list[tuple[int, int | None]] = []
    compare_feeds(REFERENCE, REFERENCE, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 10) for number in range(10)]
    told.clear()
    compare_feeds(lambda: iter(REFERENCE), REFERENCE, limit=None, progress=lambda *said: told.append(said))
    assert told[-1] == (9, None)


def test_too_many_rows_to_name_are_still_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment.training.data_stage.MOST_NAMED", 40)
    rows, causes = found(compare_feeds(REFERENCE, batches(IDS, LABELS, order=OTHER)))
    assert (rows, causes) == ({"data order": "diverged"}, [])
    assert "over the epoch they are the same samples" in reason(
        compare_feeds(REFERENCE, batches(IDS, LABELS, order=OTHER)), "order"
    )
    assert found(compare_feeds(REFERENCE, batches(IDS, LABELS + 1, order=SHUFFLED))) == (I1, ["data-offset"])


def test_memory_is_bounded() -> None:
    """At most one batch of each side is alive while the next is made, besides the one read ahead."""
    alive: list[weakref.ref] = []

    class Held(np.ndarray): ...

    def loader() -> Iterator[np.ndarray]:
        for _ in range(30):
            batch = np.arange(12).reshape(4, 3).view(Held)
            alive.append(weakref.ref(batch))
            assert sum(ref() is not None for ref in alive) <= 4
            yield batch

    assert compare_feeds(loader, loader).verdict == "aligned"
    assert len(alive) == 60


# --------------------------------------------------------------------------------------------------- the frameworks' own


class PaddleReviews(paddle.io.Dataset):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        return IDS[place], int(LABELS[place])


def torch_loader(seed: int = SEED, **options: Any) -> Any:
    torch.manual_seed(seed)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(IDS), torch.from_numpy(LABELS))
    if "batch_sampler" not in options:
        options = {"batch_size": BATCH, "shuffle": True} | options
    return torch.utils.data.DataLoader(dataset, **options)


def paddle_loader(seed: int = SEED, **options: Any) -> Any:
    np.random.seed(seed)  # noqa: NPY002 - the generator that Paddle draws from
    paddle.seed(seed)
    if "batch_sampler" not in options:
        options = {"batch_size": BATCH, "shuffle": True} | options
    return paddle.io.DataLoader(PaddleReviews(), **options)


def plain_torch() -> Any:
    return torch_loader(shuffle=False)


def plain_paddle() -> Any:
    return paddle_loader(shuffle=False)


def test_both_loaders_agree_unshuffled() -> None:
    report = compare_feeds(plain_torch, plain_paddle)
    assert found(report) == ({}, [])
    ours, theirs = (note.rpartition(" ")[2] for note in report.twins[0].notes)
    assert ours == theirs
    assert "torch.utils.data.dataloader.DataLoader: 10 batches of 8, the last of 3, 75 rows" in report.twins[0].notes[0]
    assert {"torch", "paddle"} <= set(report.versions)


def test_the_same_seed_gives_another_order_and_the_generator_is_named() -> None:
    """The data sets are asked of the loaders themselves."""
    report = compare_feeds(torch_loader, paddle_loader, seed=SEED)
    assert found(report) == ({"data order": "diverged"}, ["shuffle-rng"])
    (finding,) = report.twins[0].findings
    assert f"epoch 1 after seed {SEED}" in finding.proof
    report = compare_feeds(torch_loader, paddle_loader)
    assert found(report) == ({"data order": "diverged"}, ["data-order"])
    assert f"the candidate's order is its first draw after seed {SEED}, or that of epoch {SEED}" in str(report)


def test_the_order_is_told_by_a_data_set_that_is_given() -> None:
    ours, theirs = ([tuple(map(np.asarray, batch)) for batch in make()] for make in (torch_loader, paddle_loader))
    assert found(compare_feeds(ours, theirs, seed=SEED))[1] == ["data-order"]
    assert found(compare_feeds(ours, theirs, seed=SEED, dataset=batches(IDS, LABELS)))[1] == ["shuffle-rng"]
    wrong = compare_feeds(ours, theirs, seed=SEED, dataset=batches(IDS[:9], LABELS[:9]))
    assert found(wrong)[1] == ["data-order"]
    assert "does not hold the reference's samples" in " ".join(wrong.twins[0].stages[0].notes)


def test_one_side_shuffles_and_the_other_does_not() -> None:
    assert found(compare_feeds(torch_loader, plain_paddle))[1] == ["shuffle-missing"]


def test_two_paddle_loaders_draw_one_order_after_one_seed_and_two_after_two() -> None:
    """Both draw from NumPy's global generator: each side is seeded when the other has drawn."""
    assert compare_feeds(paddle_loader, paddle_loader).verdict == "aligned"
    other = compare_feeds(paddle_loader, lambda: paddle_loader(SEED + 1), seed=SEED)
    assert found(other)[1] == ["shuffle-rng"]
    assert compare_feeds(torch_loader, torch_loader).verdict == "aligned"
    assert found(compare_feeds(torch_loader, lambda: torch_loader(SEED + 1))) == (D, ["data-order"])


def test_drop_last_of_the_loaders() -> None:
    rows, causes = found(compare_feeds(torch_loader, lambda: paddle_loader(drop_last=True), seed=SEED))
    assert rows == {"data batches": "diverged", "data order": "diverged"}
    assert causes == ["drop-last", "shuffle-rng"]


def test_one_order_for_both_loaders_is_the_way_out() -> None:
    """And it is the order of our own feed."""
    feed = review_feed(REVIEWS, batch_size=BATCH, seed=SEED)
    sampler = OrderSampler(feed.order)
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        makers = (lambda: torch_loader(batch_sampler=sampler)), (lambda: paddle_loader(batch_sampler=sampler))
        assert found(compare_feeds(*makers)) == ({}, [])
        own = compare_feeds(lambda: feed.epoch(epoch), makers[1])  # noqa: B023
        assert found(own) == ({}, [])
        assert "inputs paired by position: input_ids and 0, targets and 1" in own.twins[0].stages[0].notes
    other = OrderSampler(Order(ROWS, BATCH, seed=SEED + 1))
    assert found(compare_feeds(makers[0], lambda: paddle_loader(batch_sampler=other))) == (D, ["data-order"])


def test_a_sampler_goes_on_in_the_middle_of_an_epoch() -> None:
    sampler = OrderSampler(Order(ROWS, BATCH, seed=SEED))
    whole = [np.asarray(batch[1]).tolist() for batch in torch_loader(batch_sampler=sampler)]
    sampler.set_epoch(0, step=6)
    for loader in (torch_loader(batch_sampler=sampler), paddle_loader(batch_sampler=sampler)):
        assert [np.asarray(batch[1]).tolist() for batch in loader] == whole[6:]
        assert len(loader) == 4


# ------------------------------------------------------------------------------------------------------------ what is said


def test_every_view_draws_it() -> None:
    report = compare_feeds(REFERENCE, batches(left_padded(IDS), LABELS[:, None], order=OTHER)[:-1])
    written = orjson.loads(to_json(report))
    jsonschema.validate(written, orjson.loads(SCHEMA.read_bytes()))
    assert to_dict(from_dict(written)) == to_dict(report)
    assert b"data order" in to_html(report)
    assert b'name="data order"' in to_junit(report)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (3, "the reference is a int, which gives no batches"),
        ("text", "the reference is a str, which gives no batches"),
        ([(np.zeros(3), np.zeros(4))], "batch 0: all that a batch holds needs the same rows.* 0 has 3, 1 has 4"),
        ([(np.zeros(3), 5)], "0 has 3, 1 has none"),
        ([()], "it holds nothing"),
        ([["a", "b"]], "no array of numbers"),
        ([(np.zeros(3),), {"x": np.zeros(3)}], "batch 1 holds x, the ones before it 0"),
    ],
)
def test_what_is_no_loader_is_refused(reference: Any, said: str) -> None:
    with pytest.raises(AlignmentError, match=said):
        compare_feeds(reference, [(np.zeros(3),), (np.zeros(3),)])


def failing(at: int) -> Iterator[np.ndarray]:
    for number in range(5):
        if number == at:
            raise KeyError("review")
        yield np.zeros((4, 2))


@pytest.mark.parametrize("at", [0, 3])
def test_a_loader_that_fails_is_named_with_its_batch(at: int) -> None:
    with pytest.raises(AlignmentError, match=f"the candidate's batch {at} failed: KeyError: 'review'"):
        compare_feeds(lambda: failing(9), lambda: failing(at))
    with pytest.raises(AlignmentError, match="the candidate's loader failed: ZeroDivisionError"):
        compare_feeds([np.zeros(2)], lambda: 1 / 0)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(("options", "said"), [({"limit": 0}, "limit is 0"), ({"seed": -1}, "seed -1")])
def test_bad_options_are_refused(options: dict, said: str) -> None:
    with pytest.raises(AlignmentError, match=said):
        compare_feeds(REFERENCE, REFERENCE, **options)


def test_hashes_are_those_of_the_stated_algorithm() -> None:
    batch = {"ids": np.array([[1, 2], [3, 4]], dtype=np.int32), "labels": torch.tensor([0, 1])}
    due = hashlib.sha256(b"int32[2,2]" + b"".join(n.to_bytes(4, "little") for n in (1, 2, 3, 4))).hexdigest()
    assert batch_hashes(batch)["ids"] == due
    assert batch_hashes({"labels": np.array([0, 1])})["labels"] == batch_hashes(batch)["labels"]
    assert array_hash(np.asfortranarray(batch["ids"]).astype(">i4")) == due


def command(*words: str) -> list[str]:
    return ["feed", *(f"feed_module:{word}" for word in words[:2]), *words[2:]]


@pytest.fixture
def feed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module with loaders in it, in the working directory."""
    (tmp_path / "feed_module.py").write_text(
        "import numpy as np\n"
        "ids = np.arange(60).reshape(30, 2)\n"
        "order = np.random.RandomState(5).permutation(30)\n"
        "stored = np.split(ids, 6)\n"
        "def reference():\n    return np.split(ids[::-1], 6)\n"
        "def drawn():\n    return np.split(ids[order], 6)\n"
        "def broken():\n    raise ValueError('no such file')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "feed_module", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["reference", "reference"], 0, "ALIGNED"),
        (["reference", "drawn"], 1, "data-order"),
        (["reference", "drawn", "--seed", "5", "--dataset", "feed_module:stored"], 1, "shuffle-rng"),
        (["reference", "broken"], 2, "the candidate's loader failed: ValueError: no such file"),
        (["reference", "absent"], 2, "can't be imported"),
        (["reference", "reference", "--limit", "2"], 0, "no more were read"),
    ],
)
def test_the_command(feed_module: Path, capfd: pytest.CaptureFixture, words: list[str], status: int, said: str) -> None:
    page = feed_module / "feed.html"
    assert run(command(*words, "--json", str(feed_module / "feed.json"), "--html", str(page))) == status
    assert page.exists() == (status != 2)
    out, err = capfd.readouterr()
    assert said in " ".join((out + err).split())
    assert "Traceback" not in out + err
    assert (feed_module / "feed.json").exists() == (status != 2)
    if status != 2:
        jsonschema.validate(orjson.loads((feed_module / "feed.json").read_bytes()), orjson.loads(SCHEMA.read_bytes()))
        assert run(["report", str(feed_module / "feed.json"), "--quiet"]) == status


def test_a_name_without_a_module_is_a_usage_error(capfd: pytest.CaptureFixture) -> None:
    assert run(["feed", "reference", "m:c"]) == 2
    assert "MODULE:NAME" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------ the example


def test_the_example_shows_what_the_page_says() -> None:
    """Six mistakes at once, none of which hides another."""
    report = compare_feeds(loaders.reference, loaders.first_port, seed=0)
    causes = ["drop-last", "shuffle-rng", "data-padding", "data-dtype", "data-shape", "data-offset"]
    assert found(report) == (DS | D | I0 | I1, causes)
    page = (Path(__file__).parents[3] / "docs" / "training-data.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    words = shown[1].split()
    for row in report.twins[0].tensors:
        said = iter(words)
        assert all(word in said for word in row.reason.split()), row.reason  # in this order, between other columns
    assert ", ".join(f"`{cause}`" for cause in causes) in page


def test_the_examples_port_is_aligned() -> None:
    assert compare_feeds(loaders.reference_in_order, loaders.port).verdict == "aligned"
