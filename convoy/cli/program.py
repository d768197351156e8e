"""The program ``convoy``: its commands, its exit codes, its error messages."""

from __future__ import annotations

import logging
import os
import signal
import sys
from importlib import import_module

import click

from convoy import __version__
from convoy.contract.errors import ConvoyError

# name -> one line of help. The line stands here so that `convoy --help` imports no command.
COMMANDS = {
    "demo": "The main job, end to end, on data that comes with Convoy.",
    "train": "Train a network; writes a run folder.",
    "recipes": "List the recipes that `train` knows.",
    "describe": "Print a network's layers, costs and receptive fields, beside the lecture's numbers.",
    "export": "Turn a run into a validated ONNX file.",
    "validate": "Check an exported model again.",
    "deploy": "Write an exported model as the next version into a model repository.",
    "rollback": "Go back to an older version of a model.",
    "models": "List the models of a repository, their versions and what is served.",
    "serve": "Run NVIDIA Triton on a model repository until stopped.",
    "probe": "Replay the golden inputs on a running server.",
    "predict": "Classify images through a running server.",
    "score": "Classify a whole set of images into a Parquet file.",
    "bench": "Measure a served model's throughput and latency beside this machine's limit.",
    "tune": "Find a model's batching configuration by measurement.",
    "doctor": "Say what this machine can do, and what to do about what is missing.",
}


class _Program(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"convoy.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else " `convoy --help` lists the commands."
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="convoy")
@click.option("-v", "--verbose", count=True, help="Log more to stderr (-vv: everything).")
def program(verbose: int) -> None:
    """From a PyTorch convolutional network to a validated ONNX file, a Triton server and its callers.

    \b
    The main line:
      convoy train lenet5                  a run folder: weights, metrics, curves
      convoy export runs/RUN               an ONNX file, proven equal to the network
      convoy deploy exports/RUN            the next version in model_repository/
      convoy serve                         NVIDIA Triton on it, gRPC and REST
      convoy predict lenet5 digit.png      an answer
    `convoy demo` does all of it on data that comes along.

    Exit status: 0 done, 1 the work failed, 2 wrong use, 130 interrupted. Results go to stdout, logs and progress to stderr.
    """  # noqa: D301  click's mark for text that is not to be wrapped
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def main() -> None:
    """Run the program and exit: 0 done, 1 the work failed, 2 wrong use, 130 interrupted."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # newer builds of ONNX Runtime report models to their maker by default
    try:
        status = program.main(standalone_mode=False)  # what a command passed to ctx.exit(); None of the others
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConvoyError as error:
        click.echo(f"convoy: error: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("convoy: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (`head`, say) has gone
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        click.echo(f"convoy: error: {error}{_hint(error)}", err=True)
        sys.exit(1)


def _hint(error: OSError) -> str:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ". The disk is full: nothing half-written was kept; make room and run the same command again."
    return ""
