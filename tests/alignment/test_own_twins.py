"""Models a user brings: live modules or classes of one's own, nested inputs and outputs, losses of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
import torch

from alignment import AlignmentError, Options, Side, Twin, check, explain

from . import own_paddle, own_torch

X = np.random.default_rng(1).standard_normal((3, 5, 6)).astype(np.float32)
IMAGES = np.random.default_rng(2).standard_normal((4, 3, 6, 6)).astype(np.float32)
MASK = (X[:, :, 0] > 0).astype(np.float32)
MEMORY = {"states": [X[:, 0, :5], X[:, 1, 1:]]}
IDS = np.array([1, 4, 9])


def models(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"reference": getattr(own_torch, name)(), "candidate": getattr(own_paddle, name)()}


def bad(report) -> list[str]:
    return [
        f"{stage.step} {t.record} {t.name}: {t.reason}"
        for stage in report.twins[0].stages
        for t in stage.tensors
        if t.verdict != "aligned"
    ]


def rows(report, record: str) -> set[str]:
    return {t.name for stage in report.twins[0].stages for t in stage.tensors if t.record == record}


def roots(report) -> list[tuple[str, str]]:
    return [(t.record, t.name) for stage in report.twins[0].stages for t in stage.tensors if t.root]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("Net", X, {"output"}),
        ("Net", torch.from_numpy(X), {"output"}),
        ("Net", (X, 0.5), {"output"}),
        ("Net", {"x": X, "mask": MASK}, {"output"}),
        ("Net", [X, X[:2], X[:1, :1]], {"output"}),
        ("Named", X, {"output[logits]", "output[best]", "output[positive]"}),
        ("Typed", X, {"output[logits]", "output[labels]", "output[extra.mean]"}),
        ("Pair", (IDS, MEMORY), {"output[0]", "output[1.0]"}),
        ("Block", IMAGES, {"output"}),
    ],
    ids=["array", "tensor", "arguments", "keywords", "batches", "dict", "dataclass", "nested", "images"],
)
def test_models_of_a_users_own_are_aligned_as_they_are(name: str, inputs: Any, outputs: set[str]) -> None:
    report = check(**models(name), inputs=inputs)
    assert report.verdict == "aligned", bad(report)
    assert rows(report, "output") == outputs
    assert rows(report, "gradient") >= outputs - {"output[best]", "output[positive]", "output[labels]"}


def test_a_data_loader_is_read_as_far_as_needed() -> None:
    data = torch.utils.data.TensorDataset(torch.from_numpy(np.tile(X, (8, 1, 1))), torch.arange(24) % 4)
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    report = check(**models("Net"), inputs=((x[:, 0], y) for x, y in loader), loss="criterion")
    assert report.verdict == "aligned", bad(report)
    assert report.twins[0].batches == ("given-1", "given-2", "given-3", "given-4")
    assert rows(report, "metric")


def test_what_is_called_twice_is_tied_unused_silent_or_a_buffer_is_seen() -> None:
    report = check(**models("Net"), inputs=X)
    assert {"norm", "norm#2"} <= rows(report, "activation")
    assert "silent" not in rows(report, "activation")
    assert "offset" in rows(report, "buffer")
    assert any("unused.weight" in note for stage in report.twins[0].stages for note in stage.notes)
    structure = {t.name: t.reason for t in report.twins[0].stages[0].tensors}
    assert "tied to first.weight" in structure["tied.weight"]


def test_the_models_given_are_left_as_they_are() -> None:
    given = models("Block")
    given["reference"].train()
    before = [value.clone() for value in given["reference"].state_dict().values()]
    theirs = [value.clone() for value in given["candidate"].state_dict().values()]
    check(**given, inputs=IMAGES, mode="train")
    assert given["reference"].training
    assert all(torch.equal(a, b) for a, b in zip(before, given["reference"].state_dict().values(), strict=True))
    assert all(bool((a == b).all()) for a, b in zip(theirs, given["candidate"].state_dict().values(), strict=True))
    assert all(p.grad is None for p in given["reference"].parameters())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_norm_is_aligned_in_both_modes(mode: str) -> None:
    report = check(**models("Block"), inputs=IMAGES, mode=mode)
    assert report.verdict == "aligned", bad(report)
    assert {"bn1.running_mean", "bn1.running_var"} <= rows(report, "update")
    assert any("biased variance" in note for note in report.twins[0].stages[4].notes)


def test_a_strict_check_calls_the_biased_variance_diverged() -> None:
    report = check(options=Options(strict=True), **models("Block"), inputs=IMAGES)
    assert {line.split(":")[0] for line in bad(report)} == {
        f"5 update {name}.running_var" for name in ("bn1", "bn2", "down.1")
    }


def test_a_running_variance_that_differs_otherwise_diverges() -> None:
    given = models("Block")
    given["candidate"].bn2._momentum = 0.8
    report = check(**given, inputs=IMAGES)
    assert ("update", "bn2.running_var") in roots(report)
    assert ("update", "bn1.running_var") not in roots(report)


def test_in_training_mode_a_fault_is_found_that_evaluation_hides() -> None:
    given = models("Block")
    # Its own evaluation mode whatever the model's: the batch's statistics are never used.
    given["candidate"].bn1._use_global_stats = True
    assert not [line for line in bad(check(**given, inputs=IMAGES)) if line[0] == "3"]
    assert ("activation", "bn1") in roots(check(**given, inputs=IMAGES, mode="train"))


def test_a_loss_of_ones_own_takes_nested_targets() -> None:
    targets = {"wanted": X[:, :, :4], "weight": 0.25}
    losses = (own_torch.squared_error, own_paddle.squared_error)
    report = check(**models("Net"), inputs=[(X, targets)], loss=losses)
    assert report.verdict == "aligned", bad(report)
    wrong = (own_torch.squared_error, lambda output, targets: own_paddle.squared_error(output, targets) * 1.001)
    report = check(**models("Net"), inputs=[(X, targets)], loss=wrong)
    assert roots(report) == [("loss", "loss")]


@pytest.mark.parametrize(
    ("name", "inputs", "plant", "root"),
    [
        ("Net", X, lambda m: setattr(m.norm, "_epsilon", 1e-3), ("activation", "norm")),
        ("Named", X, lambda m: setattr(m.act, "_approximate", True), ("activation", "act")),
        ("Typed", X, lambda m: m.offset.set_value(m.offset * 2), None),
        ("Block", IMAGES, lambda m: setattr(m.bn2, "_epsilon", 1e-3), ("activation", "bn2")),
        ("Block", IMAGES, lambda m: setattr(m.group, "_num_groups", 4), ("activation", "group")),
    ],
    ids=["eps", "gelu", "buffer", "batch-norm", "groups"],
)
def test_a_fault_is_found_at_its_tensor(name: str, inputs: Any, plant: Any, root: tuple[str, str] | None) -> None:
    given = models(name)
    plant(given["candidate"])
    report = check(**given, inputs=inputs)
    if root is None:  # buffers come with the reference's weights
        assert report.verdict == "aligned", bad(report)
        return
    assert report.verdict == "diverged"
    assert root in roots(report)


def test_a_wrong_output_that_no_module_makes_is_the_root() -> None:
    class Wrong(own_paddle.Named):
        def forward(self, x):
            output = super().forward(x)
            return output | {"best": output["best"] + 1}

    report = check(reference=own_torch.Named(), candidate=Wrong(), inputs=X)
    assert roots(report) == [("output", "output[best]")]
    missing = check(reference=own_torch.Named(), candidate=own_paddle.Net(), inputs=X)
    assert any("missing on the candidate side" in line for line in bad(missing))


def test_what_the_models_make_alike_is_no_root_though_its_parts_differ() -> None:
    class Reference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(6, 3)

        def forward(self, x):
            return 2 * self.fc(x)

    class Candidate(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.fc = paddle.nn.Linear(6, 3)
            self.fc.register_forward_post_hook(lambda layer, given, made: 2 * made)

        def forward(self, x):
            return self.fc(x)

    report = check(reference=Reference(), candidate=Candidate(), inputs=np.ones((2, 6), np.float32))
    assert ("activation", "fc") in {(t.record, t.name) for t in report.twins[0].roots}
    assert {t.verdict for t in report.twins[0].roots} == {"diverged"}


def test_an_output_that_is_missing_is_the_root_and_not_the_loss_alone() -> None:
    class Wrong(own_paddle.Named):
        def forward(self, x):
            output = super().forward(x)
            return {name: output[name] for name in ("best", "positive")}

    assert roots(check(reference=own_torch.Named(), candidate=Wrong(), inputs=X))[0] == ("output", "output[logits]")


def test_two_models_are_explained_as_they_are_checked() -> None:
    given = models("Net")
    (name, layer) = next((n, m) for n, m in given["candidate"].named_sublayers() if isinstance(m, paddle.nn.LayerNorm))
    layer._epsilon = 1e-3
    (finding,) = explain(**given, inputs=X).twins[0].findings
    assert (finding.cause, finding.roots[0]) == ("layernorm-eps", f"activation {name}")
    with pytest.raises(AlignmentError, match="missing: inputs"):
        explain(**given)
    with pytest.raises(AlignmentError, match="mode is 'eval' or 'train', not 'training'"):
        check(**given, inputs=X, mode="training")


@pytest.mark.parametrize(("ours", "theirs"), [("LSTM", "LSTM"), ("GRU", "GRU"), ("RNN", "SimpleRNN")])
def test_a_recurrent_layer_that_takes_time_for_batch_is_named(ours: str, theirs: str) -> None:
    class Reference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(torch.nn, ours)(6, 4, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    class Candidate(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(paddle.nn, theirs)(6, 4, time_major=True)

        def forward(self, x):
            return self.rnn(x)[0]

    findings = explain(reference=Reference(), candidate=Candidate(), inputs=X).twins[0].findings
    assert [finding.cause for finding in findings] == ["batch-first"]


class TiedByHand(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(11, 6)
        self.mid = torch.nn.Linear(6, 6)

    def forward(self, ids):
        return torch.nn.functional.linear(torch.tanh(self.mid(self.emb(ids))), self.emb.weight)


class TiedAndCut(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.emb = paddle.nn.Embedding(11, 6)
        self.mid = paddle.nn.Linear(6, 6)

    def forward(self, ids):
        return paddle.matmul(paddle.tanh(self.mid(self.emb(ids))), self.emb.weight.detach(), transpose_y=True)


def test_a_reference_that_uses_a_weight_beside_its_layer_is_not_blamed() -> None:
    (finding,) = explain(reference=TiedByHand(), candidate=TiedAndCut(), inputs=IDS).twins[0].findings
    assert (finding.roots, finding.side) == (("gradient emb.weight",), "candidate")


@pytest.mark.parametrize("seed", [265, 554])
def test_a_reference_whose_sum_of_outputs_rounds_well_by_luck_is_no_alarm(seed: int) -> None:
    class Reference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.LSTM(5, 4, 2, batch_first=True)
            self.out = torch.nn.Linear(4, 3)

        def forward(self, x):
            y, state = self.rnn(x)
            return self.out(y), state

    class Candidate(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = paddle.nn.LSTM(5, 4, 2)
            self.out = paddle.nn.Linear(4, 3)

        def forward(self, x):
            y, state = self.rnn(x)
            return self.out(y), state

    torch.manual_seed(seed)
    x = np.random.default_rng(seed).standard_normal((3, 6, 5)).astype(np.float32)
    options = Options(seed=seed, steps=(3, 4))
    report = check(reference=Reference(), candidate=Candidate(), inputs=x, options=options)
    assert report.verdict == "aligned", bad(report)


def test_what_stands_in_the_way_is_said() -> None:
    pair = {
        "reference": torch.nn.Sequential(torch.nn.Linear(6, 3)),
        "candidate": paddle.nn.Sequential(paddle.nn.Linear(6, 3)),
    }
    batch = (np.ones((4, 6), np.float32), np.zeros(4, np.int64))
    with pytest.raises(AlignmentError, match="a Sequential would call as its last layer"):
        check(**pair, inputs=[batch], loss="criterion")
    losses = (torch.nn.functional.cross_entropy, paddle.nn.functional.cross_entropy)
    assert check(**pair, inputs=[batch], loss=losses).verdict == "aligned"

    with pytest.raises(AlignmentError, match=r"the targets are left to the loss, where one is given: loss=…"):
        check(**pair, inputs=[batch])
    for loss, found in (
        (lambda y, _: y.sum(-1), r"a tensor of shape \[4\]"),
        (lambda y, _: y.sum().item(), "a float"),
        (lambda y, _: None, "a NoneType"),
    ):
        with pytest.raises(AlignmentError, match=f"tensor of one element, such as a mean or a sum; .* {found}"):
            check(**pair, inputs=[batch], loss=(loss, loss))

    class Made(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) @ torch.eye(3)

    with pytest.raises(AlignmentError, match=r"torch.zeros\(…, dtype=x.dtype\)"):
        check(reference=Made(6, 3), candidate=paddle.nn.Linear(6, 3), inputs=batch[0])


def test_classes_are_drawn_anew_and_their_initializers_compared() -> None:
    report = check(reference=own_torch.Net, candidate=own_paddle.Net, inputs=X)
    assert rows(report, "initializer")
    assert {line.split()[0] for line in bad(report)} == {"2"}  # torch and Paddle draw by other rules


def test_a_twin_of_ones_own_can_be_named_and_explained() -> None:
    twin = Twin(
        "own",
        "a net of one's own",
        Side("torch", f"{own_torch.__name__}:Net"),
        Side("paddle", own_paddle.Net, {"width": 6}),
        {"classes": 3},
        lambda settings: [X[:, :, :6]],
        loss="outputs",
    )
    report = check(twin, Options(steps=(1, 3, 4, 5)))
    assert report.verdict == "aligned", bad(report)
    given = models("Net")
    given["candidate"].norm._epsilon = 1e-3
    wrong = Twin(
        "wrong", "", Side("torch", given["reference"]), Side("paddle", given["candidate"]), {}, X, loss="outputs"
    )
    finding = explain(wrong).twins[0].findings[0]
    assert finding.cause == "layernorm-eps"
    assert finding.proof


def test_a_model_without_parameters_is_compared_by_what_it_returns() -> None:
    report = check(reference=own_torch.Bare(), candidate=own_paddle.Bare(), inputs=X, options=Options(steps=(3,)))
    assert report.verdict == "aligned", bad(report)
    # Nothing to go back to: that is no evidence for the gradients.
    assert check(reference=own_torch.Bare(), candidate=own_paddle.Bare(), inputs=X).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"reference": own_torch.Net()}, "missing: candidate, inputs"),
        ({"reference": 3, "candidate": own_paddle.Net(), "inputs": X}, "reference is a int"),
        ({"reference": own_torch.Net, "candidate": own_paddle.Net, "inputs": 7}, "not a int"),
        ({"reference": own_torch.Net, "candidate": own_paddle.Net, "inputs": []}, "no batch"),
        ({"reference": own_torch.Net, "candidate": own_paddle.Net, "inputs": ("a",)}, "holds no array"),
        ({"reference": own_torch.Net, "candidate": own_paddle.Net, "inputs": ({1, 2},)}, "no array of numbers"),
        ({"reference": own_torch.Net, "candidate": own_paddle.Net, "inputs": X, "loss": "mse"}, "loss is"),
        ({"reference": own_torch.Net, "candidate": own_paddle.Net, "inputs": [X], "loss": "criterion"}, "pair"),
        ({"reference": own_torch.Net(), "candidate": own_paddle.Net(), "inputs": X[:, :, :4]}, "reference (Net) fails"),
        ({"twin": "fast-transformer", "inputs": X}, "a twin has its own"),
        ({"twin": "fast-transformer", "reference": own_torch.Net()}, "either a twin"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_checked_is_said(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(AlignmentError, match=said.replace("(", r"\(").replace(")", r"\)")):
        check(**arguments)


def test_a_paddle_model_may_be_the_reference() -> None:
    torch.manual_seed(0)
    report = check(reference=own_paddle.Net(), candidate=own_torch.Net(), inputs=paddle.to_tensor(X))
    assert report.verdict == "aligned", bad(report)


def test_half_precision_weights_are_run_in_wider_ones() -> None:
    given = models("Net")
    given["reference"].bfloat16()
    given["candidate"].to(dtype="bfloat16")
    report = check(**given, inputs=X)
    assert report.verdict == "aligned", bad(report)
    assert any("bfloat16 weights" in note for note in report.twins[0].notes)
    given["candidate"].norm._epsilon = 1e-3
    assert ("activation", "norm") in roots(check(**given, inputs=X))


def test_a_running_statistic_before_another_fault_is_a_root_beside_it() -> None:
    given = models("Block")
    given["candidate"].bn1._momentum = 0.1
    given["candidate"].bn2._momentum = 0.1
    given["candidate"].relu.register_forward_post_hook(lambda _layer, _inputs, output: output * 1.5)
    found = roots(check(**given, inputs=IMAGES))
    assert ("update", "bn1.running_mean") in found
    assert ("update", "bn2.running_mean") not in found
