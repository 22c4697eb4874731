"""Which side is wrong is read from each side's own numbers, whichever of the two it is."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.experiment import Options, prepare
from alignment.frameworks import get_framework
from alignment.localise import Scene
from alignment.sides import DERIVATIVE, attribute, laws
from alignment.twins import TWINS, get_twin
from mutants.fastformer_faults import FASTFORMER_FAULTS

FAULTS = {fault.name: fault for fault in FASTFORMER_FAULTS}
BIAS = "∂b = Σ∂y"


def scene(small, twin: str, *faults, batch: int = 0) -> Scene:
    experiment = prepare(get_twin(twin), small(twin, faults=faults))
    return Scene(experiment, "random", experiment.batches[batch])


def law(found, text: str):
    return next(law for law in found if law.text == text)


@pytest.mark.parametrize("name", TWINS)
def test_a_right_port_keeps_every_law_on_both_sides(small, name) -> None:
    """Every module of every twin, as if a root had been found there."""
    from alignment.localise import Root

    right = scene(small, name)
    checked = 0
    for module in right.experiment.reference.modules(right.experiment.reference_model):
        output = right.reference64.get("activation", module.path)
        if output is None:
            continue
        root = Root(
            "activation", module.path, module.path, right.judge("activation", module.path, output), output, output
        )
        for one in laws(right, root):
            assert all(one.holds.values()), one.describe()
            assert set(one.holds) == {"reference", "candidate"}
            checked += 1
    assert checked > 15


def test_the_candidate_breaks_the_sum_of_a_bias_gradient(small) -> None:
    wrong = scene(small, "fast-transformer-classifier", "stale-bias-gradient")
    (root,) = wrong.roots
    found = laws(wrong, root)
    assert law(found, BIAS).guilty == "candidate"
    assert law(found, "Σ_classes ∂b = 0").guilty == "candidate"
    assert law(found, DERIVATIVE).guilty == "candidate"
    assert law(found, "∂W = ∂yᵀx").guilty is None
    assert attribute(root, found) == (
        "candidate",
        f"the candidate breaks {BIAS} and Σ_classes ∂b = 0 at dense_linear; the reference satisfies them",
    )


def test_the_reference_is_found_wrong_where_it_is(small, monkeypatch) -> None:
    """The same fault planted in the reference: nothing but its own numbers tells."""
    torch = get_framework("torch")
    build = torch.build

    def build_wrong(*arguments, **keywords):
        model = build(*arguments, **keywords)
        torch.replace_gradient(model, "dense_linear.bias", lambda g: np.full_like(g, 1 / 3))
        return model

    monkeypatch.setattr(torch, "build", build_wrong)
    wrong = scene(small, "fast-transformer-classifier")
    (root,) = wrong.roots
    side, reason = attribute(root, laws(wrong, root))
    assert side == "reference"
    assert reason == f"the reference breaks {BIAS} and Σ_classes ∂b = 0 at dense_linear; the candidate satisfies them"


@pytest.mark.parametrize(
    ("fault", "text"),
    [("weight-gradient-transposed", "∂W = ∂yᵀx"), ("bias-gradient-constant-1e-9", BIAS), ("gradient-sign", DERIVATIVE)],
)
def test_wrong_gradients_break_a_law(small, fault, text) -> None:
    wrong = scene(small, "fastformer-classifier", FAULTS[fault])
    root = wrong.roots[0]
    assert law(laws(wrong, root), text).guilty == "candidate"


def test_two_consistent_sides_differ_by_definition(small) -> None:
    wrong = scene(small, "fastformer-classifier", "gelu-form")
    root = wrong.roots[0]
    found = laws(wrong, root)
    assert all(all(one.holds.values()) for one in found)
    side, reason = attribute(root, found)
    assert side == "candidate"
    assert "truth by definition" in reason


def test_a_stop_gradient_in_the_reference_is_no_fault_of_the_reference() -> None:
    """Its gradient is not the derivative of its loss, on purpose."""
    experiment = prepare(get_twin("mutants.gallery:tied_net__grad_scale"), Options(batch_size=3))
    wrong = Scene(experiment, "random", experiment.batches[0])
    (root,) = wrong.roots
    found = laws(wrong, root)
    assert law(found, DERIVATIVE).guilty == "reference"
    side, reason = attribute(root, found)
    assert side == "candidate"
    assert "stop-gradient" in reason
