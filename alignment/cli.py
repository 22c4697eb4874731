"""The command line `align`. Exit status everywhere: 0 aligned, 1 diverged, 2 could not decide or could not run."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence

import click
from rich.console import Console

from alignment.errors import AlignmentError
from alignment.views.github import error, on_github
from checkpoints.errors import CheckpointError
from fake_data.errors import DataError

# Command -> module under alignment.commands; imported only when asked for, so that `align --help` is instant.
COMMANDS = {
    "check": "check",
    "explain": "explain",
    "trajectory": "trajectory",
    "capture": "capture",
    "compare": "compare",
    "feed": "feed",
    "report": "report",
    "baseline": "baseline",
    "map": "map",
    "sweep": "sweep",
    "train": "train",
    "convert": "convert",
    "diff": "diff",
    "fake-data": "fake_data",
    "doctor": "doctor",
}

EXIT_COULD_NOT_RUN = 2


class LazyGroup(click.Group):
    """A click group that imports a command's module on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"alignment.commands.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="alignment", prog_name="align")
def align() -> None:
    """Prove that a reference model and its candidate port compute the same thing, and say where they do not."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `align` and exit: bad input gives one paragraph on standard error and status 2, never a traceback."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None, prog_name: str = "align") -> int:
    """Run `align` with `arguments` (default: sys.argv) and return the exit status."""
    try:
        status = align.main(args=arguments, prog_name=prog_name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return EXIT_COULD_NOT_RUN
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted: nothing was decided.")
    except (AlignmentError, CheckpointError, DataError) as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader of our output went away (`align … | head`): nobody is left to tell.
        return EXIT_COULD_NOT_RUN
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}")
    except MemoryError:
        return _fail("out of memory: choose smaller sizes with --set or a smaller --batch-size.")
    except SystemExit as error:
        # Code we import or run asked to stop: that is no verdict, whatever status it chose.
        return _fail(f"the program was asked to stop ({error.code}) before anything was decided.")
    except Exception:
        # A mistake of ours, not of the user's. Python's own status would be 1, which here means diverged.
        traceback.print_exc()
        return _fail("internal error: this is a fault of alignment, not of your models; please report the lines above.")
    return int(status or 0)


def _fail(message: str) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]error:[/] ", end="")
    click.echo(message, err=True)
    if on_github():
        click.echo(error(message, title="align could not run"))
    return EXIT_COULD_NOT_RUN
