"""`align fake-data`: write batches, made-up reviews, or a review file as arrays."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from alignment.errors import AlignmentError
from alignment.inputs import declared_spec
from alignment.twins import DEFAULT_TWIN, get_twin, parse_settings
from alignment.views.progress import progress
from fake_data import adversarial_batches, make_batch, save_batches
from fake_data.amazon import balanced_split, random_split, save_reviews, tokenise_reviews, write_synthetic
from fake_data.saved import Form

SHOWN_BAD_LINES = 5
DEFAULT_LENGTH = 64

FORCE = click.option("--force", is_flag=True, help="Replace what is there.")
SEED = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same bytes."
)
OUT_FOLDER = click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Where to write."
)


@click.group("fake-data")
def command() -> None:
    """Make what goes into a model: batches, made-up reviews, or a real review file as arrays."""


@command.command()
@OUT_FOLDER
@SEED
@click.option("--twin", "name", default=DEFAULT_TWIN, show_default=True, metavar="NAME", help="Whose inputs to make.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A size or other setting of the twin.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Rows of a batch.")
@click.option("--length", type=click.IntRange(1), help="Tokens of a row  [default: 64, or the model's longest if less]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "npz"]),
    default="safetensors",
    show_default=True,
    help="Of the files.",
)
@FORCE
def batches(
    out: Path,
    seed: int,
    name: str,
    assignments: tuple[str, ...],
    batch_size: int,
    length: int | None,
    form: Form,
    force: bool,
) -> None:
    """Write a random batch of a twin's inputs, and the batches on which ports go wrong.

    One file each, and manifest.json with seed, shapes and hashes.
    """
    _refuse_overwriting(out, force)
    twin = get_twin(name)
    spec = declared_spec(twin, parse_settings(twin, assignments))
    length = min(DEFAULT_LENGTH, spec.max_length) if length is None else length
    made = [
        make_batch(spec, seed=seed, batch_size=batch_size, length=length),
        *adversarial_batches(spec, seed=seed, batch_size=batch_size, length=length),
    ]
    save_batches(out, made, spec, seed, form)
    for batch in made:
        shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in batch.inputs.items())
        click.echo(f"{batch.name:14} {shapes}")
    click.echo(f"{len(made)} batches of {twin.name}, seed {seed}: {out}")


@command.command()
@click.option("--count", required=True, type=click.IntRange(1), metavar="N", help="How many reviews.")
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write; compressed when the name ends in .gz.",
)
@SEED
@FORCE
def synthetic(count: int, out: Path, seed: int, force: bool) -> None:
    """Write made-up reviews in the published format, one JSON object a line."""
    _refuse_overwriting(out, force)
    with progress("writing reviews") as show:
        write_synthetic(out, count, seed, progress=partial(show, "writing reviews"))
    click.echo(f"{count:,} reviews, seed {seed}: {out}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@OUT_FOLDER
@click.option(
    "--split",
    "kind",
    type=click.Choice(["balanced", "random"]),
    default="balanced",
    show_default=True,
    help="As many of each rating (8,000 / 1,000 / 1,000 a class), or any 40,000 / 5,000 / 5,000.",
)
@click.option("--length", type=click.IntRange(1), default=512, show_default=True, help="Tokens of a row.")
@click.option(
    "--min-count", type=click.IntRange(1), default=1, show_default=True, help="A word met less often becomes <unknown>."
)
@click.option("--max-size", type=click.IntRange(1), help="Only that many words, the most frequent.")
@click.option("--strict", is_flag=True, help="Stop at the first line that holds no review.")
@click.option("--allow-truncated", is_flag=True, help="Keep what a cut or damaged gzip file still holds.")
@SEED
@FORCE
def amazon(
    file: Path,
    out: Path,
    kind: str,
    length: int,
    min_count: int,
    max_size: int | None,
    strict: bool,
    allow_truncated: bool,
    seed: int,
    force: bool,
) -> None:
    """Turn a file of Amazon reviews into arrays: data.npy, label.npy, num_tokens.npy, vocabulary.txt, manifest.json.

    FILE holds JSON lines or Python dict literals, gzip or plain.
    """
    _refuse_overwriting(out, force)
    if file.resolve().parent == out.resolve():
        raise AlignmentError(f"{file} lies in {out}, where it might be overwritten; choose another --out")
    reading = f"reading {file.name}"
    with progress(reading) as show:
        tokenised = tokenise_reviews(
            file, strict=strict, allow_truncated=allow_truncated, progress=partial(show, reading)
        )
    split = (
        balanced_split(tokenised.labels, seed=seed) if kind == "balanced" else random_split(len(tokenised), seed=seed)
    )
    reviews = tokenised.encode(split.rows(), length=length, min_count=min_count, max_size=max_size)
    about = {"source": file.name, "reviews": len(tokenised), "split": kind, "seed": seed, "length": length}
    save_reviews(out, reviews, split=split, about=about)
    parts = ", ".join(f"{name} {end - start:,}" for name, (start, end) in split.parts().items())
    click.echo(f"{len(tokenised):,} reviews read, {len(reviews.labels):,} written: {parts}")
    click.echo(f"{reviews.num_tokens:,} ids, padding included; rows of {length} tokens")
    for note in (*reviews.notes, *split.notes):
        click.echo(f"note: {note}")
    if reviews.bad:
        click.echo(f"{reviews.bad:,} lines held no review:")
        for line in reviews.bad_lines[:SHOWN_BAD_LINES]:
            click.echo(f"  line {line.number:,}: {line.why}")
        if reviews.bad > SHOWN_BAD_LINES:
            click.echo("  …")
    click.echo(f"{kind} split, seed {seed}: {out}")


def _refuse_overwriting(path: Path, force: bool) -> None:
    if force or not (path.is_symlink() or path.exists()) or (path.is_dir() and not any(path.iterdir())):
        return
    what = "is not empty" if path.is_dir() else "exists"
    raise AlignmentError(f"{path} {what}; use --force to replace what has the same name, or another --out")
