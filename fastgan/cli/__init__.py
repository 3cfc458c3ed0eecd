"""The command line: `fastgan train | resume | sample | doctor | bench`.

Nothing heavy is imported before a command runs, so that help is there at once. What a user caused
is said in one sentence on standard error; `--debug`, anywhere on the line, shows the traceback.
Exit codes: 0 done (or stopped by a signal with everything saved), 1 an error, 2 a wrong line.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fastgan import __version__
from fastgan.cli.benchmarks import CONTEXT, bench
from fastgan.cli.doctor import doctor
from fastgan.cli.sampling import sample
from fastgan.cli.training import resume, train
from fastgan.errors import FastganError

app = typer.Typer(
    name="fastgan",
    help="Train a DCGAN, fast, on your own images.",
    epilog="Start with: fastgan train photos/ --image-size 64 --steps 20000 --out runs/photos",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(train)
app.command()(resume)
app.command()(sample)
app.command()(doctor)
app.command(context_settings=CONTEXT)(bench)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastgan {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error; anywhere on the line."),
    ] = False,
) -> None:
    """Train a DCGAN, fast, on your own images."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line (by default that of the process); always raises `SystemExit`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        app([word for word in arguments if word != "--debug"], prog_name="fastgan")
    except (FastganError, OSError, MemoryError, RuntimeError) as error:
        sentence = _sentence(error)
        if sentence is None or debug:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(1) from None


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None where the error is a defect of fastgan and not theirs."""
    if isinstance(error, FastganError):
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    # torch's error derives from RuntimeError, and is recognised without importing torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "there is not enough memory: use a smaller --batch-size, or --precision bf16"
    return None
