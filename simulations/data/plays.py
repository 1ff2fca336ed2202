"""Shakespeare's plays as a federated language task: a silo is a role, as in LEAF (Caldas et al. 2018)."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from client.tables import Table
from simulations.data.carriers import locate

WINDOW = 80  # LEAF's length.
LEAST = 2_000  # Characters: a smaller role is a few windows, too few to train on.
UNKNOWN = 0
VOCABULARY = (
    "unknown",
    "\n",
    *(chr(code) for code in range(32, 127)),
)  # Fixed and public: nothing is read off the rows.

SPEAKER = re.compile(r"\*\*([^*]+)\*\*")
STAGE = re.compile(
    r"_+(?:[^_\n]|\n(?!\n))*_+"  # _Enter a king_, also over several lines of one paragraph.
    r"|(?<!\*)\*(?!\*)(?:[^*\n]|\n(?!\n))*\*"  # *The same in one of the plays.*
    r"|\\?\[[^\]\n]*\]_?"  # [Aside], also where the mark-up is broken.
)


def load() -> Table:
    """Windows of 80 characters and the 80 characters that follow each, of every role of at least 2,000 characters.

    Windows do not overlap; what is left at the end of a role is dropped.
    """
    roles: dict[str, str] = {}
    for path in sorted(locate("shakespeare").glob("*.md")):
        roles |= speeches(path)
    large = {name: text for name, text in sorted(roles.items()) if len(text) >= LEAST}
    pieces = [windows(text) for text in large.values()]
    features, targets = (torch.cat(column) for column in zip(*pieces))
    silo = torch.repeat_interleave(torch.tensor([len(first) for first, _ in pieces]))
    note = f"{len(large)} of {len(roles)} roles, those of at least {LEAST} characters; stage directions left out"
    return Table(
        kind="sequence",
        features=features,
        targets=targets,
        classes=len(VOCABULARY),
        silo=silo,
        silo_names=tuple(large),
        notes=(note,),
    )


def speeches(path: Path) -> dict[str, str]:
    """All that each role of one play says, "play/ROLE" to text."""
    text = STAGE.sub("", path.read_text(encoding="utf-8").replace("—", "--"))
    said: dict[str, list[str]] = {}
    role: str | None = None
    for line in map(str.strip, text.splitlines()):
        if match := SPEAKER.fullmatch(line):
            role = f"{path.stem}/{match[1].strip()}"
            said.setdefault(role, [])
        elif line.startswith("#"):  # A new scene: what follows until the next name is nobody's.
            role = None
        elif line and role is not None:
            said[role].append(line.replace("\\", "") + "\n")  # The mark-up escapes dashes.
    return {name: "".join(lines) for name, lines in said.items()}


def windows(text: str) -> tuple[Tensor, Tensor]:
    """Windows of a text and their next characters, both `(windows, 80)` int64."""
    code = {character: index for index, character in enumerate(VOCABULARY)}
    codes = torch.tensor([code.get(character, UNKNOWN) for character in text], dtype=torch.int64)
    count = (len(codes) - 1) // WINDOW
    return codes[: count * WINDOW].view(count, WINDOW), codes[1 : count * WINDOW + 1].view(count, WINDOW).clone()
