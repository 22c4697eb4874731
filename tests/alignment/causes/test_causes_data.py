"""Orders and batches as torch's and Paddle's own loaders give them: what differs is named, and nothing else is."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

from alignment import AlignmentError, explain_order

SAMPLES, BATCH, SEED = 37, 8, 7


class Samples(paddle.io.Dataset):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, place):
        return np.int64(place)


def torch_batches(epochs: int = 1, **options) -> list[np.ndarray]:
    """The last of some epochs."""
    torch.manual_seed(SEED)
    loader = torch.utils.data.DataLoader(torch.arange(SAMPLES), **{"batch_size": BATCH, "shuffle": True} | options)
    return [[batch.numpy() for batch in loader] for _ in range(epochs)][-1]


def paddle_batches(epochs: int = 1, **options) -> list[np.ndarray]:
    np.random.seed(SEED)  # noqa: NPY002 - the generator that Paddle draws from
    paddle.seed(SEED)
    loader = paddle.io.DataLoader(Samples(), **{"batch_size": BATCH, "shuffle": True} | options)
    return [[np.asarray(batch).ravel() for batch in loader] for _ in range(epochs)][-1]


def causes(reference, candidate, seed=SEED):
    return [(f.roots[0], f.cause) for f in explain_order(reference, candidate, dataset=range(SAMPLES), seed=seed)]


@pytest.mark.parametrize(("epochs", "workers"), [(1, 0), (3, 0), (2, 2)])
def test_paddles_loader_shuffles_by_numpys_generator(epochs, workers) -> None:
    theirs = paddle_batches(epochs, num_workers=workers)
    (finding,) = explain_order(torch_batches(epochs), theirs, dataset=range(SAMPLES), seed=SEED)
    assert (finding.cause, finding.after) == ("shuffle-rng", 0.0)
    assert finding.before > SAMPLES / 2
    drawn = f"epoch {epochs}{' of a loader with workers' if workers else ''} after seed {SEED}"
    assert drawn in finding.proof
    assert f"the candidate's order is {drawn}" in finding.evidence[-1]
    assert "the reference's order is none" in finding.evidence[-2]


def test_the_seed_that_paddle_was_given_does_not_matter() -> None:
    """paddle.seed alone: NumPy's generator goes on from wherever it was."""
    np.random.seed(123)  # noqa: NPY002
    paddle.seed(SEED)
    theirs = [np.asarray(batch).ravel() for batch in paddle.io.DataLoader(Samples(), batch_size=BATCH, shuffle=True)]
    assert causes(torch_batches(), theirs) == [("data order", "data-order")]
    assert causes(torch_batches(), theirs, seed=123) == [("data order", "shuffle-rng")]
    assert causes(torch_batches(), theirs, seed=None) == [("data order", "data-order")]


def test_equal_samplers_agree() -> None:
    order = np.random.RandomState(0).permutation(SAMPLES).tolist()
    sampler = paddle.io.BatchSampler(sampler=order, batch_size=BATCH)
    theirs = [np.asarray(b).ravel() for b in paddle.io.DataLoader(Samples(), batch_sampler=sampler)]
    assert causes(torch_batches(shuffle=False, sampler=order), theirs) == []


def test_both_by_numpy_but_not_the_same_draw() -> None:
    assert causes(paddle_batches(1), paddle_batches(2)) == [("data order", "shuffle-draw")]


def test_a_distributed_sampler_shuffles_by_the_epoch() -> None:
    sampler = paddle.io.DistributedBatchSampler(Samples(), BATCH, num_replicas=1, rank=0, shuffle=True)
    sampler.set_epoch(4)
    theirs = [np.asarray(b).ravel() for b in paddle.io.DataLoader(Samples(), batch_sampler=sampler)]
    (finding,) = explain_order(torch_batches(), theirs, dataset=range(SAMPLES), seed=SEED)
    assert finding.cause == "shuffle-by-epoch"
    assert "epoch 4, whatever the seed" in finding.proof


def test_one_side_does_not_shuffle() -> None:
    assert causes(torch_batches(), paddle_batches(shuffle=False)) == [("data order", "shuffle-missing")]
    (finding,) = explain_order(torch_batches(shuffle=False), paddle_batches(), dataset=range(SAMPLES), seed=SEED)
    assert finding.cause == "shuffle-missing"
    assert "the reference takes the samples as they are stored" in finding.proof


def test_the_last_batch_is_dropped_and_the_order_is_another_one() -> None:
    found = causes(torch_batches(), paddle_batches(drop_last=True))
    assert found == [("data batches", "drop-last"), ("data order", "shuffle-rng")]
    assert causes(torch_batches(drop_last=True, shuffle=False), paddle_batches(shuffle=False)) == [
        ("data batches", "drop-last")
    ]


def test_a_full_batch_that_is_lost_is_no_dropped_rest() -> None:
    whole = np.split(np.arange(32), 4)
    assert [f.cause for f in explain_order(whole, whole[:-1], dataset=range(32))] == [None]


def test_the_last_batch_is_filled_up() -> None:
    ours = torch_batches(shuffle=False)
    repeated = [*ours[:-1], np.concatenate([ours[-1], ours[0][: BATCH - SAMPLES % BATCH]])]
    filler = [*ours[:-1], np.concatenate([ours[-1], np.full(BATCH - SAMPLES % BATCH, -1)])]
    for theirs, what in ((repeated, "3 of samples that were there already"), (filler, "3 of what is no sample")):
        (finding,) = explain_order(ours, theirs, dataset=range(SAMPLES))
        assert finding.cause == "last-batch-padded"
        assert what in finding.proof


def test_batches_of_another_size() -> None:
    assert causes(torch_batches(shuffle=False), paddle_batches(shuffle=False, batch_size=6)) == [
        ("data batches", "batch-size")
    ]


def test_samples_themselves_are_told_apart_by_their_values() -> None:
    data = np.random.default_rng(0).normal(size=(SAMPLES, 4)).astype(np.float32)
    ours, theirs = ([data[places] for places in side] for side in (torch_batches(), paddle_batches()))
    theirs = [batch.astype(np.float64) for batch in theirs]
    (finding,) = explain_order(ours, theirs, dataset=data, seed=SEED)
    assert finding.cause == "shuffle-rng"


def test_other_samples_are_no_other_order() -> None:
    ours = torch_batches()
    theirs = [np.where(batch == 11, 12, batch) for batch in paddle_batches()]
    (finding,) = explain_order(ours, theirs, dataset=range(SAMPLES), seed=SEED)
    assert finding.cause is None
    assert "1 come on the reference side alone" in finding.evidence[0]
    short = [batch[1:] for batch in ours]
    assert [cause for _, cause in causes(ours, short)] == [None, None]
    assert [f.cause for f in explain_order(ours, [], dataset=range(SAMPLES))] == [None]


def test_few_samples_fall_into_an_order_by_chance() -> None:
    """Ten samples in NumPy's order prove no generator: only that the order is another."""
    order = np.random.RandomState(SEED).permutation(10)
    for theirs in (order, np.arange(10)):
        found = explain_order([np.arange(10)[::-1]], [theirs], dataset=range(10), seed=SEED)
        assert [finding.cause for finding in found] == ["data-order"]
    same = explain_order([np.zeros(40, int)], [np.zeros(40, int)], dataset=np.zeros(40, int), seed=SEED)
    assert same == ()


@pytest.mark.parametrize(
    ("batches", "seed", "said"),
    [
        ([np.int64(3)], 0, "give the names of its samples"),
        ([[object()]], 0, "give the names of its samples"),
        ([[[1, 2], [3]]], 0, "no array of samples"),
        ([np.arange(3)], -1, "NumPy's generator takes"),
    ],
)
def test_what_is_no_batch_is_named(batches, seed, said) -> None:
    with pytest.raises(AlignmentError, match=said):
        explain_order([np.arange(3)], batches, dataset=range(3), seed=seed)
