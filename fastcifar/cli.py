"""The `fastcifar` command: its subcommands, exit codes, and error messages with option names.

Slow imports are inside the commands, so that `fastcifar --help` answers at once.
"""

import errno
import sys

import typer

from fastcifar.commands.augment import augment
from fastcifar.commands.bench import bench
from fastcifar.commands.compare import compare
from fastcifar.commands.evaluate import evaluate
from fastcifar.commands.info import info
from fastcifar.commands.options import INTERRUPTED, in_options
from fastcifar.commands.prep import prep
from fastcifar.commands.profile import profile
from fastcifar.commands.recipes import recipes
from fastcifar.commands.train import train
from fastcifar.runtime.errors import RepeatedError, UserError

app = typer.Typer(
    help="Train small-image classifiers as fast as the hardware allows.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (prep, train):
    app.command()(command)
app.command(name="eval")(evaluate)
for command in (compare, info, augment, profile, recipes, bench):
    app.command()(command)


def main() -> None:
    """Run the command line; exit 0: done, 2: the user can fix it and one line on stderr says how, 1: a bug."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except RepeatedError:
        code = 2
    except UserError as error:
        code = _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has ended, as in `fastcifar recipes | head -1`
        sys.stderr.close()
        code = 0
    except OSError as error:  # no permission, a full disk, a folder where a file should be
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code = _fail(f"{error.filename2 or error.filename or 'a file'}: {error.strerror}")
    except Exception as error:
        if not hasattr(error, "format_message"):  # only usage errors have it; their class differs between versions of typer
            raise
        code = _fail(error.format_message())
    sys.exit(code or 0)


def _fail(message: str) -> int:
    print(f"fastcifar: {in_options(message)}", file=sys.stderr)
    return 2
