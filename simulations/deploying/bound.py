"""Becomes a program that does not outlive whoever started it, however that one ends: also by SIGKILL.

    python bound.py PARENT PROGRAM ARGUMENT...

On Linux the kernel kills the program (PR_SET_PDEATHSIG, prctl(2)) once its parent is dead. That stays through execve,
but for programs that change their user; what the program starts itself does not inherit it, so a program has to look
after its own, as Flower's do. Elsewhere there is no such call: whoever is killed there leaves its programs behind.

A program of its own, and not a function between fork and exec: other threads may hold locks there. Loads the standard
library alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
ORPHANED, UNSTARTED = 3, 127  # Exit codes: the parent was dead before the kernel was asked; no such program.
IGNORED = ("SIGPIPE", "SIGXFSZ")  # By Python, and then by what it becomes.


def bind(parent: int) -> None:
    """Ties this process to its parent.

    Raises:
        OSError: the kernel refused.
        ProcessLookupError: the parent is dead already, so nobody would be told of its death.
    """
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel does not tie a program to its parent")
    if os.getppid() != parent:
        raise ProcessLookupError(f"process {parent} is gone")


def main(argv: Sequence[str]) -> int:
    """Does not return, but where the parent is dead, or there is no such program."""
    parent, command = int(argv[0]), argv[1:]
    try:
        bind(parent)
    except ProcessLookupError:
        return ORPHANED
    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execv(command[0], list(command))
    except OSError as error:
        print(f"{command[0]}: cannot be started ({error.strerror})", file=sys.stderr)
        return UNSTARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
