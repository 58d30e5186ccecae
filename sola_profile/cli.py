"""The ``sola-profile`` command: a table of its commands, loaded when they are called.

``sola-profile --model sola_t`` is short for ``sola-profile profile --model sola_t``. Exit codes: ``exit_codes.py``.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import cast

import click

from sola_profile.case import nearest
from sola_profile.commands.output import ARGUMENTS
from sola_profile.exit_codes import MEANINGS, ExitCode
from sola_vision.version import __version__

DEFAULT = "profile"

# errors of a disk without room
FULL = (errno.ENOSPC, errno.EDQUOT)

# name → where its click command lives; one line per command
COMMANDS: Mapping[str, str] = {
    DEFAULT: "sola_profile.commands.profile:profile",
    "compare": "sola_profile.commands.compare:compare",
    "formula": "sola_profile.commands.formula:formula",
    "predict": "sola_profile.commands.predict:predict",
    "machine": "sola_profile.commands.machine:machine",
    "place": "sola_profile.commands.place:place",
    "study": "sola_profile.commands.study:study",
    "experiment": "sola_profile.commands.experiment:experiment",
    "kernels": "sola_profile.commands.kernels:kernels",
    "fit": "sola_profile.commands.fit:fit",
    "trace": "sola_profile.commands.trace:trace",
    "audit": "sola_profile.commands.audit:audit",
    "selftest": "sola_profile.commands.selftest:selftest",
}


class LazyGroup(click.Group):
    """Loads a command when it is asked for, and takes options without a command as those of the default one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click passes it
        """All names, the default first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        return cast(click.Command, getattr(import_module(module), name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of that name."""
        if args[0] not in COMMANDS:
            raise click.UsageError(f"there is no command {args[0]!r}{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of options that are not the group's own."""
        own = {name for option in self.get_params(ctx) for name in option.opts}
        typed = list(args)
        if args and args[0].startswith("-") and args[0].split("=")[0] not in own:
            args = [DEFAULT, *args]
        # click keeps no copy of what was typed, and every report names its command
        ctx.meta[ARGUMENTS] = typed
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of the default command as well, since they work without its name."""
        command = self.get_command(ctx, DEFAULT)
        assert command is not None
        command.format_options(click.Context(command, parent=ctx, info_name=DEFAULT), formatter)
        self.format_commands(ctx, formatter)


# \b keeps click from wrapping the lines that follow
EXAMPLES = """\b
Examples:
  sola-profile --model sola_t --res 224,512,1024
  sola-profile --model sola_s --res 512x2048 --no-measure
  sola-profile formula --model timm:pvt_v2_b0
  sola-profile predict --model timm:resnet18 --measure
  sola-profile place --model sola_t --res 512 --softmax 3
  sola-profile study --model sola_t --res 224,512
  sola-profile kernels --quick
  sola-profile compare old.json new.json
"""
CODES = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())


@click.group(
    cls=LazyGroup,
    epilog=f"{EXAMPLES}\n{CODES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="sola-profile")
def cli() -> None:
    """Profile vision backbones that mix linear and softmax attention, from 224 to 4096 pixels.

    Without a command: count, predict and measure one model at several image sizes.
    """


def main() -> None:
    """Run the command and leave with its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # closed by whoever started the command, who wants to see nothing
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  open to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        # not every encoding has the signs of the tables, and a result is worth more than its signs
        sys.stdout.reconfigure(errors="replace")
    try:
        code = cli.main(prog_name="sola-profile", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe has left
        code = ExitCode.INTERNAL
    except OSError as error:
        if error.errno not in FULL:
            raise
        click.echo(f"not everything was written: {error.strerror}", err=True)
        code = ExitCode.INTERNAL
    _flush()
    sys.exit(code)


def _flush() -> None:
    """Write what is left; where it can't be written Python would complain about the same again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
