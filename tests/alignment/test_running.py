"""How a check runs models: seeded dropout, sides that are not deterministic, a further dtype, devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import AlignmentError, Options, Report, check, run_check
from alignment.cli import run
from alignment.experiment import prepare
from alignment.frameworks import get_framework
from alignment.frameworks.masks import Masks, scaled, self_normalizing
from alignment.repro import write_repros
from alignment.twins import get_twin, twin_of

X = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
RUNNING = Options(steps=(3, 4, 5))


def reasons(report: Report, verdict: str) -> dict[tuple[str, str], str]:
    return {
        (t.record, t.name): t.reason for stage in report.twins[0].stages for t in stage.tensors if t.verdict == verdict
    }


def roots(report: Report) -> list[tuple[str, str]]:
    return [(t.record, t.name) for t in report.twins[0].roots]


class Net(torch.nn.Module):
    """Dropout by a layer or by a function. functional: the function's rate; always: in evaluation mode, too."""

    def __init__(self, functional: float = 0.0, rate: float = 0.3, eps: float = 1e-5, always: bool = False) -> None:
        super().__init__()
        self.functional, self.always = functional, always
        self.norm = torch.nn.LayerNorm(6, eps=eps)
        self.first = torch.nn.Linear(6, 8)
        self.dropout = torch.nn.Dropout(rate)
        self.last = torch.nn.Linear(8, 3)
        self.act = torch.nn.GELU()

    def forward(self, x):
        y = self.dropout(self.first(self.norm(x)))
        return self.act(self.last(torch.nn.functional.dropout(y, self.functional, self.training or self.always)))


class PaddleNet(paddle.nn.Layer):
    def __init__(
        self,
        functional: float = 0.0,
        rate: float = 0.3,
        eps: float = 1e-5,
        always: bool = False,
        mode: str = "upscale_in_train",
        early: bool = False,
        tanh: bool = False,
    ) -> None:
        super().__init__()
        self.functional, self.always, self.early = functional, always, early
        self.norm = paddle.nn.LayerNorm(6, epsilon=eps)
        self.first = paddle.nn.Linear(6, 8)
        self.dropout = paddle.nn.Dropout(rate, mode=mode)
        self.last = paddle.nn.Linear(8, 3)
        self.act = paddle.nn.GELU(approximate=tanh)

    def forward(self, x):
        y = self.first(self.dropout(self.norm(x))) if self.early else self.dropout(self.first(self.norm(x)))
        y = paddle.nn.functional.dropout(y, self.functional, training=self.training or self.always)
        return self.act(self.last(y))


# -------------------------------------------------------------------------------------------------------- seeded dropout


def seeded(candidate: Any, reference: Any = None, inputs: Any = X, **options: Any) -> Report:
    given = Options(**{"steps": (3, 4, 5)} | options)
    return check(reference=reference or Net(), candidate=candidate, inputs=inputs, dropout="seeded", options=given)


def test_a_right_port_is_aligned_under_seeded_dropout() -> None:
    report = seeded(PaddleNet())
    assert report.verdict == "aligned", reasons(report, "diverged")
    assert any("masks of seed 0" in note for note in report.twins[0].notes)


@pytest.mark.parametrize(
    ("wrong", "root"),
    [
        ({"rate": 0.1}, ("activation", "dropout")),
        ({"early": True}, ("input", "first")),
        ({"mode": "downscale_in_infer"}, ("activation", "dropout")),
    ],
    ids=["rate", "place", "mode"],
)
def test_seeded_dropout_sees_a_wrong_rate_place_or_mode(wrong: dict[str, Any], root: tuple[str, str]) -> None:
    assert root in roots(seeded(PaddleNet(**wrong)))


def test_frozen_dropout_lets_all_pass() -> None:
    report = check(reference=Net(), candidate=PaddleNet(rate=0.1), inputs=X, mode="train", options=RUNNING)
    assert report.verdict == "aligned"


class Channels(torch.nn.Module):
    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(6))
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x * self.weight)
        return x


class PaddleChannels(paddle.nn.Layer):
    def __init__(self, *layers: paddle.nn.Layer) -> None:
        super().__init__()
        self.weight = self.create_parameter([6])
        self.layers = paddle.nn.LayerList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x * self.weight)
        return x


def test_every_dropout_layer_has_its_counterpart() -> None:
    images = np.random.default_rng(1).standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    one, two = torch.nn, paddle.nn
    given = Channels(one.Dropout(0.5), one.AlphaDropout(0.2), one.FeatureAlphaDropout(0.4), one.Dropout3d(0.3))
    right = (two.Dropout(0.5), two.AlphaDropout(0.2), two.FeatureAlphaDropout(0.4), two.Dropout3D(0.3))
    report = seeded(PaddleChannels(*right), given, images)
    assert report.verdict == "aligned", reasons(report, "diverged")
    plain = (*right[:2], two.AlphaDropout(0.4), right[3])
    assert roots(seeded(PaddleChannels(*plain), given, images))[0] == ("activation", "layers.2")
    flat = seeded(PaddleChannels(two.Dropout2D(0.5)), Channels(one.Dropout2d(0.5)), images[:, 0])
    assert flat.verdict == "aligned"
    last = seeded(PaddleChannels(two.Dropout2D(0.5, data_format="NHWC")), Channels(one.Dropout2d(0.5)), images[:, 0])
    assert ("activation", "layers.0") in roots(last)


def test_masks_are_the_same_in_every_run_and_differ_from_call_to_call() -> None:
    experiment = prepare(twin_of(Net(), PaddleNet(), X, dropout="seeded"), Options(seed=5))
    model = experiment.model("reference", "float32").module
    one, two = (experiment.run("reference", model, experiment.batches[0], backward=False) for _ in range(2))
    assert np.array_equal(one.get("output", "output"), two.get("output", "output"))
    masks = Masks(5)
    first, second = masks.keep((64,), 0.5), masks.keep((64,), 0.5)
    masks.restart()
    assert np.array_equal(masks.keep((64,), 0.5), first)
    assert not np.array_equal(first, second)


@settings(max_examples=25)
@given(st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
def test_what_dropout_multiplies_with_keeps_mean_and_variance(rate: float, seed: int) -> None:
    keep = Masks(seed).keep((4000,), rate)
    assert abs(keep.mean() - (1 - rate)) < 0.05
    if rate < 1.0:
        assert set(np.unique(scaled(keep, rate))) <= {0.0, 1 / (1 - rate)}
    if rate < 0.9:
        factor, summand = self_normalizing(keep, rate)
        made = factor * np.random.default_rng(seed).standard_normal(4000) + summand
        assert abs(made.mean()) < 0.15
        assert abs(made.var() - 1) < 0.25


def test_alpha_dropout_is_that_of_the_frameworks() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, dtype=torch.float64)
    theirs = torch.nn.functional.alpha_dropout(x, 0.3, training=True).numpy()
    values, counts = np.unique(theirs.round(9), return_counts=True)
    factor, summand = self_normalizing(theirs.round(9) != values[counts.argmax()], 0.3)  # what is dropped has one value
    assert np.allclose(theirs, factor * x.numpy() + summand, atol=1e-6)


def test_a_script_is_not_written_of_seeded_dropout(tmp_path) -> None:
    checked = run_check(twin_of(Net(), PaddleNet(rate=0.1), X, dropout="seeded"), RUNNING)
    with pytest.raises(AlignmentError, match="frozen dropout"):
        write_repros(checked, tmp_path)


def test_dropout_of_a_built_in_twin_on_the_command_line(small_arguments, capsys) -> None:
    arguments = ["check", *small_arguments("fastformer-text-classifier"), "--step", "3", "--dropout", "seeded"]
    assert run(arguments) == 0
    assert "apply masks of seed 0" in " ".join(capsys.readouterr().out.split())


# -------------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize(
    ("ours", "theirs", "sides"),
    [(0.2, 0.2, ["reference", "candidate"]), (0.2, 0.0, ["reference"]), (0.0, 0.2, ["candidate"])],
)
def test_random_numbers_in_training_mode_are_named_and_not_called_diverged(
    ours: float, theirs: float, sides: list[str]
) -> None:
    report = check(reference=Net(ours), candidate=PaddleNet(theirs), inputs=X, mode="train", options=RUNNING)
    assert report.verdict == "inconclusive"
    assert not reasons(report, "diverged")
    assert [note.partition(" isn't deterministic in training mode")[0] for note in report.twins[0].notes] == [
        f"the {side}" for side in sides
    ]
    assert {("input", "last"), ("activation", "last"), ("loss", "loss")} <= set(reasons(report, "inconclusive"))
    said = reasons(report, "inconclusive")["loss", "loss"]
    assert "what last is given at " in said
    assert "test_running.py:" in said


def test_what_is_wrong_besides_what_is_random_stays_diverged() -> None:
    report = check(reference=Net(0.2), candidate=PaddleNet(0.2, eps=1e-3), inputs=X, mode="train", options=RUNNING)
    assert roots(report) == [("activation", "norm")]
    assert ("activation", "first") in reasons(report, "diverged")  # before anything random
    assert ("activation", "last") in reasons(report, "inconclusive")


def test_what_is_wrong_after_what_is_random_stays_diverged() -> None:
    report = check(reference=Net(0.2), candidate=PaddleNet(0.2, tanh=True), inputs=X, mode="train", options=RUNNING)
    assert roots(report) == [("activation", "act")]
    assert set(reasons(report, "diverged")) == {("activation", "act")}


def test_a_candidate_that_is_random_in_evaluation_mode_alone_stays_diverged() -> None:
    report = check(reference=Net(0.2), candidate=PaddleNet(0.2, always=True), inputs=X, options=RUNNING)
    assert roots(report) == [("input", "last")]
    assert "the candidate isn't deterministic in evaluation mode" in report.twins[0].notes[0]
    report = check(reference=Net(0.2, always=True), candidate=PaddleNet(0.2), inputs=X, options=RUNNING)
    assert report.verdict == "inconclusive"


def test_an_aligned_check_and_a_deterministic_one_say_nothing() -> None:
    for candidate in (PaddleNet(0.2), PaddleNet(eps=1e-3)):
        assert not check(reference=Net(0.2), candidate=candidate, inputs=X, options=RUNNING).twins[0].notes


# ------------------------------------------------------------------------------------------------------- low precision


class Sum(torch.nn.Module):
    """The rows of an embedding summed up. serial: one after another in the dtype itself. large: by way of 1e6."""

    def __init__(self, serial: bool = False, large: float = 1.0) -> None:
        super().__init__()
        self.serial, self.large = serial, large
        self.table = torch.nn.Embedding(50, 8)
        self.scale = torch.nn.Parameter(torch.ones(8))

    def forward(self, ids):
        x = torch.abs(self.table(ids) * self.scale) * self.large / self.large
        if not self.serial:
            return x.sum(1)
        total = x[:, 0]
        for position in range(1, x.shape[1]):
            total = total + x[:, position]
        return total


IDS = np.random.default_rng(0).integers(0, 50, (3, 600))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_low_run_is_judged_by_the_references_own_errors(dtype: str) -> None:
    options = Options(steps=(3, 4, 5), precision=dtype)
    report = check(reference=Sum(), candidate=Sum(), inputs=IDS, options=options)
    assert report.verdict == "aligned"
    rows = set(reasons(report, "aligned"))
    assert {("output", f"output ({dtype})"), ("loss", f"loss ({dtype})"), ("gradient", f"scale ({dtype})")} <= rows
    assert all(t.dtype == dtype for s in report.twins[0].stages for t in s.tensors if dtype in t.name)


def test_a_sum_in_bfloat16_itself_diverges_there_alone() -> None:
    assert check(reference=Sum(), candidate=Sum(serial=True), inputs=IDS, options=RUNNING).verdict == "aligned"
    options = Options(steps=(3, 4, 5), precision="bfloat16")
    report = check(reference=Sum(), candidate=Sum(serial=True), inputs=IDS, options=options)
    found = reasons(report, "diverged")
    assert "the bfloat16 error" in found["output", "output (bfloat16)"]
    assert all("(bfloat16)" in name for _, name in found)


def test_what_overflows_on_one_side_diverges_and_on_the_reference_is_open() -> None:
    options = Options(steps=(3,), precision="float16")
    report = check(reference=Sum(), candidate=Sum(large=2.0**18), inputs=IDS, options=options)
    assert "NaN or infinite in float16" in reasons(report, "diverged")["output", "output (float16)"]
    report = check(reference=Sum(large=2.0**18), candidate=Sum(), inputs=IDS, options=options)
    assert "nothing to measure by" in reasons(report, "inconclusive")["output", "output (float16)"]


def test_a_missing_kernel_is_open_with_its_name() -> None:
    options = Options(steps=(3, 5), precision="bfloat16")
    report = check(reference=Net(), candidate=PaddleNet(), inputs=X, options=options)
    if report.verdict == "aligned":
        pytest.skip("this build of Paddle has the kernels")
    assert report.verdict == "inconclusive"
    said = reasons(report, "inconclusive")["output", "(bfloat16)"]
    assert "no bfloat16 run: the candidate (PaddleNet) fails" in said
    assert "of kernel `" in said
    assert len(said) < 250


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(_context, x):
        return x.clone()

    @staticmethod
    def backward(_context, gradient):
        if gradient.dtype == torch.bfloat16:
            raise RuntimeError("no such kernel")
        return gradient


class OneWay(Sum):
    def forward(self, ids):
        return NoWayBack.apply(super().forward(ids))


def test_without_a_backward_kernel_the_forward_run_is_judged() -> None:
    options = Options(steps=(3, 4, 5), precision="bfloat16")
    report = check(reference=Sum(), candidate=OneWay(), inputs=IDS, options=options)
    assert [stage.verdict for stage in report.twins[0].stages] == ["aligned", "aligned", "inconclusive"]
    assert "no such kernel" in reasons(report, "inconclusive")["output", "(bfloat16)"]


def test_paddle_and_torch_in_bfloat16_where_both_have_kernels() -> None:
    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.scale = torch.nn.Embedding(5, 4), torch.nn.Parameter(torch.ones(4))

        def forward(self, ids):
            return (self.table(ids) * self.scale).sum(1)

    class PaddleTable(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.scale = paddle.nn.Embedding(5, 4), self.create_parameter([4])

        def forward(self, ids):
            return (self.table(ids) * self.scale).sum(1)

    ids = np.array([[1, 2, 3], [0, 3, 1]])
    options = Options(steps=(3, 4, 5), precision="bfloat16")
    report = check(reference=Table(), candidate=PaddleTable(), inputs=ids, options=options)
    assert report.verdict == "aligned", reasons(report, "inconclusive")


def test_where_float64_differs_a_low_run_is_not_made() -> None:
    report = check(
        reference=Net(), candidate=PaddleNet(eps=1e-3), inputs=X, options=Options(steps=(3,), precision="bfloat16")
    )
    assert report.twins[0].stages[0].notes[-1] == "bfloat16 not judged: the sides differ without it"


# ------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "gpu:99"], "the reference can't run on gpu:99: torch finds cpu"),
        (["--candidate-device", "gpu:99"], "the candidate can't run on gpu:99: paddle finds cpu"),
        (["--device", "cuda"], "a device is cpu, gpu or gpu:N, not 'cuda'"),
        (["--reference-python", "python3", "--device", "cpu"], "--device goes with a check in one environment"),
        (["--candidate-python", "python3", "--precision", "float16"], "--precision goes with a check in one"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(arguments: list[str], said: str, capsys) -> None:
    assert run(["check", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("given", [{"dropout": "on"}, {"precision": "float8"}, {"reference_device": "gpu:x"}])
def test_words_that_mean_nothing_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(AlignmentError):
        Options(**given)


def test_a_device_for_both_and_one_for_a_side(small_arguments, capsys) -> None:
    arguments = [*small_arguments("fast-transformer"), "--step", "3", "--device", "gpu:99"]
    assert run(["check", *arguments, "--reference-device", "cpu", "--candidate-device", "cpu"]) == 0
    assert "reference on cpu, candidate on cpu" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_on_a_gpu(side: str, small) -> None:
    framework = get_framework("torch" if side == "reference" else "paddle")
    if len(framework.devices()) < 2:
        pytest.skip(f"{framework.name} has no GPU here")
    options = small("fast-transformer", steps=(3, 4, 5), **{f"{side}_device": "gpu"})
    experiment = prepare(get_twin("fast-transformer"), options)
    assert experiment.side(side)[0].device(experiment.model(side, "float64").module) in ("cuda:0", "gpu:0")
    assert check("fast-transformer", options).verdict == "aligned"
