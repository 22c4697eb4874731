"""`align trajectory`: train both sides in lockstep, and say whether what parts them is rounding."""

from __future__ import annotations

import ast
from functools import partial
from pathlib import Path
from typing import Any

import click

from alignment.commands._gate import open_gate
from alignment.commands._options import (
    finish,
    make_options,
    output_options,
    refuse_unwritable,
    run_options,
    shared_options,
    view_options,
)
from alignment.errors import AlignmentError
from alignment.frameworks import reserve_threads
from alignment.training.faults import TRAINING_FAULTS
from alignment.training.recipe import CLIPS, KINDS, SCHEDULES, Recipe
from alignment.training.recipe_file import read_recipe
from alignment.trajectory import Training, trajectory
from alignment.twins import DEFAULT_TWIN, get_twin
from alignment.views.progress import progress

_OWN = "package.module:function"


@click.command("trajectory", epilog="Exit status: 0 aligned, 1 diverged, 2 could not decide or could not run.")
@click.argument("twin", required=False, metavar="[TWIN]")
@click.option("--steps", type=click.IntRange(1), default=200, show_default=True, help="Steps of training.")
@click.option(
    "--optimizer", "kind", type=click.Choice(KINDS), help="adam decays by L2, adamw decoupled  [default: adam]"
)
@click.option("--lr", type=float, help="Learning rate  [default: 0.001]")
@click.option("--weight-decay", type=float, help="Of all parameters that no group of a recipe has otherwise.")
@click.option("--momentum", type=float, help="Of sgd.")
@click.option("--nesterov", is_flag=True, help="Nesterov's momentum.")
@click.option("--betas", type=(float, float), metavar="B1 B2", help="Of adam and adamw  [default: 0.9 0.999]")
@click.option("--eps", type=float, help="Of adam and adamw  [default: 1e-08]")
@click.option("--amsgrad", is_flag=True, help="AMSGrad, of adam and adamw.")
@click.option(
    "--schedule",
    metavar="KIND[:NAME=VALUE,…]",
    help=f"Of the learning rate, options by torch's names, such as step:step_size=50 or multistep:milestones=[50,100]: "
    f"{', '.join(SCHEDULES)}.",
)
@click.option("--clip", metavar="KIND:LIMIT", help=f"Clip gradients: {', '.join(CLIPS)}, such as 'global norm:1'.")
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.toml",
    help="Tables [optimizer], [schedule], [clip] and [[groups]]; the options above change what it says.",
)
@click.option("--reference-optimizer", metavar=_OWN, help="Makes the reference's own optimizer of its model.")
@click.option("--candidate-optimizer", metavar=_OWN, help="Makes the candidate's.")
@click.option(
    "--epoch", type=click.IntRange(1), metavar="STEPS", help="Steps of an epoch, for schedules that go by these."
)
@click.option(
    "--envelope",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Runs of the reference with its weights moved by one unit in the last place.",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Look at all weights so often  [default: at most 200 times]",
)
@click.option(
    "--probe",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="STEPS",
    help="Of a further run in float64, on four rows of each batch.",
)
@click.option(
    "--float64", is_flag=True, help="Run everything in float64, where a right port parts by no more than 1e-10."
)
@click.option(
    "--fault",
    "planted",
    multiple=True,
    metavar="NAME",
    help=f"Plant a fault of training on the candidate, to see it found: {', '.join(TRAINING_FAULTS)}; or one of --inject.",
)
@shared_options
@run_options
@view_options
@output_options
def command(
    twin: str | None,
    steps: int,
    envelope: int,
    every: int | None,
    epoch: int | None,
    probe: int,
    float64: bool,
    planted: tuple[str, ...],
    reference_optimizer: str | None,
    candidate_optimizer: str | None,
    recipe_file: Path | None,
    json_file: Path | None,
    html_file: Path | None,
    details: bool,
    waivers_file: Path | None,
    junit_file: Path | None,
    github: bool | None,
    verbose: bool,
    quiet: bool,
    faults: tuple[str, ...],
    precision: str,
    strict: bool,
    **given: Any,
) -> int:
    """Train both sides of TWIN on the same batches, and tell rounding from mistakes.

    Three curves: free-running; re-synchronised, the candidate taking the reference's weights and optimizer state before
    every step; and the reference against itself with its weights moved by one unit in the last place. TWIN is a built-in
    name, or package.module:attribute.
    """
    refuse_unwritable(json_file, html_file, junit_file)
    gate = open_gate(waivers_file, junit_file, github)
    for name, said in (("--precision", precision != "float32"), ("--strict", strict), ("--details", details)):
        if said:
            raise AlignmentError(f"{name} means nothing for a training: it goes with align check")
    chosen = {
        name: given.pop(name)
        for name in (
            "kind",
            "lr",
            "weight_decay",
            "momentum",
            "nesterov",
            "betas",
            "eps",
            "amsgrad",
            "schedule",
            "clip",
        )
    }
    training = Training(
        steps=steps,
        recipe=make_recipe(recipe_file, **chosen),
        envelope=envelope,
        every=every,
        epoch=epoch,
        probe=probe,
        float64=float64,
        faults=(*planted, *faults),
        reference_optimizer=reference_optimizer,
        candidate_optimizer=candidate_optimizer,
    )
    reserve_threads(given["threads"])
    asked = twin or DEFAULT_TWIN
    options = make_options(get_twin(asked), faults=(), strict=False, **given)
    with progress("preparing") as show:
        show(f"{asked}: preparing")
        report = trajectory(asked, options, training, partial(show, f"{asked}: training"))
    return finish(report, json_file, verbose, quiet, gate, html_file)


def make_recipe(path: Path | None, *, schedule: str | None, clip: str | None, kind: str | None, **given: Any) -> Recipe:
    """The recipe of a file, changed by what the command line says.

    Raises:
        AlignmentError: the file can't be read, or a value is not right.
    """
    data = {} if path is None else read_recipe(path).to_dict()
    names = {"lr": "learning_rate"}
    said = {names.get(name, name): value for name, value in given.items() if value is not None and value is not False}
    optimizer = {**data.get("optimizer", {}), **({} if kind is None else {"kind": kind}), **said}
    data = {**data, "optimizer": optimizer}
    if schedule is not None:
        data["schedule"] = _schedule(schedule)
    if clip is not None:
        what, _, limit = clip.rpartition(":")
        try:
            data["clip"] = {"kind": what.strip(), "limit": float(limit)}
        except ValueError:
            raise AlignmentError(f"--clip takes KIND:LIMIT, such as 'global norm:1', not {clip!r}") from None
    return Recipe.from_dict(data)


def _schedule(text: str) -> dict[str, Any]:
    kind, _, options = text.partition(":")
    found: dict[str, Any] = {"kind": kind.strip()}
    try:
        parsed = ast.parse(f"f({options})", mode="eval").body
        assert isinstance(parsed, ast.Call)
        if parsed.args:
            raise ValueError("positional")
        for keyword in parsed.keywords:
            assert keyword.arg is not None
            found[keyword.arg] = _literal(keyword.value)
    except (SyntaxError, ValueError, AssertionError):
        raise AlignmentError(
            f"--schedule takes KIND:NAME=VALUE,NAME=VALUE, such as step:step_size=50,gamma=0.5, not {text!r}"
        ) from None
    return found


def _literal(node: ast.expr) -> Any:
    """A value as Python writes it; a bare word is a text."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
