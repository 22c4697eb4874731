"""Tensors of other names find their counterparts by rules that never guess: the true one, or none."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.frameworks import ModuleInfo
from alignment.matching import Tree, match
from checkpoints import Slot

CONTAINER = {"torch": "Sequential", "paddle": "Sequential"}


class Own(dict):
    """A class of the user's: children by name; a tuple of sizes is a parameter of its own."""


def tree(framework: str, root: dict[str, Any]) -> Tree:
    """A side made of nested dicts: `Own` is the user's class, a plain dict a container, (kind, sizes) a layer."""
    modules: list[ModuleInfo] = []
    slots: list[Slot] = []

    def slot(path: str, kind: str, local: str, shape: tuple[int, ...]) -> None:
        slots.append(Slot(f"{path}.{local}".lstrip("."), kind, local, shape, "float32"))

    def add(path: str, part: Any) -> None:
        if isinstance(part, dict):
            kind = "Net" if isinstance(part, Own) else CONTAINER[framework]
            modules.append(ModuleInfo(path, kind, isinstance(part, Own)))
            for name, child in part.items():
                if isinstance(child, tuple) and all(isinstance(size, int) for size in child):
                    slot(path, kind, name, child)
                else:
                    add(f"{path}.{name}".lstrip("."), child)
            return
        kind, *sizes = part
        modules.append(ModuleInfo(path, kind, False))
        if kind == "Linear":
            slot(path, kind, "weight", tuple(sizes[::-1] if framework == "torch" else sizes))
            slot(path, kind, "bias", (sizes[-1],))
        elif kind == "Embedding":
            slot(path, kind, "weight", tuple(sizes))
        elif kind == "LayerNorm":
            slot(path, kind, "weight", tuple(sizes))
            slot(path, kind, "bias", tuple(sizes))

    add("", root)
    return Tree(framework, tuple(modules), tuple(slots))


def sides(reference: dict[str, Any], candidate: dict[str, Any]) -> tuple[Tree, Tree]:
    return tree("torch", reference), tree("paddle", candidate)


def found(reference: dict[str, Any], candidate: dict[str, Any]) -> dict[str, tuple[str, str]]:
    result = match(*sides(reference, candidate))
    assert result.complete, result
    return {one: (two.candidate, two.how) for one, two in result.modules.items() if one}


def test_modules_of_other_names_are_found_by_order_and_in_another_order_by_shape() -> None:
    reference = Own(emb=("Embedding", 9, 6), up=("Linear", 6, 8), head=("Linear", 8, 3))
    candidate = Own(table=("Embedding", 9, 6), first=("Linear", 6, 8), last=("Linear", 8, 3))
    assert found(reference, candidate) == {
        "emb": ("table", "order"),
        "up": ("first", "order"),
        "head": ("last", "order"),
    }
    shuffled = Own(reversed(candidate.items()))
    assert found(reference, shuffled) == {
        "emb": ("table", "shape"),
        "up": ("first", "shape"),
        "head": ("last", "shape"),
    }


def test_a_transposed_shape_is_no_other_shape() -> None:
    """Linear(6, 8) is [8, 6] in one framework and [6, 8] in the other; Linear(8, 6) must not be taken for it."""
    reference = Own(a=("Linear", 6, 8), b=("Linear", 8, 6))
    assert found(reference, Own(x=("Linear", 8, 6), y=("Linear", 6, 8))) == {"a": ("y", "shape"), "b": ("x", "shape")}


def test_two_of_one_signature_are_ambiguous_whatever_their_order() -> None:
    reference = Own(up=("Linear", 6, 6), down=("Linear", 6, 6), head=("Linear", 6, 3))
    result = match(*sides(reference, Own(x=("Linear", 6, 6), y=("Linear", 6, 6), z=("Linear", 6, 3))))
    (ambiguity,) = result.ambiguous
    assert (ambiguity.reference, ambiguity.candidate) == (("up", "down"), ("x", "y"))
    assert result.modules["head"].candidate == "z"
    assert not result.complete
    assert not any(result.unmatched)


def test_what_the_names_do_not_share_tells_several_of_one_signature_apart() -> None:
    square = ("Linear", 6, 6)
    reference = Own(query=square, key=square, value=square, out=("Linear", 6, 3))
    candidate = Own(v_proj=square, k_proj=square, q_proj=square, o_proj=("Linear", 6, 3))
    pairs = {one: two for one, (two, _) in found(reference, candidate).items()}
    assert pairs == {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}


def test_numbers_in_names_are_ranks_wherever_they_start() -> None:
    square = ("Linear", 6, 6)
    reference, candidate = Own(conv0=square, conv1=square), Own(conv2=square, conv1=square)
    assert found(reference, candidate) == {"conv0": ("conv1", "order"), "conv1": ("conv2", "order")}
    assert found(reference, Own(fc2=square, fc1=square)) == {"conv0": ("fc1", "order"), "conv1": ("fc2", "order")}


def test_the_last_one_left_of_a_signature_is_found_by_shape() -> None:
    square = ("Linear", 6, 6)
    pairs = found(Own(query=square, key=square, mix=square), Own(w=square, k=square, q=square))
    assert pairs == {"query": ("q", "name"), "key": ("k", "name"), "mix": ("w", "shape")}


def test_numbers_of_containers_are_places_that_modules_without_tensors_shift() -> None:
    square, gelu = ("Linear", 6, 6), ("GELU",)
    reference = Own(net={"0": square, "1": gelu, "2": square, "3": gelu, "4": square})
    candidate = Own(net={"0": square, "1": square, "2": square})
    pairs = {one: two for one, (two, _) in found(reference, candidate).items()}
    assert pairs == {"net": "net", "net.0": "net.0", "net.2": "net.1", "net.4": "net.2"}


def test_a_container_of_other_length_or_order_is_not_matched() -> None:
    square, wide = ("Linear", 6, 6), ("Linear", 6, 8)
    for candidate in ({"0": square, "1": wide, "2": square}, {"1": wide, "2": square}):
        result = match(*sides(Own(net={"0": square, "2": wide}), Own(net=candidate)))
        assert any(result.unmatched)
        assert not [one for one in result.modules if one.startswith("net.")]


def test_one_name_for_two_things_stops_the_guessing() -> None:
    reference = Own(fc1=("Linear", 6, 8), fc2=("Linear", 8, 3))
    result = match(*sides(reference, Own(fc2=("Linear", 6, 8), fc3=("Linear", 8, 3))))
    assert "fc1" not in result.modules
    assert any(result.unmatched)


def test_a_module_that_only_wraps_another_is_passed_over() -> None:
    inner = {"emb": ("Embedding", 9, 6), "fc": ("Linear", 6, 3)}
    wrapped = Own(net=Own(table=("Embedding", 9, 6), out={"0": ("Linear", 6, 3)}))
    assert {one: two for one, (two, _) in found(Own(inner), wrapped).items()} == {"emb": "net.table", "fc": "net.out.0"}
    assert {one: two for one, (two, _) in found(wrapped, Own(inner)).items()} == {"net.table": "emb", "net.out.0": "fc"}


def test_parameters_of_the_users_own_classes_are_found_by_shape_and_ambiguous_where_it_does_not_tell() -> None:
    result = match(*sides(Own(block=Own(scale=(6,), table=(4, 6))), Own(block=Own(grid=(4, 6), gain=(6,)))))
    assert {one: (two.candidate, two.how) for one, two in result.tensors.items()} == {
        "block.scale": ("block.gain", "shape"),
        "block.table": ("block.grid", "shape"),
    }
    result = match(*sides(Own(block=Own(a=(6,), b=(6,))), Own(block=Own(c=(6,), d=(6,)))))
    assert [one.reference for one in result.ambiguous] == [("block.a", "block.b")]


def test_a_tensor_too_few_is_no_match() -> None:
    reference = Own(fc=("Linear", 6, 3), norm=("LayerNorm", 3))
    result = match(*sides(reference, Own(out=("Linear", 6, 3), gain=(3,))))
    assert result.modules["fc"].candidate == "out"
    assert result.unmatched == (["norm.weight", "norm.bias"], ["gain"])


def test_what_is_known_is_taken_and_the_rest_follows_from_it() -> None:
    square = ("Linear", 6, 6)
    reference, candidate = Own(a=Own(up=square, down=square), b=square), Own(x=Own(p=square, q=square), y=square)
    result = match(*sides(reference, candidate), {"a.up": "x.q"})
    assert result.complete
    assert {one: two.candidate for one, two in result.modules.items()} == {
        "": "", "a.up": "x.q", "a": "x", "a.down": "x.p", "b": "y",
    }  # fmt: skip


def test_a_module_found_under_two_paths_is_matched_under_both() -> None:
    reference, candidate = sides(Own(a=("Linear", 6, 6)), Own(x=("Linear", 6, 6)))
    reference, candidate = (
        Tree(
            side.framework,
            side.modules,
            (
                *side.slots,
                *(
                    Slot(f"{other}.{s.local}", s.kind, s.local, s.shape, s.dtype, "parameter", s.name)
                    for s in side.slots
                ),
            ),
        )
        for side, other in ((reference, "b"), (candidate, "y"))
    )
    result = match(reference, candidate)
    assert result.tensors["b.weight"].candidate == "y.weight"
    assert result.complete


# ------------------------------------------------------------------------------------------------------------ properties

SIZES = st.sampled_from((4, 5, 6))
LAYERS = st.one_of(
    st.tuples(st.just("Linear"), SIZES, SIZES),
    st.tuples(st.just("LayerNorm"), SIZES),
    st.tuples(st.just("Embedding"), SIZES, SIZES),
)
PARTS = st.recursive(
    LAYERS,
    lambda part: st.one_of(
        st.lists(part, min_size=1, max_size=4).map(lambda parts: ("own", parts)),
        st.lists(part, min_size=1, max_size=3).map(lambda parts: ("container", parts)),
    ),
    max_leaves=12,
)
MODELS = st.lists(PARTS, min_size=1, max_size=5).map(lambda parts: ("own", parts))


def build(part: Any, names: Any, order: Any) -> tuple[Any, dict[str, Any]]:
    """One side's nested dict, and where each part of the model went: index -> (name, the same for what is inside)."""
    if part[0] not in ("own", "container"):
        return part, {}
    own = part[0] == "own"
    built, places = {}, {}
    for index in order(range(len(part[1]))) if own else range(len(part[1])):
        name = names(index) if own else str(index)
        built[name], inside = build(part[1][index], names, order)
        places[str(index)] = (name, inside)
    return (Own(built) if own else built), places


def truth(ours: dict[str, Any], theirs: dict[str, Any], one: str = "", two: str = "") -> dict[str, str]:
    pairs = {one: two}
    for index, (name, inside) in ours.items():
        other, within = theirs[index]
        pairs |= truth(inside, within, f"{one}.{name}".lstrip("."), f"{two}.{other}".lstrip("."))
    return pairs


@settings(max_examples=150, deadline=None)
@given(MODELS, st.data())
def test_shuffled_and_renamed_trees_give_the_true_match_or_none(model: Any, data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.integers(0, 4)), label="places whose names both sides share")
    letters = "abcde"
    reference, ours = build(model, lambda i: f"s{letters[i]}" if i in kept else f"r{letters[i]}", list)
    candidate, theirs = build(
        model,
        lambda i: f"s{letters[i]}" if i in kept else f"c{letters[i]}",
        lambda indices: data.draw(st.permutations(list(indices))),
    )
    pairs = truth(ours, theirs)
    result = match(*sides(reference, candidate))
    assert not any(result.unmatched)
    assert {one: pairs[one] for one in result.modules} == {one: two.candidate for one, two in result.modules.items()}
    for one, two in result.tensors.items():
        (path, local), (other, name) = one.rsplit(".", 1), two.candidate.rsplit(".", 1)
        assert (pairs[path], local) == (other, name)
    if not result.ambiguous:
        assert len(result.tensors) == len(tree("torch", reference).slots)


@settings(max_examples=100, deadline=None)
@given(MODELS, st.data())
def test_what_is_ambiguous_is_so_because_its_parts_could_be_exchanged(model: Any, data: st.DataObject) -> None:
    """Every choice of an ambiguity, once it is told, is accepted: none of them was a wrong shape or kind."""
    reference, _ = build(model, lambda i: f"r{'abcde'[i]}", list)
    candidate, _ = build(model, lambda i: f"c{'abcde'[i]}", lambda indices: data.draw(st.permutations(list(indices))))
    trees = sides(reference, candidate)
    told: dict[str, str] = {}
    for _round in range(20):
        result = match(*trees, told)
        assert not any(result.unmatched)
        if not result.ambiguous:
            return
        first = result.ambiguous[0]
        told |= {first.reference[0]: data.draw(st.sampled_from(first.candidate))}
    raise AssertionError("telling what is ambiguous does not end")
