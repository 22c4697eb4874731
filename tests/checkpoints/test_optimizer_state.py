"""The state of an optimizer goes to the other framework with the weights, in memory and by files, and training goes on."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment import AlignmentError
from alignment.cli import run
from alignment.conversion import join_models
from alignment.frameworks import get_framework, get_trainer
from alignment.training.recipe import Clip, Group, Optimizer, Recipe, Schedule
from alignment.training.state import converted
from checkpoints import CheckpointError, convert, plan, write
from checkpoints.optimizer import (
    OptimizerState,
    convert_optimizer,
    paddle_names,
    read_paddle_optimizer,
    read_torch_optimizer,
    write_torch_optimizer,
)
from fake_data import Batch

torch = pytest.importorskip("torch")
paddle = pytest.importorskip("paddle")

RECIPES = {
    "sgd": Recipe(Optimizer("sgd", 0.1, weight_decay=0.01)),
    "momentum": Recipe(Optimizer("sgd", 0.1, momentum=0.9, nesterov=True), Schedule("cosine", {"T_max": 15})),
    "adam": Recipe(
        Optimizer("adam", 0.01, weight_decay=0.1), Schedule("warmup", {"total_iters": 14}), Clip("norm", 0.05)
    ),
    "amsgrad": Recipe(Optimizer("adam", 0.01, amsgrad=True), Schedule("onecycle", {"total_steps": 20})),
    "adamw": Recipe(
        Optimizer("adamw", 0.01, weight_decay=0.1),
        Schedule("step", {"step_size": 7}),
        Clip("global norm", 0.1),
        (Group("*.bias", 2.0, 0.0),),
    ),
}


def batches(count: int) -> list[Batch]:
    random = np.random.default_rng(0)
    return [
        Batch("b", {"x": random.normal(size=(6, 3)).astype(np.float32)}, random.integers(0, 4, 6)) for _ in range(count)
    ]


def built(name: str, dtype: str = "float64") -> Any:
    nn = {"torch": torch, "paddle": paddle}[name].nn
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.3), nn.LayerNorm(5), nn.Linear(5, 4))
    framework = get_framework(name)
    return framework.cast(framework.build(model, {}), dtype)


def trainer(name: str, recipe: Recipe, dtype: str, **options: Any) -> Any:
    return get_trainer(
        name,
        built(name, dtype),
        recipe,
        loss=(torch if name == "torch" else paddle).nn.functional.cross_entropy,
        **options,
    )


def layout(one: str, two: str, dtype: str) -> Any:
    return plan(*(get_framework(name).slots(built(name, dtype)) for name in (one, two)), one, two)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("dropout", [None, 5])
@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize(("one", "two"), [("torch", "paddle"), ("paddle", "torch")])
def test_ten_steps_and_ten_in_the_other_framework_are_twenty(one, two, kind, dropout, dtype) -> None:
    first, whole = (trainer(one, RECIPES[kind], dtype, dropout=dropout) for _ in range(2))
    second, other = (trainer(two, RECIPES[kind], dtype, dropout=dropout) for _ in range(2))
    way = layout(one, two, dtype)
    whole.load_weights(first.weights())
    other.load_weights(convert(first.weights(), way))
    for batch in batches(10):
        first.step(batch)
    for batch in batches(20):
        whole.step(batch), other.step(batch)
    second.load_weights(convert(first.weights(), way))
    second.load_state(converted(first.state(), way))
    for number, batch in enumerate(batches(20)[10:], 11):
        assert second.step(batch).number == number
    wanted = convert(whole.weights(), way)
    # In float32, what the two frameworks part by without any conversion.
    noise = max(np.abs(tensor - wanted[name]).max() for name, tensor in other.weights().items())
    tolerance = 1e-12 if dtype == "float64" else 4.0 * noise + 1e-7
    for name, tensor in second.weights().items():
        np.testing.assert_allclose(tensor, wanted[name], rtol=0.0, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(tensor, other.weights()[name], rtol=0.0, atol=tolerance, err_msg=name)
    assert tolerance < 1e-4
    state, end = second.state(), converted(whole.state(), way)
    assert (state.steps, state.updates) == (20, end.updates)
    assert state.schedule == pytest.approx(end.schedule, rel=1e-9)
    for slot, tensors in end.slots.items():
        for name, tensor in tensors.items():
            np.testing.assert_allclose(
                state.slots[slot][name], tensor, rtol=0, atol=tolerance * 10, err_msg=f"{slot} {name}"
            )


def test_a_plateau_goes_on_where_it_was() -> None:
    recipe = Recipe(Optimizer("sgd", 0.1), Schedule("plateau", {"patience": 1, "factor": 0.5, "cooldown": 1}))
    metrics = (1.0, 1.1, 0.9, 1.2, 1.3, 0.8, 1.4, 1.5, 1.6)
    for one, two in (("torch", "paddle"), ("paddle", "torch")):
        whole, first, second = (trainer(name, recipe, "float64") for name in (one, one, two))
        for metric in metrics:
            whole.end_epoch(metric)
        for metric in metrics[:4]:
            first.end_epoch(metric)
        second.load_state(first.state())
        for metric in metrics[4:]:
            second.end_epoch(metric)
        assert second.state().schedule == whole.state().schedule
        assert whole.state().schedule["rate"] < 0.1


def test_resuming_on_the_same_side_changes_no_bit() -> None:
    for name in ("torch", "paddle"):
        for kind, recipe in RECIPES.items():
            whole, first, second = (trainer(name, recipe, "float32", dropout=3) for _ in range(3))
            for each in (whole, second):
                each.load_weights(first.weights())
            for batch in batches(4):
                first.step(batch)
            second.load_weights(first.weights())
            second.load_state(first.state())
            for batch in batches(8):
                whole.step(batch)
            for batch in batches(8)[4:]:
                second.step(batch)
            for tensor, wanted in zip(second.weights().values(), whole.weights().values(), strict=True):
                assert tensor.tobytes() == wanted.tobytes(), (name, kind)


def test_a_state_of_other_parameters_says_so() -> None:
    one, two = (trainer(name, RECIPES["adam"], "float64") for name in ("torch", "paddle"))
    one.step(batches(1)[0])
    with pytest.raises(AlignmentError, match="convert it with the weights"):
        two.load_state(one.state())
    with pytest.raises(AlignmentError, match="convert it with the weights"):
        one.load_state(replace(one.state(), updates={"other": 1}))
    for name in ("torch", "paddle"):
        plain, same = trainer(name, RECIPES["sgd"], "float64"), trainer(name, RECIPES["adam"], "float64")
        same.step(batches(1)[0])
        with pytest.raises(AlignmentError, match="another optimizer"):
            plain.load_state(same.state())
    with pytest.raises(CheckpointError, match="does not move"):
        convert_optimizer(
            OptimizerState({"momentum": {"other": np.zeros(3)}}, {"other": 1}), layout("torch", "paddle", "float64")
        )


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ports(tmp_path, monkeypatch) -> Any:
    shutil.copy(Path(__file__).parents[1] / "alignment" / "attention_ports.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import attention_ports

    yield attention_ports
    sys.modules.pop("attention_ports", None)


def made(twin: Any, name: str, seed: int = 3) -> Any:
    """A model as a user's own process makes it."""
    side = twin.reference if name == "torch" else twin.candidate
    with paddle.utils.unique_name.guard():
        return get_framework(name).build(side.target, {**twin.settings, **side.settings}, seed)


def optimizer_of(name: str, model: Any, kind: str) -> Any:
    if name == "torch":
        chosen = {
            "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
            "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
            "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        }
    else:
        chosen = {
            "adam": lambda p: paddle.optimizer.Adam(0.01, parameters=p, weight_decay=0.1),
            "adamw": lambda p: paddle.optimizer.AdamW(0.01, parameters=p, weight_decay=0.1),
            "momentum": lambda p: paddle.optimizer.Momentum(0.01, 0.9, parameters=p),
        }
    with paddle.utils.unique_name.guard():
        return chosen[kind](model.parameters())


TOML = {
    "adam": '[optimizer]\nkind = "adam"\nlearning_rate = 0.01\nweight_decay = 0.1\n',
    "adamw": '[optimizer]\nkind = "adamw"\nlearning_rate = 0.01\nweight_decay = 0.1\n',
    "momentum": '[optimizer]\nkind = "sgd"\nlearning_rate = 0.01\nmomentum = 0.9\n',
}


def trained(name: str, model: Any, optimizer: Any, first: int, last: int) -> None:
    """A user's own loop."""
    random = np.random.default_rng(7)
    model.train()
    for number in range(last):
        ids = random.integers(0, 10, (3, 5))
        if number < first:
            continue
        out = model(torch.from_numpy(ids) if name == "torch" else paddle.to_tensor(ids))
        (out * out).mean().backward()
        optimizer.step()
        optimizer.zero_grad() if name == "torch" else optimizer.clear_grad()


def saved(name: str, model: Any, optimizer: Any, stem: str) -> None:
    if name == "torch":
        torch.save(model.state_dict(), f"{stem}.pth")
        torch.save(optimizer.state_dict(), f"{stem}_optimizer.pth")
    else:
        paddle.save(model.state_dict(), f"{stem}.pdparams")
        paddle.save(optimizer.state_dict(), f"{stem}.pdopt")


def loaded(name: str, model: Any, optimizer: Any, stem: str) -> None:
    if name == "torch":
        model.load_state_dict(torch.load(f"{stem}.pth", weights_only=True))
        optimizer.load_state_dict(torch.load(f"{stem}_optimizer.pth", weights_only=True))
    else:
        model.set_state_dict(paddle.load(f"{stem}.pdparams"))
        optimizer.set_state_dict(paddle.load(f"{stem}.pdopt"))


@pytest.mark.parametrize("kind", TOML)
@pytest.mark.parametrize(("one", "two"), [("torch", "paddle"), ("paddle", "torch")])
def test_a_users_own_training_goes_on_in_the_other_framework_by_files(ports, capsys, one, two, kind) -> None:
    """Packed attention in torch is three layers in Paddle, so that states are taken apart and put together."""
    twin = ports.other
    Path("recipe.toml").write_text(TOML[kind])
    model = made(twin, one)
    optimizer = optimizer_of(one, model, kind)
    trained(one, model, optimizer, 0, 10)
    saved(one, model, optimizer, "a")
    files = {"torch": ("pth", "_optimizer.pth"), "paddle": ("pdparams", ".pdopt")}
    arguments = ["convert", f"a.{files[one][0]}", f"b.{files[two][0]}", "--twin", "attention_ports:other"]
    arguments += ["--optimizer", f"a{files[one][1]}", f"b{files[two][1]}", "--recipe", "recipe.toml"]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert "10 updates" in shown or kind == "momentum"  # which is not counted
    assert "there and back bit-identical" in shown
    other = made(twin, two, seed=9)
    other_optimizer = optimizer_of(two, other, kind)
    with paddle.utils.unique_name.guard():
        loaded(two, other, other_optimizer, "b")
        trained(two, other, other_optimizer, 10, 20)
    trained(one, model, optimizer, 10, 20)
    way = join_models(twin, (one, two)).layout
    wanted = convert(get_framework(one).read_state(model), way)
    for name, tensor in get_framework(two).read_state(other).items():
        if "key.bias" in name or "in_proj_bias" in name:
            continue  # softmax does not see a key's bias: its gradient is rounding, of which Adam makes whole steps
        np.testing.assert_allclose(tensor, wanted[name], rtol=0.0, atol=5e-6, err_msg=name)
    # And back: the same state as the file that it was made from.
    back = ["convert", f"b.{files[two][0]}", f"c.{files[one][0]}", "--twin", "attention_ports:other"]
    back += ["--optimizer", f"b{files[two][1]}", f"c{files[one][1]}", "--recipe", "recipe.toml"]
    assert run(back) == 0
    if one == "torch":
        names = [name for name, _ in model.named_parameters()]
        before, after = (read_torch_optimizer(f"{stem}_optimizer.pth", names) for stem in "ac")
    else:
        names = paddle_names("a.pdparams")
        before, after = (read_paddle_optimizer(f"{stem}.pdopt", names) for stem in "ac")
    assert before.updates == after.updates
    for slot, tensors in before.slots.items():
        for name, tensor in tensors.items():
            assert after.slots[slot][name].tobytes() == tensor.tobytes()


def test_what_is_wrong_with_an_optimizers_file_is_said(ports, capsys) -> None:
    write("a.pth", get_framework("torch").read_state(made(ports.other, "torch")))
    twin = ["--twin", "attention_ports:other"]

    def said(*arguments: str, status: int = 2) -> str:
        assert run(["convert", "a.pth", "b.pdparams", "--force", *twin, *arguments]) == status
        return " ".join(capsys.readouterr().err.split())

    torch.save({"state": {}, "param_groups": [{"params": [0, 1]}]}, "o.pth")
    assert "is of 2 parameters, and the model has" in said("--optimizer", "o.pth", "o.pdopt")
    assert "ends in .pth" in said("--optimizer", "o.pdopt", "p.pdopt")
    torch.save({"weights": torch.zeros(2)}, "o.pth")
    assert "holds no optimizer states" in said("--optimizer", "o.pth", "o.pdopt")
    torch.save({"state": {}, "param_groups": [{"params": [0]}, {"params": [1]}]}, "o.pth")
    assert "make the optimizer of named parameters" in said("--optimizer", "o.pth", "o.pdopt")
    Path("o.pth").write_bytes(pickle.dumps(print))
    assert "Traceback" not in said("--optimizer", "o.pth", "o.pdopt")
    Path("r.toml").write_text("[optimizer]\nkind = 'lion'")
    torch.save({"state": {}, "param_groups": [{"params": []}]}, "o.pth")
    assert "optimizer is 'lion'" in said("--optimizer", "o.pth", "o.pdopt", "--recipe", "r.toml")
    assert "--recipe with --optimizer" in said("--recipe", "r.toml")
    Path("o.pdopt").write_text("")
    assert run(["convert", "a.pth", "c.pdparams", *twin, "--optimizer", "o.pth", "o.pdopt"]) == 2
    assert "exists" in capsys.readouterr().err
    assert not Path("c.pdparams").exists()


def test_a_pdopt_needs_a_recipe_for_torch_and_betas_that_fit(ports, capsys) -> None:
    model = made(ports.other, "paddle")
    with paddle.utils.unique_name.guard():
        optimizer = paddle.optimizer.Adam(0.01, 0.7, 0.8, parameters=model.parameters())
    trained("paddle", model, optimizer, 0, 2)
    saved("paddle", model, optimizer, "a")
    arguments = ["convert", "a.pdparams", "b.pth", "--twin", "attention_ports:other", "--force"]
    arguments += ["--optimizer", "a.pdopt", "b_optimizer.pth"]
    assert run(arguments) == 2
    assert "is no power of 0.9" in capsys.readouterr().err
    Path("r.json").write_text('{"optimizer": {"kind": "adam", "betas": [0.7, 0.8]}}')
    assert run([*arguments, "--recipe", "r.json"]) == 0
    state = read_torch_optimizer("b_optimizer.pth", ())
    assert set(state.updates.values()) == {2}
    assert state.settings["betas"] == (0.7, 0.8)
    with pytest.raises(CheckpointError, match="belongs to no parameter"):
        read_paddle_optimizer("a.pdopt", {})


def test_groups_and_the_schedules_position_go_along(ports) -> None:
    """torch's groups by their names, and Paddle's scheduler where torch's 10 updates put it; and back."""
    Path("r.toml").write_text(
        '[optimizer]\nkind = "adam"\nlearning_rate = 0.1\n[schedule]\nkind = "step"\nstep_size = 4\n'
        '[[groups]]\npattern = "*bias"\nfactor = 0.5\n'
    )
    model = made(ports.other, "torch")
    named = dict(model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named.items() if not n.endswith("bias")]},
        {"params": [(n, p) for n, p in named.items() if n.endswith("bias")], "lr": 0.05},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    trained("torch", model, optimizer, 0, 10)
    saved("torch", model, optimizer, "a")
    twin = ["--twin", "attention_ports:other", "--recipe", "r.toml"]
    assert run(["convert", "a.pth", "b.pdparams", *twin, "--optimizer", "a_optimizer.pth", "b.pdopt"]) == 0
    port = made(ports.other, "paddle")
    biases = [p for n, p in port.named_parameters() if n.endswith("bias")]
    others = [p for n, p in port.named_parameters() if not n.endswith("bias")]
    with paddle.utils.unique_name.guard():
        scheduler = paddle.optimizer.lr.StepDecay(0.1, 4)
        other = paddle.optimizer.Adam(
            scheduler, parameters=[{"params": others}, {"params": biases, "learning_rate": 0.5}]
        )
        loaded("paddle", port, other, "b")
        assert scheduler.last_epoch == 10
        assert other.get_lr() == pytest.approx(0.001)
        trained("paddle", port, other, 10, 11)
        saved("paddle", port, other, "b")
    assert run(["convert", "b.pdparams", "c.pth", *twin, "--optimizer", "b.pdopt", "c_optimizer.pth"]) == 0
    again = torch.optim.Adam(groups, lr=9.0)
    again.load_state_dict(torch.load("c_optimizer.pth", weights_only=True))
    assert [group["lr"] for group in again.param_groups] == pytest.approx([0.001, 0.0005])
    assert {int(held["step"]) for held in again.state.values()} == {11}
    for parameter, held in again.state.items():
        assert held["exp_avg"].shape == parameter.shape


def test_counts_are_read_off_the_powers_of_the_betas_for_as_long_as_they_tell() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, paddle.utils.unique_name.guard():
        for count in (1, 9, 100, 700, 2000):
            parameter = paddle.create_parameter([1], "float32")
            optimizer = paddle.optimizer.Adam(1e-9, parameters=[parameter])
            for _ in range(count):
                parameter.grad = paddle.to_tensor([1.0])
                optimizer.step()
            path = Path(folder) / "a.pdopt"
            paddle.save(optimizer.state_dict(), str(path))
            assert read_paddle_optimizer(path, {"p": parameter.name}).updates == {"p": count}


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("it ran",))


ODD = st.recursive(
    st.none()
    | st.integers(-1, 9)
    | st.floats()
    | st.text(max_size=3)
    | st.booleans()
    | st.just(np.zeros(3, np.float32)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "exp_avg", "params", "x"]), inner)
    ),
    max_leaves=6,
)


@given(ODD, ODD, st.sampled_from([0, "w_moment1_0", "w_beta1_pow_acc_0", "master_weights", "LR_Scheduler"]))
def test_no_content_of_a_file_ends_in_a_traceback(tmp_path_factory, state, groups, key) -> None:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "o.pdopt").write_bytes(pickle.dumps({key: state, "w_moment2_0": groups}, protocol=4))
    for content in (
        {"state": state, "param_groups": groups},
        {"state": {0: state}, "param_groups": [{"params": [0], "x": groups}]},
    ):
        torch.save(content, folder / "o.pth")
        with contextlib.suppress(CheckpointError):
            read_torch_optimizer(folder / "o.pth", ["w"])
    with contextlib.suppress(CheckpointError):
        read_paddle_optimizer(folder / "o.pdopt", {"w": "w"})


def test_nothing_that_a_file_asks_for_is_run(tmp_path, capsys) -> None:
    (tmp_path / "o.pdopt").write_bytes(pickle.dumps({"w_moment1_0": Evil()}))
    torch.save({"state": {0: Evil()}, "param_groups": []}, tmp_path / "o.pth")
    with pytest.raises(CheckpointError, match="nothing was executed"):
        read_paddle_optimizer(tmp_path / "o.pdopt", {"w": "w"})
    with pytest.raises(CheckpointError, match="nothing was executed"):
        read_torch_optimizer(tmp_path / "o.pth", ["w"])
    assert capsys.readouterr().out == ""
    deep: Any = np.zeros(1)
    for _ in range(50):
        deep = [deep]
    (tmp_path / "o.pdopt").write_bytes(pickle.dumps({"w_moment1_0": deep}, protocol=4))
    with pytest.raises(CheckpointError, match="nested more than"):
        read_paddle_optimizer(tmp_path / "o.pdopt", {"w": "w"})
    whole = tmp_path / "w.pdopt"
    paddle.save({"w_moment1_0": paddle.zeros([3])}, str(whole))
    (tmp_path / "o.pdopt").write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"o\.pdopt"):
        read_paddle_optimizer(tmp_path / "o.pdopt", {"w": "w"})


def test_a_file_of_torchs_is_plain_to_torch(tmp_path) -> None:
    state = OptimizerState({"momentum": {"b": np.arange(3.0)}}, {"b": 1})
    write_torch_optimizer(tmp_path / "o.pth", state, [({"lr": 0.1, "betas": (0.9, 0.99), "foreach": None}, ["a", "b"])])
    content = torch.load(tmp_path / "o.pth", weights_only=True)
    assert content["param_groups"] == [
        {"lr": 0.1, "betas": (0.9, 0.99), "foreach": None, "params": [0, 1], "param_names": ["a", "b"]}
    ]
    assert content["state"][1]["momentum_buffer"].tolist() == [0.0, 1.0, 2.0]
    assert list(content["state"]) == [1]
