"""Models that are built in odd ways: no traceback, no root missed, and no cause proved that would fit another fault as well."""

from __future__ import annotations

import sys
import types

import numpy as np
import paddle
import pytest
import torch

from alignment import Options, Side, Twin
from alignment.causes import UpdateSuspect, diagnose
from alignment.check import run_check
from alignment.explain import explain_checked
from alignment.repro import write_repros
from fake_data import Ids, InputSpec, Labels

CLASSES = 3


class Piece(torch.nn.Module):
    """A module without weights, of one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


class PaddlePiece(paddle.nn.Layer):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


def tiny(base, embedding, forward, **pieces):
    """A model of an embedding and some pieces; forward: (model, ids, targets) -> what it returns."""

    class Tiny(base):
        def __init__(self) -> None:
            super().__init__()
            if embedding is not None:
                self.table = embedding(10, CLASSES)
            for name, make in pieces.items():
                setattr(self, name, make())

        def forward(self, ids, targets=None):
            return forward(self, ids, targets)

    return Tiny


@pytest.fixture
def explained(monkeypatch, tmp_path):
    """explained(one, two, one's pieces, two's pieces): the findings of a twin of two such models; scripts are written, too."""

    def run(one, two, ours=None, theirs=None, loss="criterion", embedding=True):
        module = types.ModuleType("alignment_test_odd")
        layers = (torch.nn.Embedding, paddle.nn.Embedding) if embedding else (None, None)
        module.One = tiny(torch.nn.Module, layers[0], one, **(ours or {}))  # type: ignore[attr-defined]
        module.Two = tiny(paddle.nn.Layer, layers[1], two, **(theirs or {}))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "alignment_test_odd", module)
        twin = Twin(
            "odd",
            "a model built in an odd way",
            Side("torch", "alignment_test_odd:One"),
            Side("paddle", "alignment_test_odd:Two"),
            {},
            lambda _: InputSpec({"ids": Ids(0, 10, ("B", "N")), "targets": Labels(CLASSES, ("B",))}, max_length=8),
            loss=loss,
        )
        checked = run_check(twin, Options(batch_size=3, length=5, steps=(3, 4, 5)))
        write_repros(checked, tmp_path)
        return [(finding.roots, finding.cause, finding.side) for finding in explain_checked(checked).twins[0].findings]

    return run


def pooled(model, ids, _targets):
    return model.table(ids).mean(1)


def by_piece(model, ids, _targets):
    return model.piece(model.table(ids)).mean(1)


def pieces(one, two) -> tuple[dict, dict]:
    return {"piece": lambda: Piece(one)}, {"piece": lambda: PaddlePiece(two)}


def test_a_model_of_one_module(explained) -> None:
    assert explained(pooled, pooled) == []
    found = explained(pooled, lambda model, ids, _: 1.5 * model.table(ids).mean(1))
    assert found == [(("input criterion",), "scaled", "candidate")]


def test_a_gradient_that_the_reference_alone_cuts(explained) -> None:
    found = explained(
        lambda model, ids, _: model.head(model.table(ids).mean(1).detach()),
        lambda model, ids, _: model.head(model.table(ids).mean(1)),
        {"head": lambda: torch.nn.Linear(CLASSES, CLASSES)},
        {"head": lambda: paddle.nn.Linear(CLASSES, CLASSES)},
    )
    assert found == [(("gradient table.weight",), "detach-missing", "candidate")]


@pytest.mark.parametrize(("calls", "cause"), [(1, "layernorm-missing"), (3, None)])
def test_a_shared_layer_that_is_called_less_or_more_often(explained, calls, cause) -> None:
    # The gradients of its weights differ as well, for the reason that the calls do.
    def forward(count):
        def run(model, ids, _targets):
            x = model.norm(model.table(ids)) ** 2
            for _ in range(count - 1):
                x = model.norm(x)
            return model.head(x).mean(1)

        return run

    found = explained(
        forward(2),
        forward(calls),
        {"norm": lambda: torch.nn.LayerNorm(CLASSES), "head": lambda: torch.nn.Linear(CLASSES, CLASSES)},
        {"norm": lambda: paddle.nn.LayerNorm(CLASSES), "head": lambda: paddle.nn.Linear(CLASSES, CLASSES)},
    )
    assert found == [(("input head",), cause, "candidate")]


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_a_softmax_of_no_axis(explained) -> None:
    found = explained(by_piece, by_piece, {"piece": torch.nn.Softmax}, {"piece": paddle.nn.Softmax})
    assert found == [(("activation piece",), "softmax-axis", "candidate")]


@pytest.mark.parametrize(
    ("one", "two", "cause"),
    [
        # Where a piece is an identity, a factor could be called a summand, and nothing at all a missing one.
        (lambda x: x, lambda x: 2 * x, "scaled"),
        (lambda x: 2 * x, lambda x: 3 * x, "scaled"),
        (lambda x: x, lambda x: 0 * x, None),
        (lambda x: x + x.sin(), lambda x: x.sin(), "residual-missing"),
        # No number, infinity, no axis, no element.
        (lambda x: x.abs(), lambda x: (x - 1e9).log(), None),
        (lambda x: (x - 1e9).log(), lambda x: x.abs(), None),
        (lambda x: x / (x.abs() > 1), lambda x: x * 1.0, None),
    ],
)
def test_pieces(explained, one, two, cause) -> None:
    assert explained(by_piece, by_piece, *pieces(one, two)) == [(("activation piece",), cause, "candidate")]


@pytest.mark.parametrize(
    ("one", "two", "cause"),
    [
        (lambda x: x.mean(), lambda x: x.mean() + 1, None),
        (lambda x: x[:, :0].sum(), lambda x: x[:, :1].sum(), None),
    ],
)
def test_a_piece_without_axes(explained, one, two, cause) -> None:
    def added(model, ids, _targets):
        return model.table(ids).mean(1) + model.piece(model.table(ids))

    assert explained(added, added, *pieces(one, two)) == [(("activation piece",), cause, "candidate")]


def test_a_piece_that_gives_integers(explained) -> None:
    def chosen(model, ids, _targets):
        return model.table(model.piece(model.table(ids))).mean(1)

    found = explained(chosen, chosen, *pieces(lambda x: x.argmax(-1), lambda x: (x.argmax(-1) + 1) % CLASSES))
    assert [roots for roots, *_ in found] == [("activation piece",)]


def test_a_loss_of_the_models_own_is_a_root_beside_a_module(explained) -> None:
    """No criterion is called, so that nothing is forced there: the loss is judged on logits that were."""

    def model(criterion, **options):
        def forward(model, ids, targets):
            logits = model.head(model.piece(model.table(ids)).mean(1))
            return logits if targets is None else (criterion(logits, targets, **options), logits)

        return forward

    found = explained(
        model(torch.nn.functional.cross_entropy),
        model(paddle.nn.functional.cross_entropy, reduction="sum"),
        {"piece": torch.nn.GELU, "head": lambda: torch.nn.Linear(CLASSES, CLASSES)},
        {
            "piece": lambda: paddle.nn.GELU(approximate=True),
            "head": lambda: paddle.nn.Linear(CLASSES, CLASSES),
        },
        loss="model",
    )
    assert found == [
        (("activation piece",), "gelu-form", "candidate"),
        (("loss loss",), "loss-reduction", "candidate"),
    ]


def test_a_reference_that_smooths_labels_is_not_the_wrong_side(explained) -> None:
    """Its loss is not the mean of −log p[target], and need not be."""

    def forward(model, ids, targets):
        logits = model.table(ids).mean(1)
        return logits if targets is None else (model.criterion(logits, targets), logits)

    found = explained(
        forward,
        forward,
        {"criterion": lambda: torch.nn.CrossEntropyLoss(label_smoothing=0.25)},
        {"criterion": paddle.nn.CrossEntropyLoss},
        loss="model",
    )
    assert found == [(("loss loss",), "label-smoothing", "candidate")]


# ------------------------------------------------------------------------------------------------------ suspects by hand


def test_steps_that_do_not_differ_prove_nothing() -> None:
    """At one learning rate nobody can tell whether its schedule is followed, and there is nothing to explain."""
    gradients = (20.0 + np.arange(6.0), 15.0 + np.arange(6.0) ** 2)
    steps = tuple(-0.1 * gradient for gradient in gradients)
    same = UpdateSuspect("w", np.ones(6), gradients, gradients, steps, steps, (0.1, 0.1))
    assert not [cause.name for cause, trial in diagnose(same) if trial.proved]
