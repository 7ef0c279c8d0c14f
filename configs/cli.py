"""The end of entry scripts: their messages and exit codes."""

import io
import sys
from collections.abc import Callable

from configs.messages import EXPECTED, format_error


def run(main: Callable[[], None], hint: str = "") -> None:
    """Call a script's `main`, and end the process as a user of a command line expects.

    An expected error becomes one line on stderr and code 1, Ctrl-C one line and code 130. Anything
    else is a bug and keeps its traceback; a SystemExit of main keeps its code.

    Args:
        hint: what a user should know after an interrupt, such as how to resume.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that is not UTF-8, or a sign that a terminal's encoding lacks, ends no run.
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except EXPECTED as error:
        sys.exit(format_error(error))
    except KeyboardInterrupt:
        print("interrupted; " + hint if hint else "interrupted")
        sys.exit(130)
    _part()


def _part() -> None:
    """Part from the other processes of this run, if there are any.

    Left to Python's exit, each would end its use of the GPUs (NCCL) in an order of its own, and
    some might wait for each other for ever. After an error nobody may be waited for: the launcher
    ends the others.
    """
    joined = sys.modules.get("torch.distributed")  # who has not imported it is alone
    if joined is not None and joined.is_available() and joined.is_initialized():
        joined.destroy_process_group()
