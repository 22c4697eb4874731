"""`align sweep`: many checks, each in a process of its own, with results that survive whatever happens."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from alignment.cases import DEFAULT_TIMEOUT, Case
from alignment.commands._options import refuse_unwritable
from alignment.commands.check import case_options
from alignment.errors import AlignmentError
from alignment.report import EXIT_STATUS
from alignment.sweep import CaseResult, local, on_ray, sweep, verdict_of
from alignment.twins import DEFAULT_TWIN, TWINS, get_twin, parse_settings
from alignment.views.progress import progress
from alignment.views.terminal import MARKS, STYLES
from checkpoints.tables import parse_json, parse_toml

# Cases listed in the summary; all are in the results file.
SHOWN = 40


def _axes() -> list[click.Option]:
    """The options of `align check` that describe a case, each of which takes several values here."""
    options = []
    for name, option in case_options().items():
        if option.is_flag:
            options.append(click.Option([f"--{name}"], is_flag=True, help=f"{option.help}"))
        else:
            metavar = "NAME=A,B,…" if name == "set" else "A,B,…"
            options.append(click.Option([f"--{name}"], multiple=True, metavar=metavar, help=_brief(option)))
    return options


def _brief(option: click.Option) -> str:
    """Help without the default: what is not given is left to `align check`."""
    return re.sub(r"\s*\[default.*\]", "", option.help or "").replace(" May be repeated.", "")


@click.command(
    "sweep",
    epilog="Exit status: 0 every case is aligned, 1 at least one diverged, 2 could not decide or could not run.",
)
@click.argument("twins", nargs=-1, metavar="[TWIN]...")
@click.option("--all", "every", is_flag=True, help="Every built-in twin.")
@click.option(
    "--cases",
    "cases_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A TOML or JSON file of cases, instead of twins and options here.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("sweep.jsonl"),
    show_default=True,
    metavar="FILE",
    help="Results, a JSON line a case. What is in it already is not run again.",
)
@click.option("--retry", is_flag=True, help="Run again what is inconclusive in the results.")
@click.option(
    "--case-timeout",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long a case may take before it is killed.",
)
@click.option("--jobs", type=click.IntRange(1), help="Cases at a time on this machine  [default: one a core]")
@click.option(
    "--on",
    "where",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run on this machine, or on a Ray cluster.",
)
@click.option("--ray-address", metavar="ADDRESS", help="Of the cluster  [default: RAY_ADDRESS, or a new one here]")
def command(
    twins: tuple[str, ...],
    every: bool,
    cases_file: Path | None,
    output: Path,
    retry: bool,
    case_timeout: float,
    jobs: int | None,
    where: str,
    ray_address: str | None,
    **given: Any,
) -> int:
    """Check many cases: every TWIN with every combination of the values given.

    An option of `align check` takes several values here: separated by commas, whole numbers also as a range (--seed 0..9).
    --set is an axis for each name; --inject and --step are an axis each time they are given. Each case runs in a process
    of its own with one thread: one that crashes or hangs is inconclusive and costs no other. The results come as they are
    reached; run the same command again after an interruption, and only what is missing is run.
    """
    chosen = {_dashed(name): values for name, values in given.items() if values}
    if cases_file is not None and (twins or every or chosen):
        raise AlignmentError("--cases brings the whole list: leave out TWIN, --all and the options of a check")
    if every and twins:
        raise AlignmentError(f"--all takes every twin: leave out {' '.join(twins)}, or leave out --all")
    if where == "ray" and jobs is not None:
        raise AlignmentError("--jobs is for this machine: on a Ray cluster every core runs a case")
    if where == "local" and ray_address is not None:
        raise AlignmentError("--ray-address goes with --on ray")
    if cases_file is not None:
        cases = read_cases(cases_file)
    else:
        cases = grid(list(TWINS) if every else list(twins) or [DEFAULT_TWIN], chosen)
    for case in cases:
        _refuse_unknown(case)
    refuse_unwritable(output)
    engine = local(jobs, case_timeout) if where == "local" else on_ray(ray_address, case_timeout)
    results = _show(cases, sweep(cases, output, engine, retry), output, where)
    return EXIT_STATUS[verdict_of(results)]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


# --------------------------------------------------------------------------------------------------------------- cases


def grid(twins: Sequence[str], given: Mapping[str, Any]) -> list[Case]:
    """Every combination of twins and values. given: option -> the texts that were given for it, or True for a flag."""
    options = case_options()
    axes: list[list[tuple[str, str | None, Any]]] = []  # each a list of (option, setting, value)
    for name, texts in given.items():
        option = options[name]
        if option.is_flag:
            axes.append([(name, None, True)])
        elif name == "set":
            settings: dict[str, list[str]] = {}
            for text in texts:
                setting, equals, values = text.partition("=")
                if not equals:
                    raise AlignmentError(f"--set takes NAME=VALUE,VALUE, not {text!r}")
                settings.setdefault(setting.strip(), []).extend(_values(values))
            axes += [[(name, setting, value) for value in values] for setting, values in settings.items()]
        else:
            parts: list[list[tuple[str, str | None, Any]]] = [
                [(name, None, _convert(option, value)) for value in _values(text)] for text in texts
            ]
            axes += parts if option.multiple else [list(itertools.chain(*parts))]
    return [Case(twin, _together(chosen, options)) for twin in twins for chosen in itertools.product(*axes)]


def _together(chosen: Sequence[tuple[str, str | None, Any]], options: Mapping[str, click.Option]) -> dict[str, Any]:
    together: dict[str, Any] = {}
    for name, setting, value in chosen:
        if setting is not None:
            together.setdefault(name, {})[setting] = value
        elif options[name].multiple:
            together.setdefault(name, []).append(value)
        else:
            together[name] = value
    return together


def _values(text: str) -> Iterator[str]:
    """The values of a list such as ``1,3..5``."""
    for part in text.split(","):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", part.strip())
        if span is None:
            yield part.strip()
        elif int(span[1]) > int(span[2]):
            raise AlignmentError(f"{part.strip()}: an empty range")
        else:
            yield from map(str, range(int(span[1]), int(span[2]) + 1))


def _convert(option: click.Option, value: Any) -> Any:
    """One value as `align check` would take it; click's own error otherwise."""
    return option.type.convert(str(value), option, click.get_current_context(silent=True))


def read_cases(path: Path) -> list[Case]:
    """The cases of a TOML or JSON file: a list named ``case`` of tables with ``twin`` and options of `align check`.

    Raises:
        AlignmentError: it can't be read, or says something that `align check` doesn't know.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = parse_json(text) if path.suffix == ".json" else parse_toml(text)
    except (OSError, ValueError) as error:
        raise AlignmentError(f"{path}: can't read the cases: {error}") from error
    entries = content.get("case") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or set(content) != {"case"}:
        raise AlignmentError(f'{path}: a file of cases is a list named "case" ([[case]] in TOML), and nothing else')
    return [_read_case(f"{path}: case {number}", entry) for number, entry in enumerate(entries, start=1)]


def _read_case(where: str, entry: Any) -> Case:
    options = case_options()
    if not isinstance(entry, dict) or not isinstance(entry.get("twin"), str):
        raise AlignmentError(f'{where}: names no twin: twin = "NAME"')
    unknown = sorted(set(entry) - {"twin", *options})
    if unknown:
        raise AlignmentError(
            f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(sorted({'twin', *options}))}"
        )
    read: dict[str, Any] = {}
    for name, value in entry.items():
        if name != "twin":
            read[name] = _read_value(where, options[name], name, value)
    return Case(entry["twin"], read)


def _read_value(where: str, option: click.Option, name: str, value: Any) -> Any:
    scalar = (str, int, float)
    if name == "set" and isinstance(value, dict) and all(isinstance(one, scalar) for one in value.values()):
        return value
    if option.is_flag and isinstance(value, bool):
        return value
    values = value if option.multiple and isinstance(value, list) else [value]
    if name == "set" or option.is_flag or not all(type(one) in scalar for one in values):
        raise AlignmentError(f"{where}: {name} = {value!r} is not a value that --{name} takes")
    try:
        converted = [_convert(option, one) for one in values]
    except click.BadParameter as error:
        raise AlignmentError(f"{where}: {name}: {error.message}") from error
    return converted if option.multiple else converted[0]


def _refuse_unknown(case: Case) -> None:
    """Twins and settings that don't exist are told before the work; those of a module only it knows."""
    if ":" not in case.twin:
        settings = case.options.get("set", {})
        parse_settings(get_twin(case.twin), [f"{name}={_said(value)}" for name, value in settings.items()])


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------------------------------------------------------- view


def _show(cases: Sequence[Case], running: Iterator[CaseResult], output: Path, where: str) -> list[CaseResult]:
    """Print each result as it comes, and a summary."""
    total = len({case.id for case in cases})
    results: list[CaseResult] = []
    earlier = 0
    try:
        with progress("sweep") as show, contextlib.closing(running):  # type: ignore[type-var]
            show("sweep", 0, total)
            for result in running:
                results.append(result)
                earlier += result.earlier
                if not result.earlier:
                    click.echo(_line(result, len(results), total))
                show("sweep", len(results), total)
    except KeyboardInterrupt:
        raise AlignmentError(
            f"interrupted: {len(results)} of {total} cases are finished and kept in {output}; the same command goes on from there"
        ) from None
    order = {case.id: place for place, case in enumerate(cases)}
    _summary(sorted(results, key=lambda result: order[result.case.id]), earlier, output)
    return results


def _line(result: CaseResult, number: int, total: int) -> str:
    mark = click.style(MARKS[result.verdict], fg={"aligned": "green", "diverged": "red"}.get(result.verdict, "yellow"))
    return f"{number:>{len(str(total))}}/{total} {mark} {result.case}  {result.seconds:.1f} s{_why(result)}"


def _why(result: CaseResult) -> str:
    """Where a case diverged, or else why nothing was decided, in a few words."""
    if result.verdict == "aligned":
        return ""
    place = ": ".join(part for part in (result.stage, result.tensor) if part)
    return f"  {place or _first_line(result.reason)}"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _summary(results: Sequence[CaseResult], earlier: int, output: Path) -> None:
    console = Console(highlight=False)
    counts: Counter[str] = Counter(result.verdict for result in results)
    table = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False, show_header=False)
    for verdict, style in STYLES.items():
        table.add_row(Text(MARKS[verdict], style), Text(verdict, style), str(counts[verdict]))
    console.print()
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    read = f", {earlier} of them from before" if earlier else ""
    console.print(f"  {len(results)} cases{read}; results in {escape(str(output))}", soft_wrap=True)
    bad = [result for verdict in list(STYLES)[1:] for result in results if result.verdict == verdict]
    for result in bad[:SHOWN]:
        text = Text.assemble((f"{MARKS[result.verdict]} ", STYLES[result.verdict]), f"{result.case}{_why(result)}")
        if result.tensor is not None:
            text.append(f"; {_first_line(result.reason)}", "dim")
        console.print(Padding(text, (0, 0, 0, 2), expand=False))
    if len(bad) > SHOWN:
        console.print(f"  … and {len(bad) - SHOWN} more in {escape(str(output))}", soft_wrap=True)


command.params += _axes()
