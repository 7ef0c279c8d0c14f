"""How entry scripts end: what they say, and with which code."""

import sys
from collections.abc import Callable

from configs.messages import EXPECTED, message


def run(main: Callable[[], None], hint: str = "") -> None:
    """Call a script's `main`, and end the process as a user of a command line expects.

    An expected error becomes one line on stderr and code 1, Ctrl-C one line and code 130. Anything
    else is a bug and keeps its traceback; an end of main's own keeps its code.

    Args:
        hint: what an interrupted user should know, such as how to go on.
    """
    try:
        main()
    except EXPECTED as error:
        sys.exit(message(error))
    except KeyboardInterrupt:
        print("interrupted; " + hint if hint else "interrupted")
        sys.exit(130)
