"""Which tensor of the candidate is which of the reference's, where the names alone do not tell.

Works on what is known of two models without running them: their module trees, and the names, shapes and roles of their
tensors. The two roots correspond. Below two modules that correspond, children are matched among themselves, by rules of
which none guesses:

1. **name**: both sides use the same names.
2. **order**: two containers number their children, and the sequences of signatures are equal in full; or the signature
   occurs once on either side, and the sequences in order of definition are equal in full.
3. **shape**: the signature occurs once on either side, wherever it stands.

Several children of one signature are told apart by their names, or by what is left of these when the words that all of
them share are taken off: equal words (``query_att`` and ``att_q``) match by name, also where only the words query, key and
value are equal, and all three are there (``q_linear, …, out`` and ``q_proj, …``); single numbers (``fc1, fc2`` and ``dense0,
dense1``) by order. If one is left then, it is matched by shape; if several are, they are ambiguous. The order of definition
never tells two of one signature apart. Where one name stands for things of different signatures, nothing beside it is
matched but by name.

A *signature* is all that must agree for weights to be exchanged: a layer's kind and the shapes of its tensors in the
canonical layout; for the user's own classes and containers, whose class names are only names, the tensors of their own and
the signatures of their children. A module that has no tensors and one child with tensors only wraps it, and is passed over.

Multi-head attention of a framework's own counts as what it is made of, four linear layers ``q_proj``, ``k_proj``, ``v_proj``
and ``out_proj``, however it stores their tensors: so a class of the user's own can be its counterpart.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from alignment.frameworks import ModuleInfo
from checkpoints import Slot, opened
from checkpoints.layouts import TABLES, Layer

How = Literal["mapping", "name", "order", "shape"]
HOW: tuple[How, ...] = ("mapping", "name", "order", "shape")

Item = TypeVar("Item")

# Kinds that hold other modules and compute nothing of their own, in every framework's word.
CONTAINERS = frozenset(
    ("sequential", "modulelist", "moduledict", "parameterlist", "parameterdict", "layerlist", "layerdict")
)
# Layers whose tensors the frameworks pack differently: their number of elements stands for their shapes.
PACKED = frozenset(("lstm", "gru", "rnn", "simplernn"))
# Usual short forms of the three words of attention.
SYNONYMS = {
    short: word
    for word, shorts in {"query": "q queries wq", "key": "k keys wk", "value": "v values wv"}.items()
    for short in shorts.split()
}


@dataclass(frozen=True)
class Tree:
    """What is known of one side: its framework's name, its modules and its tensors, in order of definition."""

    framework: str
    modules: tuple[ModuleInfo, ...]
    slots: tuple[Slot, ...]

    @functools.cached_property
    def attention(self) -> frozenset[str]:
        """Paths of the modules that are made of others which are in no module tree."""
        table = TABLES.get(self.framework, {})
        kinds = {name.lower() for name, layer in table.items() if layer.made_of}
        return frozenset(module.path for module in self.modules if not module.own and module.kind.lower() in kinds)

    @functools.cached_property
    def labelled(self) -> tuple[tuple[str, Slot], ...]:
        """Every tensor by its label, as a tensor of the layer that it is in: see `checkpoints.opened`."""
        return tuple(pair for slot in self.slots for pair in opened(slot, self.framework))

    @functools.cached_property
    def opened(self) -> Tree:
        """The same with attention taken apart: its projections are modules, and have the tensors."""
        infos = {module.path: module for module in self.modules}
        inside: dict[str, dict[str, ModuleInfo]] = {}
        for _, slot in self.labelled:
            path = slot.name.rpartition(".")[0]
            outer = path.rpartition(".")[0]
            if outer in self.attention and path not in infos:
                inside.setdefault(outer, {})[path] = ModuleInfo(path, slot.kind, False)
        modules = (one for path, info in infos.items() for one in (info, *inside.get(path, {}).values()))
        called = {label: slot.name for label, slot in self.labelled}
        slots = (replace(slot, tied_to=called.get(slot.tied_to or "", slot.tied_to)) for _, slot in self.labelled)
        return replace(self, modules=tuple(modules), slots=tuple(slots))

    def canonical(self, slot: Slot) -> str:
        """The tensor's full name, with torch's word for it in its layer."""
        return slot.name.removesuffix(slot.local) + self.local(slot)

    def local(self, slot: Slot) -> str:
        """What the tensor is called in its layer, in torch's word."""
        layer = self._layer(slot)
        return layer.names.get(slot.local, slot.local)

    def stored(self, slot: Slot) -> tuple[Any, ...]:
        """Role, dtype and canonical shape: what two tensors must share to be exchanged."""
        layer = self._layer(slot)
        shape: Any = slot.shape
        if layer.operations.get(slot.local) == "transpose":
            shape = shape[::-1]
        if (layer.kind, self.local(slot)) in _reshaped():
            shape = math.prod(shape)
        return slot.role, slot.dtype, shape

    def kind(self, name: str) -> str:
        """A kind of layer in one word for all frameworks."""
        layer = TABLES.get(self.framework, {}).get(name)
        return (layer.kind if layer else name).lower().removeprefix("compat.")

    def _layer(self, slot: Slot) -> Layer:
        return TABLES.get(self.framework, {}).get(slot.kind, Layer(""))


@functools.cache
def _reshaped() -> set[tuple[str, str]]:
    """(canonical kind, local name) of the tensors that some framework stores in another number of axes."""
    layers = [layer for table in TABLES.values() for layer in table.values()]
    return {
        (layer.kind, layer.names.get(local, local))
        for layer in layers
        for local, operation in layer.operations.items()
        if operation == "reshape"
    }


@dataclass(frozen=True)
class Match:
    """One counterpart: the candidate's name, and how it was found."""

    candidate: str
    how: How


@dataclass(frozen=True)
class Ambiguity:
    """Several modules or tensors of one signature on either side, any of which could be any of the other's.

    what: what they are, in words. reference, candidate: their names, modules' paths or tensors'.
    """

    what: str
    reference: tuple[str, ...]
    candidate: tuple[str, ...]
    modules: bool


@dataclass
class Matching:
    """All that was found. modules, tensors: the reference's name -> its counterpart.

    unmatched: names of modules and tensors, of the reference and of the candidate, for which there is none.
    """

    modules: dict[str, Match] = field(default_factory=dict)
    tensors: dict[str, Match] = field(default_factory=dict)
    ambiguous: list[Ambiguity] = field(default_factory=list)
    unmatched: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))

    @property
    def complete(self) -> bool:
        """Has everything one counterpart, and only one?"""
        return not self.ambiguous and not any(self.unmatched)

    def summary(self) -> str:
        """How many tensors were found by each rule: ``"12 by name, 4 by order"``."""
        counts = Counter(match.how for match in self.tensors.values())
        return ", ".join(f"{counts[how]} by {how}" for how in HOW if counts[how])


@dataclass(eq=False)
class _Node:
    """A module with tensors. A layer holds all tensors below it; a group (the user's class, what is made of others) has children.

    told: what is known of its contents, by the reference's names.
    """

    path: str
    info: ModuleInfo
    tree: Tree
    layer: bool
    slots: list[Slot] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def local(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def container(self) -> bool:
        return self.info.kind.lower() in CONTAINERS

    @property
    def wraps(self) -> bool:
        """Has it nothing but one child?"""
        return not self.layer and not self.slots and not self.told and len(self.children) == 1

    @functools.cached_property
    def signature(self) -> tuple[Any, ...]:
        if self.wraps:
            return self.children[0].signature
        return (*self._content(), tuple(sorted(self.told)))

    def _content(self) -> tuple[Any, ...]:
        if not self.layer:
            own = sorted((repr(self.tree.stored(slot)) for slot in self.slots), key=str)
            return "", tuple(own), tuple(sorted((child.signature for child in self.children), key=repr))
        kind = self.tree.kind(self.info.kind)
        prefix = f"{self.path}." if self.path else ""
        deep = any("." in slot.name.removeprefix(prefix) for slot in self.slots)
        parameters = [slot for slot in self.slots if slot.role == "parameter"]
        if deep or kind in PACKED:
            return kind, sum(math.prod(slot.shape) for slot in parameters if slot.tied_to is None)
        return kind, tuple(sorted(repr((self.tree.local(slot), self.tree.stored(slot))) for slot in parameters))

    def describe(self) -> str:
        shapes = [list(slot.shape) for slot in self.slots]
        return f"{self.info.kind} {', '.join(map(str, shapes))}".strip()


def match(
    reference: Tree, candidate: Tree, modules: Mapping[str, str] | None = None, tensors: Mapping[str, str] | None = None
) -> Matching:
    """Match two sides. modules, tensors: pairs that are known already, the reference's name -> the candidate's.

    Parts of packed tensors go by their labels (``"attn.in_proj_weight[q]"``), attention's projections by their paths
    (``"attn.q_proj"``).
    """
    modules = modules or {}
    labels = [{slot.name: label for label, slot in tree.labelled} for tree in (reference, candidate)]
    inner = [{label: slot.name for label, slot in tree.labelled} for tree in (reference, candidate)]
    tensors = {inner[0].get(one, one): inner[1].get(two, two) for one, two in (tensors or {}).items()}
    return _labelled(_match(reference.opened, candidate.opened, modules, tensors), *labels)


def _labelled(matching: Matching, ours: Mapping[str, str], theirs: Mapping[str, str]) -> Matching:
    """The matching with its tensors called by their labels."""
    return Matching(
        matching.modules,
        {
            ours.get(one, one): Match(theirs.get(two.candidate, two.candidate), two.how)
            for one, two in matching.tensors.items()
        },
        [
            one
            if one.modules
            else replace(
                one,
                reference=tuple(ours.get(name, name) for name in one.reference),
                candidate=tuple(theirs.get(name, name) for name in one.candidate),
            )
            for one in matching.ambiguous
        ],
        (
            [ours.get(name, name) for name in matching.unmatched[0]],
            [theirs.get(name, name) for name in matching.unmatched[1]],
        ),
    )


def _match(reference: Tree, candidate: Tree, modules: Mapping[str, str], tensors: Mapping[str, str]) -> Matching:
    result = Matching()
    result.tensors |= {one: Match(two, "mapping") for one, two in tensors.items()}
    ours = _nodes(reference, {name: name for name in tensors}, {path: path for path in modules})
    theirs = _nodes(candidate, {two: one for one, two in tensors.items()}, {two: one for one, two in modules.items()})
    for one, two in (modules if "" in modules else {"": "", **modules}).items():
        how: How = "mapping" if one in modules else "name"
        if one in ours and two in theirs:
            _pair(ours[one], theirs[two], how, result)
        else:
            result.modules[one] = Match(two, how)
            result.unmatched[0].extend(_names(ours[one]) if one in ours else ())
            result.unmatched[1].extend(_names(theirs[two]) if two in theirs else ())
    _ties(reference, candidate, result)
    return result


def _nodes(
    tree: Tree, tensors: Mapping[str, str] | None = None, modules: Mapping[str, str] | None = None
) -> dict[str, _Node]:
    """Path -> node of every module of an opened tree that has tensors.

    tensors, modules: what is known, by this side's name -> the reference's. It hangs below no parent, which only knows of it.
    """
    tensors, modules = tensors or {}, modules or {}
    infos = {module.path: module for module in tree.modules}
    parents = {path.rpartition(".")[0] for path in infos if path}
    nodes: dict[str, _Node] = {}

    def node(path: str) -> _Node:
        """The node that holds the tensors of the module at `path`: the outermost layer around it, or itself."""
        if path in nodes:
            return nodes[path]
        parent = node(path.rpartition(".")[0]) if path else None
        if parent is not None and path in modules:
            parent.told.append(modules[path])
            parent = None
        if parent is not None and parent.layer:
            return parent
        info = infos.get(path) or ModuleInfo(path, "", True)
        layer = not info.own and info.kind.lower() not in CONTAINERS and path not in parents
        made = nodes[path] = _Node(path, info, tree, layer)
        if parent is not None:
            parent.children.append(made)
        return made

    order = {path: index for index, path in enumerate(infos)}
    for slot in tree.slots:
        owner = slot.name.rpartition(".")[0]
        if slot.name in tensors:
            node(owner).told.append(tensors[slot.name])
        # A module that is found under several paths stands in the tree under the first.
        elif slot.tied_to is None or owner in infos:
            node(owner).slots.append(slot)
    for one in nodes.values():
        one.children.sort(key=lambda child: order.get(child.path, len(order)))
    return nodes


def _names(node: _Node) -> list[str]:
    return [slot.name for slot in node.slots] + [name for child in node.children for name in _names(child)]


def _pair(one: _Node, two: _Node, how: How, result: Matching) -> None:
    """Record that two modules correspond, and match what is in them."""
    first, last = one, two
    while first.wraps != last.wraps:
        first, last = (first.children[0], last) if first.wraps else (first, last.children[0])
    # The innermost correspond, but for the root and for what was told: these are what they are.
    kept = (one, two) if how == "mapping" or not one.path or not two.path else (first, last)
    result.modules[kept[0].path] = Match(kept[1].path, how)
    if first.layer or last.layer:
        _pair_layers(first, last, how, result)
        return
    own = _assign(
        first.slots, last.slots, lambda slot: slot.local, lambda node, slot: node.tree.stored(slot), (first, last)
    )
    for slot, other, found in own.pairs:
        result.tensors[slot.name] = Match(other.name, found)
    for side in (0, 1):
        result.unmatched[side].extend(slot.name for slot in own.left[side])
    result.ambiguous.extend(
        Ambiguity(
            f"{ours[0].role} {list(ours[0].shape)}",
            tuple(slot.name for slot in ours),
            tuple(slot.name for slot in others),
            False,
        )
        for ours, others in own.ambiguous
    )
    below = _assign(
        first.children, last.children, lambda node: node.local, lambda _, node: node.signature, (first, last)
    )
    for child, counterpart, found in below.pairs:
        _pair(child, counterpart, found, result)
    for side in (0, 1):
        result.unmatched[side].extend(name for node in below.left[side] for name in _names(node))
    result.ambiguous.extend(
        Ambiguity(nodes[0].describe(), tuple(n.path for n in nodes), tuple(n.path for n in others), True)
        for nodes, others in below.ambiguous
    )


def _pair_layers(one: _Node, two: _Node, how: How, result: Matching) -> None:
    """The tensors of two layers pair by what each framework calls them; the converter says what does not fit."""
    if not (one.layer and two.layer):
        result.unmatched[0].extend(_names(one))
        result.unmatched[1].extend(_names(two))
        return
    prefix = f"{two.path}." if two.path else ""
    held = {two.tree.canonical(slot): slot.name for slot in two.slots}
    for slot in one.slots:
        inner = one.tree.canonical(slot)[len(one.path) + 1 if one.path else 0 :]
        rest = slot.name[len(one.path) + 1 if one.path else 0 :]
        result.tensors[slot.name] = Match(held.get(prefix + inner, prefix + rest), how)


@dataclass
class _Assigned:
    """pairs: with how each was found. ambiguous: groups of one signature. left: what has no counterpart, of either side."""

    pairs: list[tuple[Any, Any, How]] = field(default_factory=list)
    ambiguous: list[tuple[list[Any], list[Any]]] = field(default_factory=list)
    left: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))


def _assign(
    ours: Sequence[Item],
    theirs: Sequence[Item],
    name: Callable[[Item], str],
    signature: Callable[[_Node, Item], Any],
    parents: tuple[_Node, _Node],
) -> _Assigned:
    """Match the children, or the tensors, of two modules that correspond, by the rules above."""
    result = _Assigned()
    names = [{name(item): item for item in side} for side in (ours, theirs)]
    marks = [[signature(parent, item) for item in side] for parent, side in zip(parents, (ours, theirs), strict=True)]
    if names[0].keys() == names[1].keys():
        result.pairs = [(item, names[1][label], "name") for label, item in names[0].items()]
        return result
    if all(label.isdigit() for side in names for label in side) and all(parent.container for parent in parents):
        # Numbers of a container are places, which a module without tensors in between shifts: names they are not.
        ranked = [
            sorted(zip(side, mark, strict=True), key=lambda x: int(name(x[0])))
            for side, mark in zip((ours, theirs), marks, strict=True)
        ]
        if [mark for _, mark in ranked[0]] == [mark for _, mark in ranked[1]]:
            result.pairs = [(one, two, "order") for (one, _), (two, _) in zip(*ranked, strict=True)]
        else:
            result.left = list(ours), list(theirs)
        return result
    shared = names[0].keys() & names[1].keys()
    known = [dict(zip(side, mark, strict=True)) for side, mark in zip(names, marks, strict=True)]
    if any(known[0][label] != known[1][label] for label in shared):
        # One name for two things of which neither can be the other: nothing else is certain, then.
        result.pairs = [(names[0][label], names[1][label], "name") for label in names[0] if label in shared]
        for side in (0, 1):
            result.left[side].extend(item for label, item in names[side].items() if label not in shared)
        return result
    in_order = marks[0] == marks[1]
    for mark in dict.fromkeys((*marks[0], *marks[1])):
        groups = [
            [item for item, own in zip(side, marks[i], strict=True) if own == mark]
            for i, side in enumerate((ours, theirs))
        ]
        if len(groups[0]) != len(groups[1]):
            for side in (0, 1):
                result.left[side].extend(groups[side])
        elif len(groups[0]) == 1:
            one, two = groups[0][0], groups[1][0]
            how: How = "name" if name(one) == name(two) else "order" if in_order else "shape"
            result.pairs.append((one, two, how))
        else:
            _tell_apart(groups[0], groups[1], name, result)
    return result


def _tell_apart(ours: list[Item], theirs: list[Item], name: Callable[[Item], str], result: _Assigned) -> None:
    """Match things of one signature by what their names do not all share."""
    words = [_distinguishing([name(item) for item in side]) for side in (ours, theirs)]
    numbered = [all(len(own) == 1 and own[0].isdigit() for own in side) for side in words]
    if all(numbered) and all(len({int(own[0]) for own in side}) == len(side) for side in words):
        ranked = [
            [item for _, item in sorted(zip(side, items, strict=True), key=lambda x: int(x[0][0]))]
            for side, items in zip(words, (ours, theirs), strict=True)
        ]
        result.pairs.extend((one, two, "order") for one, two in zip(*ranked, strict=True))
        return
    left: tuple[list[Item], list[Item]] = (list(ours), list(theirs))
    whole: list[list[tuple[str, ...]]] = [[(name(item),) for item in side] for side in (ours, theirs)]
    parts = [_parts_of_attention([name(item) for item in side]) for side in (ours, theirs)]
    for labels in (whole, words, parts):
        for own, one in zip(labels[0], ours, strict=True):
            alike = [two for other, two in zip(labels[1], theirs, strict=True) if other == own and two in left[1]]
            if own and one in left[0] and len(alike) == 1 and labels[0].count(own) == 1:
                result.pairs.append((one, alike[0], "name"))
                left[0].remove(one)
                left[1].remove(alike[0])
    if len(left[0]) == 1:
        result.pairs.append((left[0][0], left[1][0], "shape"))
    elif left[0]:
        result.ambiguous.append(left)


def _distinguishing(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The words of each name less those that all of them have: ``to_q, to_k`` -> ``query``, ``key``."""
    words = [Counter(_words(name)) for name in names]
    shared = words[0].copy()
    for counted in words[1:]:
        shared &= counted
    return [tuple(sorted((counted - shared).elements())) for counted in words]


def _parts_of_attention(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The word of attention in each name, where each of the three is in one name and none has two; nothing for the others."""
    words = [tuple({word for word in _words(name) if word in SYNONYMS.values()}) for name in names]
    found = [word for own in words for word in own]
    return words if sorted(found) == sorted(set(SYNONYMS.values())) else [() for _ in names]


def _words(name: str) -> Iterable[str]:
    for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name):
        yield SYNONYMS.get(word.lower(), word.lower())


def chains(tree: Tree) -> list[list[str]]:
    """Paths of modules of which each but the last only wraps the next."""
    nodes = _nodes(tree.opened)
    wrapped = {node.children[0].path for node in nodes.values() if node.wraps}
    found = []
    for node in nodes.values():
        if node.wraps and node.path not in wrapped:
            chain = [node]
            while chain[-1].wraps:
                chain.append(chain[-1].children[0])
            found.append([link.path for link in chain])
    return found


def homes(reference: Tree, candidate: Tree, told: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Reference's path -> further paths of the candidate below which its children may be: what it wraps, or is wrapped by.

    told: the paths that are known to correspond.
    """
    found: dict[str, tuple[str, ...]] = {}
    ours = {path: chain for chain in chains(reference) for path in chain}
    theirs = {path: chain for chain in chains(candidate) for path in chain}
    same = {module.path for module in reference.modules}
    for one, two in told.items():
        further = tuple(path for path in theirs.get(two, ()) if path not in same and path not in told.values())
        for path in ours.get(one, [one]):
            if further or path != one:
                found[path] = (*found.get(path, ()), two, *further)
    return found


def _ties(reference: Tree, candidate: Tree, result: Matching) -> None:
    """The tensors of a module that is found under several paths pair under the further ones as they do under the first."""
    taken = {match.candidate for match in result.tensors.values()}
    further: dict[str, list[str]] = {}
    for slot in candidate.slots:
        if slot.tied_to is not None and slot.name not in taken:
            further.setdefault(slot.tied_to, []).append(slot.name)
    for slot in reference.slots:
        if slot.tied_to in result.tensors and slot.name not in result.tensors:
            leader = result.tensors[slot.tied_to]
            choices = further.get(leader.candidate, [])
            if choices:
                result.tensors[slot.name] = Match(choices.pop(0), leader.how)
            else:
                result.unmatched[0].append(slot.name)
