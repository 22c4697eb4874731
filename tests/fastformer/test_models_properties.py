"""What must hold whatever the weights: padding, exact zeros, initial values, dtypes, modes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import paddle
import pytest
import torch

import fastformer_paddle
import fastformer_torch

from . import helpers

SMALL: dict[str, dict[str, Any]] = {
    "FastformerClassifier": {
        "vocab_size": 30,
        "num_classes": 4,
        "hidden_size": 12,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "max_position_embeddings": 16,
    },
    "FastTransformer": {"num_tokens": 30, "dim": 12, "depth": 2, "max_seq_len": 16, "heads": 3, "dim_head": 8},
    "FastTransformerClassifier": {
        "num_classes": 4,
        "num_tokens": 30,
        "dim": 12,
        "depth": 2,
        "max_seq_len": 16,
        "heads": 3,
        "dim_head": 4,
        "absolute_pos_emb": True,
    },
    "FastformerTextClassifier": {"vocab_size": 30, "num_classes": 4, "embed": 12, "num_attention_heads": 3},
}
MASKED = ("FastTransformer", "FastformerTextClassifier")
both = pytest.mark.parametrize("framework", helpers.FRAMEWORKS)
every = pytest.mark.parametrize("name", SMALL)


def randomise(framework: str, model: Any, seed: int = 0) -> None:
    """Every parameter random and large enough for the attention to matter, the same in both frameworks."""
    generator = np.random.default_rng(seed)
    reference = helpers.build("torch", type(model).__name__, **SMALL[type(model).__name__])
    leaves = dict(reference.named_parameters())
    drawn = {name: generator.normal(0, 0.5, tuple(p.shape)).astype(np.float32) for name, p in leaves.items()}
    owners = {name: next((n for n, p in leaves.items() if p is q), None) for name, q in tied(reference).items()}
    helpers.load(
        framework,
        model,
        {n: drawn[owners[n]] if owners.get(n) else v.numpy() for n, v in reference.state_dict().items()},
    )


def tied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def random_model(framework: str, name: str, dtype: str = "float64", **settings: Any) -> Any:
    model = helpers.build(framework, name, **(SMALL[name] | settings))
    randomise(framework, model)
    return helpers.cast(framework, model, dtype)


def batch(name: str, lengths: list[int], length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    mask = np.arange(length) < np.array(lengths)[:, None]
    ids = np.where(mask, generator.integers(1, 29, (len(lengths), 16))[:, :length], 29 if "Text" in name else 0)
    return {"in.input_ids": ids, "in.mask": mask}


def forward(framework: str, model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    arguments = [helpers.tensor(framework, inputs["in.input_ids"])]
    if type(model).__name__ in MASKED:
        arguments.append(helpers.tensor(framework, inputs["in.mask"]))
    return helpers.array(model(*arguments))


def training_step(framework: str, model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids = inputs["in.input_ids"]
    targets = (
        np.arange(ids.size).reshape(ids.shape) % 30
        if type(model).__name__ == "FastTransformer"
        else np.arange(len(ids)) % 4
    )
    return helpers.step(framework, model, inputs | {"in.target": targets})


# Padding


@both
@every
def test_more_padding_changes_nothing_but_in_the_unmasked_pooler(framework: str, name: str) -> None:
    model = random_model(framework, name)
    short = forward(framework, model, batch(name, [5, 3, 1], 5))
    long = forward(framework, model, batch(name, [5, 3, 1], 11))
    if name == "FastTransformer":
        long, short = long[0, :5], short[0]
    difference = np.abs(long - short).max()
    if name == "FastTransformerClassifier":
        assert difference > 1e-3
    else:
        assert difference < 1e-12


@both
@pytest.mark.parametrize("name", ["FastformerClassifier", "FastformerTextClassifier"])
def test_a_wholly_padded_row_gives_the_final_bias(framework: str, name: str) -> None:
    model = random_model(framework, name)
    results = training_step(framework, model, batch(name, [0, 7], 7))
    last = model.dense_linear if name == "FastformerClassifier" else model.fc
    assert np.array_equal(results["out.logits"][0], helpers.array(last.bias))
    assert all(np.isfinite(value).all() for value in results.values())


@both
@pytest.mark.parametrize("absolute", [True, False])
def test_a_wholly_masked_row_attends_evenly(framework: str, absolute: bool) -> None:
    model = helpers.build(framework, "FastTransformer", **(SMALL["FastTransformer"] | {"absolute_pos_emb": absolute}))
    weights: list[np.ndarray] = []

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        weights.append(helpers.array(output))

    softmax = model.layers[1][0].fn.softmax
    (softmax.register_forward_hook if framework == "torch" else softmax.register_forward_post_hook)(record)
    results = training_step(framework, model, batch("FastTransformer", [0, 4], 7))
    assert len(weights) == 2
    for value in weights:
        assert value.shape == (2, 3, 7)
        assert np.abs(value[0] - 1 / 7).max() < 1e-7
        assert value[1, :, 4:].max() < 1e-27
    assert all(np.isfinite(value).all() for value in results.values())


@both
def test_without_a_mask_nothing_is_masked(framework: str) -> None:
    model = random_model(framework, "FastTransformer")
    inputs = batch("FastTransformer", [7, 3], 7)
    ids = helpers.tensor(framework, inputs["in.input_ids"])
    full = forward(framework, model, inputs | {"in.mask": np.ones((2, 7), bool)})
    assert np.array_equal(helpers.array(model(ids)), full)
    assert not np.array_equal(forward(framework, model, inputs), full)


# Gradients


@both
@pytest.mark.parametrize("name", ["FastformerClassifier", "FastformerTextClassifier"])
def test_a_shift_before_the_softmax_has_no_gradient(framework: str, name: str) -> None:
    results = training_step(framework, random_model(framework, name), batch(name, [9, 4, 1], 9))
    largest = max(np.abs(value).max() for key, value in results.items() if key.startswith("grad."))
    zeros = [key for key in results if key.endswith(("query_att.bias", "key_att.bias"))]
    assert len(zeros) == (4 if name == "FastformerClassifier" else 2)
    assert max(np.abs(results[key]).max() for key in zeros) < 1e-14 * largest


@both
@pytest.mark.parametrize("name", ["FastformerClassifier", "FastformerTextClassifier"])
def test_the_padding_row_is_output_as_stored_but_never_trains(framework: str, name: str) -> None:
    model = random_model(framework, name)
    table = model.word_embedding if name == "FastformerClassifier" else model.embedding
    row = 0 if name == "FastformerClassifier" else 29
    ids = np.array([[row, 3, row]])
    stored = helpers.array(table.weight)
    assert np.abs(stored[row]).min() > 0
    assert np.array_equal(helpers.array(table(helpers.tensor(framework, ids))), stored[ids])

    results = training_step(framework, model, batch(name, [9, 4], 9) | {"in.mask": np.ones((2, 9), bool)})
    gradient = results[f"grad.{'word_embedding' if name == 'FastformerClassifier' else 'embedding'}.weight"]
    assert np.array_equal(gradient[row], np.zeros(12))
    assert np.abs(gradient).max() > 0

    again = copy.deepcopy(model)  # what keeps the row from training is not lost with a copy
    (again.zero_grad if framework == "torch" else again.clear_gradients)()
    results = training_step(framework, again, batch(name, [9, 4], 9))
    assert not any(value[row].any() for key, value in results.items() if key.endswith("embedding.weight"))


@both
def test_token_zero_is_an_ordinary_one_for_the_community_models(framework: str) -> None:
    for name in ("FastTransformer", "FastTransformerClassifier"):
        results = training_step(framework, random_model(framework, name), batch(name, [9, 4], 9))
        gradient = next(value for key, value in results.items() if key.endswith("token_emb.weight"))
        assert np.abs(gradient[0]).max() > 1e-9


@both
@pytest.mark.parametrize("name", ["FastTransformer", "FastTransformerClassifier"])
def test_all_layers_share_one_pair_of_attention_vectors(framework: str, name: str) -> None:
    model = random_model(framework, name)
    prefix = "" if name == "FastTransformer" else "fastformer_model."
    state, trained = helpers.state(framework, model), dict(model.named_parameters())
    for kind in ("to_q_attn_logits", "to_k_attn_logits"):
        first, second = (f"{prefix}layers.{layer}.0.fn.{kind}.weight" for layer in (0, 1))
        assert np.array_equal(state[first], state[second])
        assert first in trained
        assert second not in trained
    layers = model.layers if name == "FastTransformer" else model.fastformer_model.layers
    assert layers[0][0].fn.to_q_attn_logits is layers[1][0].fn.to_q_attn_logits


# Initial values


@both
def test_initial_values_of_the_published_model(framework: str) -> None:
    settings = {"vocab_size": 800, "num_classes": 5, "hidden_size": 128, "initializer_range": 0.05}
    state = helpers.state(framework, helpers.build(framework, "FastformerClassifier", **settings))
    assert not state["word_embedding.weight"][0].any()
    for name, value in state.items():
        if "LayerNorm" in name:
            assert np.array_equal(value, np.full_like(value, name.endswith("weight"))), name
        elif name.endswith("bias"):
            assert not value.any(), name
        elif value.size > 10_000:
            rest = value[1:] if name == "word_embedding.weight" else value
            assert abs(rest.std() / 0.05 - 1) < 0.05, name
            assert abs(np.mean(np.abs(rest) < 0.01) - 0.1585) < 0.02, name  # within 0.2 deviations: uniform gives 0.115


@both
def test_initial_values_of_the_community_model(framework: str) -> None:
    settings = {"num_tokens": 900, "dim": 48, "depth": 1, "max_seq_len": 300, "heads": 4, "dim_head": 32}
    state = helpers.state(framework, helpers.build(framework, "FastTransformer", **settings, absolute_pos_emb=True))
    model = helpers.build(framework, "FastTransformer", **settings, absolute_pos_emb=True)
    for name, value in state.items():
        if "emb" in name:
            assert abs(value.std() - 1) < 0.03, name
            assert np.abs(value).max() > 3, name
        elif not name.split(".")[-2].endswith("norm") and not name.startswith("to_logits.0"):
            weight = state[name.rpartition(".")[0] + ".weight"]
            bound = weight.shape[1] ** -0.5
            assert helpers.is_linear(model, name) or name.endswith("bias")
            assert np.abs(value).max() <= bound * (1 + 1e-6), name
            if value.size > 100:
                assert np.abs(value).max() > 0.93 * bound, name
                assert abs(value.std() * 3**0.5 / bound - 1) < 0.15, name


@both
def test_initial_values_of_the_text_model(framework: str) -> None:
    state = helpers.state(
        framework, helpers.build(framework, "FastformerTextClassifier", vocab_size=900, num_classes=9, embed=96)
    )
    assert not state["embedding.weight"][-1].any()
    assert abs(state["embedding.weight"][:-1].std() - 1) < 0.03
    assert abs(state["query.weight"].std() / 0.02 - 1) < 0.05
    assert not any(value.any() for name, value in state.items() if name.endswith("bias"))


@both
@pytest.mark.parametrize("dim_head", [4, 8, 12, 32, 48, 64, 96, 128])
def test_rotary_frequencies_are_those_of_float32(framework: str, dim_head: int) -> None:
    model = helpers.build(framework, "FastTransformer", **(SMALL["FastTransformer"] | {"dim_head": dim_head}))
    r = dim_head // 2
    expected = (1.0 / (10000 ** (torch.arange(0, r, 2).float() / r))).numpy()
    for layer in (0, 1):
        freqs = helpers.state(framework, model)[f"layers.{layer}.0.fn.pos_emb.freqs"]
        assert freqs.dtype == np.float32
        assert np.array_equal(freqs, expected)
    widened = helpers.state(framework, helpers.cast(framework, model, "float64"))["layers.0.0.fn.pos_emb.freqs"]
    assert widened.dtype == np.float64
    assert np.array_equal(widened, expected.astype(np.float64))


@both
def test_rotary_frequencies_are_used_as_loaded(framework: str) -> None:
    model = random_model(framework, "FastTransformer")
    inputs = batch("FastTransformer", [9, 5], 9)
    before = forward(framework, model, inputs)
    state = {n: v * 2 if n == "layers.1.0.fn.pos_emb.freqs" else v for n, v in helpers.state(framework, model).items()}
    helpers.load(framework, model, state)
    assert np.abs(forward(framework, model, inputs) - before).max() > 1e-3


@both
def test_pretrained_vectors_train_every_row(framework: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 12))
    settings = SMALL["FastformerTextClassifier"] | {"embeddings": vectors}
    model = helpers.build(framework, "FastformerTextClassifier", **settings)
    assert np.array_equal(helpers.array(model.embedding.weight), vectors.astype(np.float32))
    results = training_step(framework, model, {"in.input_ids": np.array([[29, 3]]), "in.mask": np.ones((1, 2), bool)})
    assert results["grad.embedding.weight"][29].any()
    assert list(helpers.state(framework, model)) == list(
        helpers.state(
            framework, helpers.build(framework, "FastformerTextClassifier", **SMALL["FastformerTextClassifier"])
        )
    )


# Dtypes, modes, sizes


@both
@every
def test_built_in_float64_is_the_same_as_cast_to_it(framework: str, name: str) -> None:
    package = {"torch": torch, "paddle": paddle}[framework]
    was = package.get_default_dtype()
    package.set_default_dtype(torch.float64 if framework == "torch" else "float64")
    try:
        model = helpers.build(framework, name, "float64", **SMALL[name])
        randomise(framework, model)
        results = training_step(framework, model, batch(name, [9, 4], 9))
    finally:
        package.set_default_dtype(was)
    expected = training_step(framework, random_model(framework, name), batch(name, [9, 4], 9))
    for key, value in expected.items():
        assert results[key].dtype == np.float64, key
        assert np.allclose(results[key], value, rtol=1e-13, atol=1e-13), key


@both
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every
def test_half_precision_is_close(name: str, dtype: str, framework: str) -> None:
    inputs = batch(name, [9, 4], 9)
    truth = forward("torch", random_model("torch", name), inputs)
    model = random_model(framework, name, dtype)
    assert {str(parameter.dtype).split(".")[-1] for parameter in model.parameters()} == {dtype}
    if framework == "paddle":
        try:
            paddle.ones([2, 2], dtype) @ paddle.ones([2, 2], dtype)
        except RuntimeError:
            pytest.skip(f"this Paddle has no {dtype} matrix product")
    results = training_step(framework, model, inputs)
    assert np.abs(results["out.logits"] - truth).max() < (0.05 if dtype == "bfloat16" else 0.005) * np.abs(truth).max()
    assert all(np.isfinite(value).all() for value in results.values())


@both
def test_the_loss_has_no_floor(framework: str) -> None:
    """Paddle's own cross entropy takes no probability to be below exp(-64) on a CPU."""
    model = random_model(framework, "FastformerTextClassifier")
    logits = np.array([[0.0, 300.0, -500.0, 2.0], [1.0, 0.0, 0.0, 0.0]])
    loss = model.criterion(helpers.tensor(framework, logits), helpers.tensor(framework, np.array([2, 0])))
    assert abs(float(loss) - (800 + np.log1p(3 * np.exp(-1))) / 2) < 1e-12


@both
@every
def test_dropout_acts_in_training_only(framework: str, name: str) -> None:
    settings = {} if name == "FastTransformer" else {"dropout": 0.5}
    model = random_model(framework, name, **settings)
    inputs = batch(name, [9, 4], 9)
    assert np.array_equal(forward(framework, model, inputs), forward(framework, model, inputs))
    model.train()
    repeated = np.array_equal(forward(framework, model, inputs), forward(framework, model, inputs))
    assert repeated == (name == "FastTransformer")  # it has none


@both
@every
def test_one_token_and_one_row_are_enough(framework: str, name: str) -> None:
    results = training_step(framework, random_model(framework, name), batch(name, [1], 1))
    assert all(np.isfinite(value).all() for value in results.values())


@both
@every
def test_an_empty_batch_has_empty_logits(framework: str, name: str) -> None:
    logits = forward(
        framework,
        random_model(framework, name),
        batch(name, [1], 5) | {"in.input_ids": np.zeros((0, 5), np.int64), "in.mask": np.zeros((0, 5), bool)},
    )
    assert logits.shape == ((0, 5, 30) if name == "FastTransformer" else (0, 4))


@both
def test_another_pooler_can_be_asked_for(framework: str) -> None:
    model = helpers.build(framework, "FastformerClassifier", **(SMALL["FastformerClassifier"] | {"pooler_count": 2}))
    ids = helpers.tensor(framework, batch("FastformerClassifier", [9, 4], 9)["in.input_ids"])
    words = model.word_embedding(ids)
    first, second = (helpers.array(model.fastformer_model(words, ids != 0, index)) for index in (0, 1))
    assert first.shape == (2, 12)
    assert not np.array_equal(first, second)
    assert np.array_equal(helpers.array(model.fastformer_model(words, ids != 0)), first)


@every
def test_twins_have_the_same_names_in_the_same_order(name: str) -> None:
    one, two = (helpers.build(framework, name, **SMALL[name]) for framework in helpers.FRAMEWORKS)
    assert [n for n, _ in one.named_parameters()] == [n for n, _ in two.named_parameters()]
    assert list(one.state_dict()) == list(two.state_dict())
    assert fastformer_torch.__all__ == fastformer_paddle.__all__


# Devices


@pytest.mark.parametrize("framework", helpers.FRAMEWORKS)
@every
def test_on_an_accelerator(framework: str, name: str) -> None:
    there = torch.cuda.is_available() if framework == "torch" else paddle.device.cuda.device_count() > 0
    if not there:
        pytest.skip(f"{framework} sees no accelerator")
    inputs = batch(name, [9, 4, 0], 9)
    expected = forward(framework, random_model(framework, name), inputs)
    if framework == "torch":
        model = random_model(framework, name).to("cuda")
        arguments = [torch.tensor(inputs["in.input_ids"]).cuda(), torch.tensor(inputs["in.mask"]).cuda()]
    else:
        paddle.set_device("gpu")
        model = random_model(framework, name)
        arguments = [paddle.to_tensor(inputs["in.input_ids"]), paddle.to_tensor(inputs["in.mask"])]
    try:
        logits = model(*arguments[: 2 if name in MASKED else 1])
        assert np.abs(logits.detach().cpu().numpy() - expected).max() < 1e-10
        arguments[0] = arguments[0] + 100
        model.check_ranges = True
        with pytest.raises(ValueError, match="allowed are 0 to 29"):
            model(*arguments[: 2 if name in MASKED else 1])
    finally:
        if framework == "paddle":
            paddle.set_device("cpu")


def test_the_loss_of_a_confident_prediction_keeps_its_digits() -> None:
    from fastformer_paddle._layers import CrossEntropyLoss

    for logits in ([100.0, 90.0], [20.0, 8.0], [1000.0, 990.0], [12.0, 2.0, 1.0]):
        ours = torch.nn.CrossEntropyLoss()(torch.tensor([logits]), torch.tensor([0])).item()
        theirs = CrossEntropyLoss()(paddle.to_tensor([logits]), paddle.to_tensor([0])).item()
        assert theirs == pytest.approx(ours, rel=1e-5)


def test_a_compiled_paddle_model_gives_the_same_and_keeps_its_padding_row() -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 16, "max_position_embeddings": 12}
    model = fastformer_paddle.FastformerClassifier(vocab_size=30, num_classes=5, dropout=0.0, **sizes)
    ids = paddle.to_tensor([[3, 4, 5, 0], [7, 8, 0, 0]])
    expected = model(ids)
    compiled = paddle.jit.to_static(model, full_graph=True)
    assert float((compiled(ids) - expected).abs().max()) < 1e-6
    compiled(ids).sum().backward()
    gradient = model.word_embedding.weight.grad
    assert float(gradient.abs().max()) > 0
    assert float(gradient[0].abs().max()) == 0


def test_the_torch_model_can_be_exported() -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 16, "max_position_embeddings": 12}
    model = fastformer_torch.FastformerClassifier(vocab_size=30, num_classes=5, **sizes).eval()
    ids = torch.tensor([[3, 4, 5, 0]])
    assert torch.equal(torch.export.export(model, (ids,)).module()(ids), model(ids))


def test_the_encoder_called_by_itself_checks_what_it_is_given() -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 16, "max_position_embeddings": 6}
    messages = []
    for package, zeros in ((fastformer_torch, torch.zeros), (fastformer_paddle, paddle.zeros)):
        encoder = package.FastformerClassifier(vocab_size=30, num_classes=5, **sizes).fastformer_model
        for embeddings, mask in (((2, 7, 16), (2, 7)), ((2, 4, 16), (1, 1))):
            with pytest.raises(ValueError, match="allowed") as error:
                encoder(zeros(embeddings), zeros(mask))
            messages.append(str(error.value))
    assert messages[:2] == messages[2:]
