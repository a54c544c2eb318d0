"""The command line: each command reads its arguments, calls one function and prints the result."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from selfplay_gym import __version__, cli_bench, cli_eval, cli_tools, cli_train, interrupts
from selfplay_gym.cli_common import UsageError
from selfplay_gym.errors import SelfPlayError
from selfplay_gym.output import inert

INTERRUPTED = 130

app = typer.Typer(
    name="selfplay-gym",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (cli_train, cli_eval, cli_tools):
    app.add_typer(part.commands)
app.add_typer(cli_bench.commands, name="bench")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"selfplay-gym {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A verifiable self-play reasoning gym with code-execution rewards."""


def main() -> None:
    """Run the command line; what goes wrong is one line on stderr and exit code 1 (2 for usage, 130 for Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal that knows ASCII only, a file name in no encoding
    try:
        with interrupts.remembered():
            code = _run(sys.argv[1:] or ["--help"])
        sys.stdout.flush()
    except UsageError as error:
        code = _fail(_usage(error), 2)
    except SelfPlayError as error:
        code = _fail(str(error))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        code = _close_stdout()
    except OSError as error:
        reason = error.strerror or str(error)
        code = _fail(f"{error.filename}: {reason}" if error.filename else reason)
        if error.errno == errno.ENOSPC:
            _close_stdout()
    except KeyboardInterrupt:
        code = _fail("interrupted", INTERRUPTED)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    # Not `app()`, which prints usage errors as boxes and says nothing after Ctrl-C.
    command = typer.main.get_command(app)
    try:
        with command.make_context("selfplay-gym", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _usage(error: Any) -> str:
    path = error.ctx.command_path if error.ctx else "selfplay-gym"
    message = error.format_message().replace("Value error, ", "")
    if isinstance(error.__cause__, ValidationError):  # which typer takes the words of, but not the value
        got = repr(error.__cause__.errors()[0]["input"])
        message += "" if got in message else f", got {got}"
    return f"{message} (see {path} --help)"


def _fail(message: str, code: int = 1) -> int:
    line = inert(" ".join(message.split()))
    Console(stderr=True).print(
        f"error: {line}", style="red", highlight=False, soft_wrap=True, markup=False, emoji=False
    )
    return code


def _close_stdout() -> int:
    """Let what is left of the output go, so that Python does not complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1


if __name__ == "__main__":
    main()
