"""`align convert`: a checkpoint of one framework becomes a checkpoint of the other, proved bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from alignment.conversion import Joined, Tensors, compared_layout, join_models
from alignment.frameworks import paddle_names as fresh_names
from alignment.mapping import ModelMapping
from alignment.sizes import read_sizes
from alignment.training.recipe import Recipe
from alignment.training.state import convert_file
from alignment.twins import Twin, get_twin, parse_settings
from alignment.views.progress import progress
from checkpoints import (
    FRAMEWORK_OF,
    RAW16,
    CheckpointError,
    Layout,
    NameMap,
    Streamed,
    check_destination,
    convert,
    existing_shards,
    open_checkpoint,
    parse_size,
    retype,
    reverse,
    stream,
)
from checkpoints.convert import check_source
from checkpoints.optimizer import OptimizerState, paddle_names


@click.command("convert", short_help="Convert a checkpoint between frameworks, with proof.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--twin", "twin_name", metavar="NAME", help="Take the layout from the two live models of this twin.")
@click.option(
    "--set", "assignments", metavar="NAME=VALUE", multiple=True, help="A setting of the twin that the file can't tell."
)
@click.option("--layout", "layout_file", type=click.Path(path_type=Path), help="Take the layout from this file.")
@click.option("--save-layout", type=click.Path(path_type=Path), help="Save the layout that was used.")
@click.option(
    "--from", "from_", type=click.Choice(["torch", "paddle"]), help="Framework of SOURCE (default: its suffix)."
)
@click.option("--to", type=click.Choice(["torch", "paddle"]), help="Framework of DESTINATION (default: its suffix).")
@click.option(
    "--names", "names_file", type=click.Path(path_type=Path), help="A name map (.toml or .json), with --twin."
)
@click.option(
    "--mapping",
    "mapping_file",
    metavar="FILE",
    help="How the two sides' parts correspond where names differ, with --twin; `align map` writes one.",
)
@click.option("--drop-ignored", is_flag=True, help="Leave out tensors without a counterpart that the mapping ignores.")
@click.option("--entry", metavar="KEY", help="The state dict to take where SOURCE nests several.")
@click.option("--bfloat16", is_flag=True, help="Sixteen-bit tensors that SOURCE's format can't name are bfloat16.")
@click.option(
    "--shard-size",
    metavar="SIZE",
    help="Bytes of tensors in a shard, such as 2GB, where DESTINATION is an index  [default: 5GB]",
)
@click.option(
    "--optimizer",
    type=(click.Path(path_type=Path), click.Path(path_type=Path)),
    metavar="FROM TO",
    help="Convert the state of SOURCE's optimizer, too, with --twin: .pth (optimizer.state_dict()) and .pdopt.",
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    help="A training recipe (.toml or .json) with what the optimizer's file does not say, with --optimizer.",
)
@click.option("--force", is_flag=True, help="Overwrite DESTINATION (and the file of --save-layout).")
def command(
    source: Path,
    destination: Path,
    twin_name: str | None,
    assignments: tuple[str, ...],
    layout_file: Path | None,
    save_layout: Path | None,
    from_: str | None,
    to: str | None,
    names_file: Path | None,
    mapping_file: str | None,
    drop_ignored: bool,
    entry: str | None,
    bfloat16: bool,
    shard_size: str | None,
    optimizer: tuple[Path, Path] | None,
    recipe_file: Path | None,
    force: bool,
) -> int:
    """Convert the checkpoint SOURCE to DESTINATION.

    Formats go by suffix: .safetensors, .safetensors.index.json (shards), .pth, .pt, .bin, .pdparams, .npz. The layout
    comes from a twin's live models or from a layout file: it is never guessed from shapes. A twin is a built-in name, or
    package.module:attribute, an alignment.Twin of your own; its two sides correspond as in `align check`. Tensors go from
    file to file one at a time, and a conversion that was killed goes on where it stopped when it is run again.
    """
    if (twin_name is None) == (layout_file is None):
        raise click.UsageError(
            "give --twin NAME or --layout FILE: how tensors are stored is never guessed from shapes."
        )
    if layout_file and (assignments or names_file or mapping_file or drop_ignored):
        raise click.UsageError(
            "--set, --names, --mapping and --drop-ignored go with --twin; a layout file already says all they could."
        )
    if (optimizer is not None and twin_name is None) or (recipe_file is not None and optimizer is None):
        raise click.UsageError("--optimizer goes with --twin, and --recipe with --optimizer.")
    _check_outputs(source, destination, save_layout, force)
    states = (None, None) if optimizer is None else optimizer
    if states[1] is not None and states[1].exists() and not force:
        raise CheckpointError(f"{states[1]}: exists; choose another name, or overwrite it with --force")
    recipe = None if recipe_file is None else Recipe.read(recipe_file)
    mapped = None if mapping_file is None else Path(mapping_file)
    _check_apart(
        [source, layout_file, names_file, mapped, recipe_file, states[0]], [destination, save_layout, states[1]]
    )

    with progress("converting") as say:
        say(f"opening {source}")
        opened = open_checkpoint(source, entry)
        tensors = opened.stand_ins()
        live: Joined | None = None
        if twin_name is not None:
            twin = get_twin(twin_name)
            frameworks = _frameworks(source, destination, from_, to)
            names = NameMap.load(names_file) if names_file else None
            mapping = ModelMapping.read(mapped) if mapped else None
            settings = _settings(twin, assignments, tensors, names, source)
            say("building the models of the twin")
            live = join_models(
                twin, frameworks, settings, mapping, drop_ignored=drop_ignored, names=names, tensors=tensors
            )
            layout = retype(live.layout, {name: array.dtype.name for name, array in tensors.items()})
        else:
            layout = _directed(Layout.load(layout_file or ""), source, destination, from_, to)
        if bfloat16:
            layout = retype(layout, {name: "bfloat16" for name, array in tensors.items() if array.dtype in RAW16})
        if live is not None:
            _check_sizes(tensors, layout, source, settings)
        held: bool | None = None

        def accept(converted: Tensors) -> None:
            nonlocal held
            if live is not None:
                say("comparing the live models")
                given = {name: np.array(stored.read(), order="C") for name, stored in opened.tensors.items()}
                held = _models_agree(live, layout, given, {name: np.array(a) for name, a in converted.items()})
            if save_layout:
                layout.save(save_layout)

        streamed = stream(
            opened,
            destination,
            layout,
            shard_size=None if shard_size is None else parse_size(shard_size),
            progress=say,
            accept=accept,
        )
        moved = None
        if optimizer is not None and live is not None:
            say(f"converting {optimizer[0]}")
            moved = _convert_optimizer(optimizer, source, twin, settings, live, recipe)
    console = Console(highlight=False)
    _summarise(console, destination, opened.notes, layout, streamed, held, live)
    if moved is not None and optimizer is not None:
        console.out(
            f"{optimizer[1]}: {', '.join(moved.slots) or 'no state'} of {len(moved.updates)} parameters, "
            f"{max(moved.updates.values(), default=0)} updates; there and back bit-identical"
        )
    return 0


def _convert_optimizer(
    files: tuple[Path, Path],
    source: Path,
    twin: Twin,
    settings: Mapping[str, Any],
    live: Joined,
    recipe: Recipe | None,
) -> OptimizerState:
    """The state of an optimizer of the two live models."""
    layout = live.layout

    def names(side: str) -> Mapping[str, str]:
        table = paddle_names(source) if side == "source" and source.suffix == ".pdparams" else None
        chosen = next(one for one in (twin.candidate, twin.reference) if one.framework == "paddle")
        return table or fresh_names(chosen.target, {**twin.settings, **settings, **chosen.settings})

    slots = live.target.slots(live.target_model)
    kept = {slot.name for slot in slots if slot.role == "parameter" and slot.tied_to is None}
    of_reference = twin.reference.framework == layout.target_framework
    return convert_file(
        *files,
        layout,
        given=[s.name for s in live.source.slots(live.source_model) if s.role == "parameter" and s.tied_to is None],
        taken={name: array for name, array in live.target.read_state(live.target_model).items() if name in kept},
        names=names,
        recipe=recipe,
        reference=None if of_reference else {move.target: move.source for move in layout.moves},
    )


def _check_outputs(source: Path, destination: Path, save_layout: Path | None, force: bool) -> None:
    check_destination(destination)
    if destination.exists() and source.exists() and destination.samefile(source):
        raise CheckpointError(f"{destination}: is the source itself; choose another name")
    for path in (destination, save_layout, *existing_shards(destination)):
        if path is not None and path.exists() and not force:
            raise CheckpointError(f"{path}: exists; choose another name, or overwrite it with --force")


def _check_apart(inputs: list[Path | None], outputs: list[Path | None]) -> None:
    """No output may be an input or the other output, whatever --force says: one of the two would be lost."""
    places = [path.resolve() for path in (*inputs, *outputs) if path is not None]
    for path in outputs:
        if path is not None and places.count(path.resolve()) > 1:
            raise CheckpointError(f"{path}: is named twice, and would be overwritten; choose another name")


def _frameworks(source: Path, destination: Path, from_: str | None, to: str | None) -> tuple[str, str]:
    found = []
    for path, given, option in ((source, from_, "--from"), (destination, to, "--to")):
        framework = given or FRAMEWORK_OF.get(path.suffix)
        if framework is None:
            raise click.UsageError(
                f"{path.name}: the suffix does not tell the framework; give {option} torch or paddle."
            )
        found.append(framework)
    return found[0], found[1]


def _directed(layout: Layout, source: Path, destination: Path, from_: str | None, to: str | None) -> Layout:
    """The layout, or its way back where the files or options ask for that direction."""
    ways = (layout.source_framework, layout.target_framework)
    asked = (from_ or FRAMEWORK_OF.get(source.suffix), to or FRAMEWORK_OF.get(destination.suffix))

    def fits(way: tuple[str, str]) -> bool:
        return all(want in (None, have) for want, have in zip(asked, way, strict=True))

    if fits(ways):
        return layout
    if fits(ways[::-1]):
        return reverse(layout)
    raise CheckpointError(
        f"the layout goes from {ways[0]} to {ways[1]}, but the files or options say "
        f"{asked[0] or 'any'} to {asked[1] or 'any'}"
    )


def _check_sizes(tensors: Tensors, layout: Layout, source: Path, settings: Mapping[str, Any]) -> None:
    """A file that does not fit, with what the models were built with: it may be a matter of sizes."""
    try:
        check_source(tensors, layout)
    except CheckpointError as error:
        if not settings or "has shape" not in str(error):
            raise CheckpointError(f"{source}: {error}") from error
        sizes = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise CheckpointError(
            f"{source}: {error}\n  The models were built with {sizes}; give others with --set NAME=VALUE."
        ) from error


def _models_agree(live: Joined, layout: Layout, tensors: Tensors, converted: Tensors) -> bool:
    """Load both live models and compare their tensors bit for bit through the layout.

    False where the file's dtype is not the models', so that loading would round; CheckpointError where they differ.
    """
    if layout != live.layout:
        return False
    own = {slot.name for slot in live.source.slots(live.source_model)}
    left_out = {extra.name for extra in live.left_out}
    kept = {name: array for name, array in live.target.read_state(live.target_model).items() if name in left_out}
    live.target.load_state(live.target_model, {**kept, **converted})
    if own != set(tensors):  # renamed, or a tied name is left out: the source model can't be filled by name
        expected: Tensors = converted
    else:
        live.source.load_state(live.source_model, tensors)
        expected = convert(live.source.read_state(live.source_model), layout)
    found = live.target.read_state(live.target_model)
    wrong = [name for name, array in expected.items() if array.tobytes() != found[name].tobytes()]
    if wrong:
        raise CheckpointError(f"the live models do not hold equal tensors: {', '.join(wrong)}")
    return True


def twin_layout(
    twin_name: str,
    assignments: tuple[str, ...],
    mapping_file: str | None,
    reference: Path,
    candidate: Path,
    entry: str | None,
) -> Layout:
    """The layout from the one checkpoint to the other by the live models of a twin."""
    twin = get_twin(twin_name)
    tensors = open_checkpoint(reference, entry).stand_ins()
    known = [FRAMEWORK_OF.get(path.suffix) for path in (reference, candidate)]
    default = (twin.reference.framework, twin.candidate.framework)
    if known[0] == default[1] or known[1] == default[0]:
        default = default[::-1]
    frameworks = (known[0] or default[0], known[1] or default[1])
    mapping = None if mapping_file is None else ModelMapping.read(mapping_file)
    return compared_layout(twin, frameworks, _settings(twin, assignments, tensors, None, reference), mapping)


def _settings(
    twin: Twin, assignments: tuple[str, ...], tensors: Tensors, names: NameMap | None, source: Path
) -> dict[str, Any]:
    """The twin's settings: what --set says, else what the file's shapes tell, else the default of what has none."""
    settings = parse_settings(twin, assignments)
    given = {assignment.partition("=")[0].strip() for assignment in assignments}
    renamed = {name: names.rename(name) if names else None for name in tensors}
    told, lacking = read_sizes(
        twin, {(new.name if new else name): tensors[name].shape for name, new in renamed.items()}
    )
    unknown = {setting: name for setting, name in lacking.items() if setting not in given}
    if unknown:
        options = " ".join(f"--set {setting}=VALUE" for setting in unknown)
        raise CheckpointError(
            f"{source}: does not tell all sizes of {twin.name} (it has no {', '.join(sorted(set(unknown.values())))}).\n"
            f"  Give {options}, or --names FILE if its tensors have other names."
        )
    return settings | {setting: size for setting, size in told.items() if setting not in given}


# ---- what the user sees --------------------------------------------------------------------------------------------


def _summarise(
    console: Console,
    destination: Path,
    notes: tuple[str, ...],
    layout: Layout,
    streamed: Streamed,
    held: bool | None,
    live: Joined | None,
) -> None:
    console.print(f"[bold]{layout.source_framework} → {layout.target_framework}[/]  ", end="")
    console.out(str(destination))
    proof = streamed.proof
    table = Table.grid(padding=(0, 2))
    table.add_row("tensors moved", f"{proof.moved} ({proof.bytes:,} bytes)")
    table.add_row("  transposed", str(proof.transposed))
    if proof.parts:
        table.add_row("  parts of packed tensors", str(proof.parts))
    if proof.reshaped:
        table.add_row("  reshaped", str(proof.reshaped))
    if proof.tied:
        table.add_row("  further names of tied tensors", str(proof.tied))
    table.add_row("dropped", str(proof.dropped))
    if proof.filled:
        table.add_row("filled with zeros", str(proof.filled))
    if streamed.kept:
        table.add_row("written by an earlier run", f"{streamed.kept}, proved again")
    table.add_row("there and back", "bit-identical")
    if held is not None:
        table.add_row(
            "live models",
            "hold equal tensors, bit for bit" if held else "not compared: other dtypes or names than the models'",
        )
    console.print(table)
    for extra in (*layout.dropped, *layout.filled):
        console.out(f"  {extra.name}: {extra.reason}")
    for extra in live.left_out if live else ():
        console.out(f"  {extra.name}: {extra.reason}, and not in {destination.name}")
    for note in (*(live.notes if live else ()), *notes):
        console.out(f"  {note}")
