"""Attention apart: which of its projections is which, without any framework; and where all of them have one counterpart."""

from __future__ import annotations

import itertools

import pytest

from alignment.frameworks import ModuleInfo
from alignment.mapping import ModelMapping
from alignment.matching import Tree, match
from alignment.scope import corresponding, located, settle_scope
from checkpoints import NameMap, Slot

E = 4


def linear(framework: str, path: str, outputs: int = E, inputs: int = E) -> list[Slot]:
    shape = (outputs, inputs) if framework == "torch" else (inputs, outputs)
    return [
        Slot(f"{path}.weight", "Linear", "weight", shape, "float32"),
        Slot(f"{path}.bias", "Linear", "bias", (outputs,), "float32"),
    ]


def layer(widths: tuple[int, int] = (E, E), root: str = "attn") -> Tree:
    """torch's own attention, by the widths of its keys and values."""
    if widths == (E, E):
        held = [("in_proj_weight", (3 * E, E))]
    else:
        held = [(f"{part}_proj_weight", (E, width)) for part, width in zip("qkv", (E, *widths), strict=True)]
    slots = [
        Slot(f"{root}.{name}", "MultiheadAttention", name, shape, "float32")
        for name, shape in (*held, ("in_proj_bias", (3 * E,)))
    ]
    modules = (ModuleInfo("", "Net", True), ModuleInfo(root, "MultiheadAttention", False))
    return Tree("torch", modules, (*slots, *linear("torch", f"{root}.out_proj")))


def by_hand(layers: dict[str, int], outside: dict[str, int] | None = None) -> Tree:
    """A class of the user's with linear layers in Paddle, by their paths and inputs; outside: layers that are no attention."""
    paths = {**layers, **(outside or {})}
    parents = {above for path in paths for above in itertools.accumulate(path.split(".")[:-1], "{}.{}".format)}
    modules = [ModuleInfo("", "Net", True), *(ModuleInfo(path, "Own", True) for path in sorted(parents))]
    modules += [ModuleInfo(path, "Linear", False) for path in paths]
    slots = [slot for path, width in paths.items() for slot in linear("paddle", path, inputs=width)]
    return Tree("paddle", tuple(modules), tuple(slots))


def named(*names: str, widths: tuple[int, int] = (E, E)) -> Tree:
    return by_hand({f"mha.{name}": width for name, width in zip(names, (E, *widths, E), strict=True)})


@pytest.mark.parametrize(
    "names",
    [
        ("query", "key", "value", "dense"),
        ("wq", "wk", "wv", "wo"),
        ("to_q", "to_k", "to_v", "to_out"),
        ("q_linear", "k_linear", "v_linear", "out"),
    ],
)
def test_usual_words_tell_the_projections(names) -> None:
    for widths in ((E, E), (3, 6)):
        ours, theirs = layer(widths), named(*names, widths=widths)
        found = match(ours, theirs)
        assert found.complete
        assert found.modules["attn"].candidate == "mha"
        pairs = {one: two.candidate for one, two in found.tensors.items()}
        weights = "in_proj_weight[{}]" if widths == (E, E) else "{}_proj_weight"
        for part, name in zip("qkv", names, strict=False):
            assert pairs[f"attn.{weights.format(part)}"] == f"mha.{name}.weight"
            assert pairs[f"attn.in_proj_bias[{part}]"] == f"mha.{name}.bias"
        assert pairs["attn.out_proj.weight"] == f"mha.{names[3]}.weight"
        layout, _, _ = settle_scope(ours, theirs, ModelMapping(), NameMap())
        assert layout is not None
        assert {(move.label, move.target) for move in layout.moves} == set(pairs.items())


@pytest.mark.parametrize("names", [("a", "b", "c", "d"), ("a", "b", "c", "out_proj"), ("q", "x", "y", "out_proj")])
def test_shapes_do_not_tell_queries_keys_and_values(names) -> None:
    for order in itertools.permutations(names):
        found = match(layer(), named(*order))
        assert not found.complete
        (left,) = found.ambiguous
        asked = {one for one in left.reference if one in ("attn.q_proj", "attn.k_proj", "attn.v_proj")}
        assert len(asked) >= 2


def test_widths_that_differ_do_tell_and_names_that_contradict_them_stop_the_matching() -> None:
    (left,) = match(layer((3, 6)), named("a", "b", "c", "d", widths=(3, 6))).ambiguous
    assert (set(left.reference), set(left.candidate)) == ({"attn.q_proj", "attn.out_proj"}, {"mha.a", "mha.d"})
    crossed = by_hand({"attn.q_proj": E, "attn.v_proj": 3, "attn.k_proj": 6, "attn.out_proj": E})
    layout, mismatch, _ = settle_scope(layer((3, 6)), crossed, ModelMapping(), NameMap())
    assert layout is None
    assert "attn.k_proj" in "\n".join(mismatch)


def settled(theirs: Tree, mapping: ModelMapping) -> tuple[dict[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
    layout, mismatch, scope = settle_scope(layer(), theirs, mapping, NameMap())
    assert layout is not None, mismatch
    paths = corresponding(scope, layer(), theirs, layout)
    return paths, located(scope, layer(), theirs, paths).attention


def test_a_layer_corresponds_to_the_module_that_has_all_of_it_and_nothing_else() -> None:
    spread = {f"att.self.{name}": E for name in ("query", "key", "value")} | {"att.output.dense": E}
    pairs = {"q": "query", "k": "key", "v": "value"}
    mapping = ModelMapping(
        modules={f"attn.{part}_proj": f"att.self.{name}" for part, name in pairs.items()}
        | {"attn.out_proj": "att.output.dense"}
    )
    paths, attention = settled(by_hand(spread), mapping)
    assert paths == {"": "", "attn": "att"}
    assert attention == (("attn",), ("att",))
    # With something else in it, what it gives is something else: there is no counterpart, though the weights are exchanged.
    theirs = by_hand(spread, {"att.output.gate": E})
    kept = ModelMapping(modules=mapping.modules, ignore=(r"att\.output\.gate",))
    layout, mismatch, scope = settle_scope(layer(), theirs, kept, NameMap())
    assert layout is not None, mismatch
    assert corresponding(scope, layer(), theirs, layout) == {"": "", "attn": "att"}  # what is ignored is not there
    more = Tree(
        "torch", (*layer().modules, ModuleInfo("gate", "Linear", False)), (*layer().slots, *linear("torch", "gate"))
    )
    pairs = ModelMapping(modules={**mapping.modules, "gate": "att.output.gate"})
    layout, mismatch, scope = settle_scope(more, theirs, pairs, NameMap())
    assert layout is not None, mismatch
    assert corresponding(scope, more, theirs, layout) == {"": "", "gate": "att.output.gate"}
