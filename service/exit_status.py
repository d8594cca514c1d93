"""The exit status of a command. Every failure ends in one plain line and a status other than 0."""

import os
import signal
import sys
from collections.abc import Callable


def exit_status(run: Callable[[], int | None], *failures: type[Exception]) -> int:
    """Run a command, whose `failures` have a message of one line that says why; returns the status of the process."""
    try:
        status = run() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output, such as head, has enough. The rest of it would fail again at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except failures as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except MemoryError:
        return _failed("this machine's memory is full")
    except KeyboardInterrupt:
        return 130


def _failed(reason: str) -> int:
    print(f"headlight: {reason}", file=sys.stderr)
    return 1
