"""Errors about data and refusals; this module imports nothing slow, so that the command line may load it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strategies.messages import Code


class DataError(ValueError):
    """Data that cannot be used; one line: where, what was found, what to do."""


class Refused(Exception):
    """What a silo does not do for a server; the line is shown on both sides, so it holds no private number.

    Attributes:
        code: of `strategies.messages.Code`.
        private: what only the silo's own log may hold, or empty.
    """

    def __init__(self, code: Code, line: object, *, private: str = "") -> None:
        super().__init__(line)
        self.code: Code = code
        self.private = private
