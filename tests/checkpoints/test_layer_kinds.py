"""Every layer kind, in both frameworks: the same weights, then the same outputs and the same gradients, in float64.

Nothing here knows how a kind is stored: the two layers are given weights through the layout, and run.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment import Side, Twin
from alignment.cli import run
from alignment.errors import AlignmentError
from alignment.frameworks import get_framework
from checkpoints import Layout, convert, convert_proved, join, plan, read, reverse, split, split_slots, undo, write
from fake_data import Batch, Floats, InputSpec

torch = pytest.importorskip("torch")
paddle = pytest.importorskip("paddle")
T, P = torch.nn, paddle.nn
REFERENCE, CANDIDATE = get_framework("torch"), get_framework("paddle")


@dataclass(frozen=True)
class Pair:
    """Two layers that mean the same. shapes: of the inputs. ids: are they looked up? Else they have gradients, too.

    transposed, parts, aliases: of the layout, as one reads it off the two frameworks' state dicts.
    """

    reference: Callable[[], Any]
    candidate: Callable[[], Any]
    shapes: tuple[tuple[int, ...], ...]
    transposed: int = 0
    parts: int = 0
    aliases: int = 0
    ids: bool = False


SEQUENCE = ((3, 5, 4),)  # b n d
QKV = ((2, 3, 8), (2, 5, 8), (2, 5, 8))
OTHER_WIDTHS = ((2, 3, 8), (2, 5, 3), (2, 5, 6))


def recurrent(kind: str, their_kind: str, **more: Any) -> Iterator[tuple[str, Pair]]:
    """A recurrent layer in every shape it has: torch's sequence comes first unless it is told, Paddle's batch does."""
    ours, theirs = getattr(T, kind), getattr(P, their_kind)
    for layers in (1, 2):
        for both in (False, True):
            way = "bidirect" if both else "forward"
            tensors = 4 * layers * (1 + both)
            yield (
                f"{kind}, {layers} layers, {way}",
                Pair(
                    lambda layers=layers, both=both: ours(4, 3, layers, bidirectional=both, batch_first=True, **more),
                    lambda layers=layers, way=way: theirs(4, 3, layers, direction=way, **renamed(more)),
                    SEQUENCE,
                    aliases=tensors,
                ),
            )
    yield (
        f"{kind}, sequence first",
        Pair(lambda: ours(4, 3, **more), lambda: theirs(4, 3, time_major=True, **renamed(more)), SEQUENCE, aliases=4),
    )


def renamed(options: dict[str, Any]) -> dict[str, Any]:
    return {{"nonlinearity": "activation"}.get(name, name): value for name, value in options.items()}


def projected(layers: int, both: bool) -> Pair:
    way = "bidirect" if both else "forward"
    cells = layers * (1 + both)
    return Pair(
        lambda: T.LSTM(4, 3, layers, bidirectional=both, proj_size=2, batch_first=True),
        lambda: P.LSTM(4, 3, layers, direction=way, proj_size=2),
        SEQUENCE,
        transposed=cells,
        aliases=4 * cells,
    )


def without_biases(layers: int) -> Pair:
    """In Paddle zeros that don't train. Its kernel ends the process then, so the layer is made to compute by its cells."""

    def candidate() -> Any:
        made = P.LSTM(4, 3, layers, bias_ih_attr=False, bias_hh_attr=False)
        made.could_use_cudnn = False
        return made

    return Pair(lambda: T.LSTM(4, 3, layers, bias=False, batch_first=True), candidate, SEQUENCE, aliases=2 * layers)


PAIRS: dict[str, Pair] = {
    "Linear": Pair(lambda: T.Linear(4, 4), lambda: P.Linear(4, 4), ((3, 4),), transposed=1),
    "Linear without bias": Pair(
        lambda: T.Linear(3, 5, bias=False), lambda: P.Linear(3, 5, bias_attr=False), ((2, 3),), transposed=1
    ),
    "compat.Linear": Pair(lambda: T.Linear(4, 4), lambda: paddle.compat.nn.Linear(4, 4), ((3, 4),)),
    "Embedding": Pair(lambda: T.Embedding(4, 4), lambda: P.Embedding(4, 4), ((2, 3),), ids=True),
    "LayerNorm": Pair(lambda: T.LayerNorm(4), lambda: P.LayerNorm(4), ((3, 4),)),
    "LayerNorm of two axes": Pair(lambda: T.LayerNorm([3, 4]), lambda: P.LayerNorm([3, 4]), ((2, 3, 4),)),
    "LayerNorm without bias": Pair(
        lambda: T.LayerNorm(4, bias=False), lambda: P.LayerNorm(4, bias_attr=False), ((3, 4),)
    ),
    "GroupNorm": Pair(lambda: T.GroupNorm(2, 4), lambda: P.GroupNorm(2, 4), ((2, 4, 3),)),
    "BatchNorm1d": Pair(lambda: T.BatchNorm1d(4), lambda: P.BatchNorm1D(4), ((3, 4),)),
    "BatchNorm2d": Pair(lambda: T.BatchNorm2d(4), lambda: P.BatchNorm2D(4), ((2, 4, 3, 3),)),
    "BatchNorm3d": Pair(lambda: T.BatchNorm3d(4), lambda: P.BatchNorm3D(4), ((2, 4, 3, 3, 2),)),
    "BatchNorm without affine": Pair(
        lambda: T.BatchNorm2d(4, affine=False),
        lambda: P.BatchNorm2D(4, weight_attr=False, bias_attr=False),
        ((2, 4, 3, 3),),
    ),
    **{
        f"InstanceNorm{n}d": Pair(
            lambda n=n: getattr(T, f"InstanceNorm{n}d")(4, affine=True),
            lambda n=n: getattr(P, f"InstanceNorm{n}D")(4),
            ((2, 4, *(3, 4, 5)[:n]),),
        )
        for n in (1, 2, 3)
    },
    "Conv1d": Pair(lambda: T.Conv1d(4, 4, 4), lambda: P.Conv1D(4, 4, 4), ((2, 4, 7),)),
    "Conv2d in groups": Pair(lambda: T.Conv2d(4, 6, 3, groups=2), lambda: P.Conv2D(4, 6, 3, groups=2), ((2, 4, 5, 5),)),
    "Conv2d without bias": Pair(
        lambda: T.Conv2d(3, 3, 3, bias=False), lambda: P.Conv2D(3, 3, 3, bias_attr=False), ((2, 3, 5, 5),)
    ),
    "Conv3d": Pair(lambda: T.Conv3d(2, 2, 2), lambda: P.Conv3D(2, 2, 2), ((1, 2, 3, 3, 3),)),
    "ConvTranspose1d": Pair(lambda: T.ConvTranspose1d(3, 3, 3), lambda: P.Conv1DTranspose(3, 3, 3), ((2, 3, 5),)),
    "ConvTranspose2d": Pair(
        lambda: T.ConvTranspose2d(4, 4, 3, groups=2, stride=2),
        lambda: P.Conv2DTranspose(4, 4, 3, groups=2, stride=2),
        ((2, 4, 3, 3),),
    ),
    "ConvTranspose3d": Pair(lambda: T.ConvTranspose3d(2, 2, 2), lambda: P.Conv3DTranspose(2, 2, 2), ((1, 2, 3, 3, 3),)),
    "PReLU": Pair(lambda: T.PReLU(4), lambda: P.PReLU(4), ((3, 4),)),
    "Bilinear": Pair(lambda: T.Bilinear(3, 4, 5), lambda: P.Bilinear(3, 4, 5), ((2, 3), (2, 4))),
    "Bilinear without bias": Pair(
        lambda: T.Bilinear(4, 4, 4, bias=False), lambda: P.Bilinear(4, 4, 4, bias_attr=False), ((2, 4), (2, 4))
    ),
    **dict(recurrent("LSTM", "LSTM")),
    **dict(recurrent("GRU", "GRU")),
    **dict(recurrent("RNN", "SimpleRNN")),
    "RNN of ReLU": Pair(
        lambda: T.RNN(4, 3, nonlinearity="relu", batch_first=True),
        lambda: P.SimpleRNN(4, 3, activation="relu"),
        SEQUENCE,
        aliases=4,
    ),
    "LSTM without biases": without_biases(1),
    "LSTM with a projection": projected(1, False),
    "LSTM with a projection, 2 layers": projected(2, False),
    "LSTM with a projection, 2 layers, bidirect": projected(2, True),
    **{
        f"{kind}{said}": Pair(
            lambda kind=kind, more=more: getattr(T, kind)(4, 3, **more),
            lambda their=their, theirs=theirs: getattr(P, their)(4, 3, **theirs),
            ((2, 4),),
        )
        for kind, their in (("LSTMCell", "LSTMCell"), ("GRUCell", "GRUCell"), ("RNNCell", "SimpleRNNCell"))
        for said, more, theirs in (
            ("", {}, {}),
            (" without biases", {"bias": False}, {"bias_ih_attr": False, "bias_hh_attr": False}),
        )
    },
    "MultiheadAttention": Pair(
        lambda: T.MultiheadAttention(8, 2, batch_first=True), lambda: P.MultiHeadAttention(8, 2), QKV, 4, parts=6
    ),
    "MultiheadAttention without bias": Pair(
        lambda: T.MultiheadAttention(8, 2, bias=False, batch_first=True),
        lambda: P.MultiHeadAttention(8, 2, bias_attr=False),
        QKV,
        4,
        parts=3,
    ),
    "MultiheadAttention of other widths": Pair(
        lambda: T.MultiheadAttention(8, 2, kdim=3, vdim=6, batch_first=True),
        lambda: P.MultiHeadAttention(8, 2, kdim=3, vdim=6),
        OTHER_WIDTHS,
        4,
        parts=3,
    ),
    "compat.MultiheadAttention": Pair(
        lambda: T.MultiheadAttention(8, 2), lambda: paddle.compat.nn.MultiheadAttention(8, 2), ((3, 2, 8),) * 3
    ),
    "compat.MultiheadAttention, batch first, with a bias of keys and values": Pair(
        lambda: T.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
        lambda: paddle.compat.nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
        QKV,
    ),
    "compat.MultiheadAttention of other widths": Pair(
        lambda: T.MultiheadAttention(8, 2, kdim=3, vdim=6, batch_first=True),
        lambda: paddle.compat.nn.MultiheadAttention(8, 2, kdim=3, vdim=6, batch_first=True),
        OTHER_WIDTHS,
        parts=3,
    ),
    "TransformerEncoderLayer": Pair(
        lambda: T.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True),
        lambda: P.TransformerEncoderLayer(8, 2, 6, dropout=0.0),
        ((2, 5, 8),),
        6,
        parts=6,
    ),
    "TransformerEncoderLayer, norm first": Pair(
        lambda: T.TransformerEncoderLayer(8, 2, 6, 0.0, "gelu", norm_first=True, batch_first=True),
        lambda: P.TransformerEncoderLayer(8, 2, 6, 0.0, "gelu", normalize_before=True),
        ((2, 5, 8),),
        6,
        parts=6,
    ),
    "TransformerEncoder": Pair(
        lambda: T.TransformerEncoder(
            T.TransformerEncoderLayer(8, 2, 6, 0.0, batch_first=True), 2, T.LayerNorm(8), enable_nested_tensor=False
        ),
        lambda: P.TransformerEncoder(P.TransformerEncoderLayer(8, 2, 6, 0.0), 2, P.LayerNorm(8)),
        ((2, 5, 8),),
        12,
        parts=12,
    ),
    "TransformerDecoderLayer": Pair(
        lambda: T.TransformerDecoderLayer(8, 2, 6, dropout=0.0, batch_first=True),
        lambda: P.TransformerDecoderLayer(8, 2, 6, dropout=0.0),
        ((2, 5, 8), (2, 3, 8)),
        10,
        parts=12,
    ),
    "Transformer": Pair(
        lambda: T.Transformer(8, 2, 1, 2, 6, 0.0, batch_first=True),
        lambda: P.Transformer(8, 2, 1, 2, 6, 0.0),
        ((2, 5, 8), (2, 3, 8)),
        26,
        parts=30,
    ),
}


@pytest.mark.parametrize("name", list(PAIRS))
def test_both_layers_are_one_function_of_the_same_weights(name: str) -> None:
    pair, rng = PAIRS[name], np.random.default_rng(3)
    # Within a model of one's own, so that every name has a path.
    reference = REFERENCE.cast(T.Sequential(pair.reference()).eval(), "float64")
    candidate = P.Sequential(pair.candidate())
    candidate.eval()
    candidate = CANDIDATE.cast(candidate, "float64")
    state = {key: drawn(key, array, rng) for key, array in REFERENCE.read_state(reference).items()}
    slots = REFERENCE.slots(reference), CANDIDATE.slots(candidate)
    layout = plan(*slots, "torch", "paddle")
    given, proof = convert_proved(state, layout)
    assert (proof.transposed, proof.parts, proof.tied) == (pair.transposed, pair.parts, pair.aliases)
    assert set(given) == {slot.name for slot in slots[1]}

    REFERENCE.load_state(reference, state)
    CANDIDATE.load_state(candidate, given)
    inputs = [rng.integers(0, 4, s) if pair.ids else rng.standard_normal(s) for s in pair.shapes]
    ours, our_gradients = run_torch(reference, inputs)
    theirs, their_gradients = run_paddle(candidate, inputs)
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        close(one, two, "output")
    for index, array in enumerate(inputs):
        if array.dtype.kind == "f":
            close(our_gradients[f"input {index}"], their_gradients[f"input {index}"], f"gradient of input {index}")
    # The gradient of a parameter goes the way of the parameter.
    trained = split({key: g for key, g in our_gradients.items() if not key.startswith("input")}, layout)
    moves = {move.label: move for move in layout.moves}
    assert set(trained) == {s.name for s in split_slots(slots[0], layout) if s.role == "parameter"}
    for label, gradient in trained.items():
        close(gradient, undo(their_gradients[moves[label].target], moves[label]), f"gradient of {label}")

    there_and_back(layout, plan(slots[1], slots[0], "paddle", "torch"), state, CANDIDATE.read_state(candidate))


def there_and_back(
    layout: Layout, planned_back: Layout, state: dict[str, np.ndarray], held: dict[str, np.ndarray]
) -> None:
    """What the candidate holds, moved back, is the reference's bit for bit; but for what it had no place for."""
    back = reverse(layout)
    assert set(planned_back.moves) == set(back.moves)
    assert (planned_back.filled, planned_back.dropped) == (layout.dropped, layout.filled)
    for way in (back, planned_back):
        returned = convert(held, way)
        assert set(returned) == set(state)
        for key, array in state.items():
            wanted = np.zeros_like(array) if key.endswith("num_batches_tracked") else array
            assert (returned[key].dtype, returned[key].tobytes()) == (wanted.dtype, wanted.tobytes()), key
    # What is split is joined, on either side.
    for tensors, way in ((state, layout), (held, back)):
        joined = join(split(tensors, way), way)
        assert {key: value.tobytes() for key, value in joined.items()} == {k: v.tobytes() for k, v in tensors.items()}


def drawn(name: str, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype.kind == "i":
        return np.full_like(array, 7)
    return 0.5 + rng.random(array.shape) if name.endswith("_var") else 0.5 * rng.standard_normal(array.shape)


def seeds(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    return [np.random.default_rng(5 + index).standard_normal(shape) for index, shape in enumerate(shapes)]


def flat(values: Any) -> list[Any]:
    """Every tensor of an output, less what attention says of its weights."""
    if isinstance(values, (tuple, list)):
        return [tensor for value in values for tensor in flat(value)]
    return [] if values is None else [values]


def run_torch(model: Any, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    given = [torch.from_numpy(array) for array in inputs]
    floating = {f"input {i}": tensor.requires_grad_() for i, tensor in enumerate(given) if tensor.is_floating_point()}
    more = {"need_weights": False} if isinstance(model[0], T.MultiheadAttention) else {}
    outputs = flat(model[0](*given, **more))
    loss = sum((o * torch.from_numpy(s)).sum() for o, s in zip(outputs, seeds([o.shape for o in outputs]), strict=True))
    loss.backward()
    gradients = {key: tensor.grad.numpy() for key, tensor in (floating | dict(model.named_parameters())).items()}
    return [output.detach().numpy() for output in outputs], gradients


def run_paddle(model: Any, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    given = [paddle.to_tensor(array) for array in inputs]
    floating = {f"input {i}": tensor for i, tensor in enumerate(given) if tensor.is_floating_point()}
    for tensor in floating.values():
        tensor.stop_gradient = False
    more = {"need_weights": False} if isinstance(model[0], paddle.compat.nn.MultiheadAttention) else {}
    if isinstance(model[0], P.layer.rnn.RNNBase):
        model[0].training = True  # in evaluation mode its kernel has no gradient; there is no dropout
    outputs = model[0](*given, **more)
    # A cell gives what it hands on, and beside it the output once more.
    outputs = flat(outputs[1] if isinstance(model[0], P.RNNCellBase) else outputs)
    weights = seeds([tuple(output.shape) for output in outputs])
    sum((o * paddle.to_tensor(s)).sum() for o, s in zip(outputs, weights, strict=True)).backward()
    named = {key: tensor for key, tensor in model.named_parameters() if not tensor.stop_gradient}
    return [o.numpy() for o in outputs], {key: tensor.grad.numpy() for key, tensor in (floating | named).items()}


def close(one: np.ndarray, two: np.ndarray, what: str) -> None:
    assert one.shape == two.shape, what
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-10 * max(1.0, np.abs(one).max()), err_msg=what)


# ---- checkpoints of these layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["LSTM, 2 layers, bidirect", "MultiheadAttention", "GRUCell without biases", "Transformer"]
)
def test_a_checkpoint_goes_there_and_back_on_the_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = PAIRS[name]
    module = types.ModuleType("checkpoints_test_layers")
    module.reference = lambda: T.Sequential(pair.reference())  # type: ignore[attr-defined]
    module.candidate = lambda: P.Sequential(pair.candidate())  # type: ignore[attr-defined]
    sides = (Side("torch", f"{module.__name__}:reference"), Side("paddle", f"{module.__name__}:candidate"))
    spec = InputSpec({"x": Floats(("B", 4))}, max_length=1)
    module.twin = Twin("layers", "", *sides, {}, lambda _: spec)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    twin = f"{module.__name__}:twin"

    state = REFERENCE.read_state(module.reference())
    there, away, back, again = (tmp_path / file for file in ("a.pth", "b.pdparams", "c.pth", "d.pth"))
    write(there, state)
    layout = tmp_path / "layout.json"
    assert run(["convert", str(there), str(away), "--twin", twin, "--save-layout", str(layout)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"live models\s+hold equal tensors, bit for bit", said)
    assert bool(re.search(rf"parts of packed tensors\s+{pair.parts}\s*$", said, re.MULTILINE)) == bool(pair.parts)
    assert bool(re.search(rf"further names of tied tensors\s+{pair.aliases}\s*$", said, re.MULTILINE)) == bool(
        pair.aliases
    )
    # Paddle's own loader takes it, and misses nothing.
    model = module.candidate()
    assert model.set_state_dict(paddle.load(str(away))) == ([], [])
    assert run(["convert", str(away), str(back), "--twin", twin]) == 0
    assert run(["convert", str(away), str(again), "--layout", str(layout)]) == 0
    for file in (back, again):
        found = read(file)
        assert {key: array.tobytes() for key, array in found.items()} == {k: a.tobytes() for k, a in state.items()}


def test_a_layer_whose_kernel_ends_the_process_is_not_run() -> None:
    class Net(P.Layer):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = P.LSTM(4, 3, bias_ih_attr=False, bias_hh_attr=False)

    with pytest.raises(AlignmentError, match=r"lstm: Paddle's kernel of an LSTM without biases ends the process; keep"):
        CANDIDATE.run(Net(), Batch("x", {"x": np.zeros((2, 3, 4), np.float32)}, None), loss="model")
