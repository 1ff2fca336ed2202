"""What a server remembers of silos on machines of their own, so that a restart neither repeats nor forgets."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from privacy.chain import Head
from privacy.durable import atomic_write
from server.store import StoreError


@dataclass(frozen=True)
class Page:
    """What stands after a round.

    Attributes:
        round: the round.
        used: silo to the last round that used its update: what it keeps of that round stands, of a later one not.
        heads: silo to the last line of its ledger that it showed.
    """

    round: int = 0
    used: Mapping[int, int] = field(default_factory=dict)
    heads: Mapping[int, Head] = field(default_factory=dict)


class Book:
    """The id of a run, how often a round was begun, and what silos were told of it; one small file in the run's folder.

    Args:
        path: of the file.

    Raises:
        StoreError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run, self.round, self.attempt = secrets.token_hex(16), 0, 0
        self.page = Page()
        """After the last committed round."""
        self._next: Page | None = None
        self.fresh = not path.exists()
        """Whether nothing was written down yet."""
        if path.exists():
            self._read()

    def begin(self, round_: int) -> int:
        """Notes that a round begins; its attempt is on the disk before anybody is asked, so that none comes twice."""
        self.attempt = self.attempt + 1 if round_ == self.round else 1
        self.round = round_
        self._write()
        return self.attempt

    def knows(self, silo: int, head: Head | None) -> bool:
        """Whether a silo's ledger goes on from where it was last seen; an older copy of it does not."""
        known = self.page.heads.get(silo)
        if known is None or head is None:
            return known is None
        return head.seq > known.seq or head == known

    def adopt(self, round_: int) -> None:
        """Goes on with a run that another engine brought to a round, and of which silos keep nothing."""
        self.page = Page(round_)

    def stage(self, used: Collection[int], heads: Mapping[int, Head]) -> None:
        """Puts the silos whose updates the round in flight used, and what they showed, on the disk; not yet current."""
        now = dict.fromkeys(used, self.round)
        self._next = Page(self.round, {**self.page.used, **now}, {**self.page.heads, **heads})
        self._write()

    def commit(self, round_: int) -> None:
        """The round's checkpoint stands."""
        if self._next is not None and self._next.round == round_:
            self.page = self._next
        self._next = None  # On the disk with the next `begin`; until then `recover` comes to the same.

    def recover(self, round_: int) -> None:
        """Back to a checkpoint's round.

        Raises:
            StoreError: the file is of an older round.
        """
        self.commit(round_)
        if self.page.round != round_:
            raise StoreError(
                f"{self.path}: is of round {self.page.round}, the checkpoint of {round_}; restore both from one copy"
            )

    def _write(self) -> None:
        pages = [_to_json(page) for page in (self.page, self._next) if page is not None]
        facts = {"run": self.run, "round": self.round, "attempt": self.attempt, "pages": pages}
        atomic_write(self.path, json.dumps(facts, sort_keys=True).encode())

    def _read(self) -> None:
        try:
            facts = json.loads(self.path.read_bytes())
            pages = [_from_json(page) for page in facts["pages"]]
            self.run, self.round, self.attempt = str(facts["run"]), int(facts["round"]), int(facts["attempt"])
            self.page, self._next = pages[0], pages[1] if len(pages) > 1 else None
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise StoreError(f"{self.path}: damaged ({error}); restore it from a copy or start a new run") from error
        if not re.fullmatch(r"[0-9a-f]{32}", self.run):
            raise StoreError(f"{self.path}: damaged (its run has no id); restore it from a copy or start a new run")


def _to_json(page: Page) -> dict[str, Any]:
    heads = {str(silo): asdict(head) for silo, head in page.heads.items()}
    return {"round": page.round, "used": {str(silo): round_ for silo, round_ in page.used.items()}, "heads": heads}


def _from_json(page: Mapping[str, Any]) -> Page:
    used = {int(silo): int(round_) for silo, round_ in page["used"].items()}
    heads = {int(silo): Head(int(head["seq"]), str(head["hash"])) for silo, head in page["heads"].items()}
    return Page(int(page["round"]), used, heads)
