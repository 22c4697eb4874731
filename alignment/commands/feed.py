"""`align feed`: do two loaders give the same batches?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alignment.commands._gate import open_gate
from alignment.commands._options import finish, html_option, json_option, output_options, refuse_unwritable
from alignment.training.data_stage import compare_feeds
from alignment.twins import import_attribute
from alignment.views.progress import progress


@click.command("feed", epilog="Exit status: 0 aligned, 1 diverged, 2 could not decide or could not run.")
@click.argument("reference", metavar="MODULE:REFERENCE")
@click.argument("candidate", metavar="MODULE:CANDIDATE")
@click.option(
    "--dataset",
    metavar="MODULE:NAME",
    help="Gives all samples as they are stored, by which a draw is told  [default: the loaders' own data set]",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="What both sides were seeded with, to tell draws by.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Read the first N batches of each side alone.")
@json_option
@html_option
@output_options
def command(
    reference: str,
    candidate: str,
    dataset: str | None,
    seed: int | None,
    limit: int | None,
    json_file: Path | None,
    html_file: Path | None,
    verbose: bool,
    quiet: bool,
    **gated: Any,
) -> int:
    """Compare the batches of two loaders: sizes, order of samples, dtypes, padding, labels.

    REFERENCE and CANDIDATE are names in a module of yours: a loader of either framework, a list of batches, or a function that
    returns one. The functions seed what they need; each is called, and its first batch read, before the next.
    """
    refuse_unwritable(json_file, html_file, gated["junit_file"])
    gate = open_gate(**gated)
    with progress("comparing batches") as show:
        ours, theirs = (_loader(name) for name in (reference, candidate))
        report = compare_feeds(
            ours,
            theirs,
            dataset=None if dataset is None else _loader(dataset),
            seed=seed,
            limit=limit,
            progress=lambda done, total: show("comparing batches", done, total),
        )
    return finish(report, json_file, verbose, quiet, gate, html_file)


def _loader(name: str) -> Any:
    if ":" not in name:
        raise click.UsageError(f"{name!r}: name a loader as MODULE:NAME, such as my_data:torch_loader")
    return import_attribute(name, object)
