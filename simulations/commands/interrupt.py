"""Ctrl-C and SIGTERM: the first ends the round in flight, the second ends the process's patience."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ASKED = b"\nconfide: stopping after the round in flight; once more to abort it\n"


class Interrupt:
    """While it is entered, a first signal is noted and a second one raises KeyboardInterrupt.

    Outside the main thread Python gives no signals away; there it notes nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        os.write(2, ASKED)  # Unbuffered: print in a signal handler may meet itself.
