"""The experiments that come with confide, and what CONFIG means."""

from __future__ import annotations

import re
from pathlib import Path

from strategies.schema import ConfigError

CONFIGS = Path(__file__).parent / "configs"
STARTER = "starter"  # What `confide init` writes: a form to fill in, so it is not listed as an experiment.


def shipped() -> list[str]:
    """The names of the experiments that come with confide."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != STARTER)


def find(config: str) -> Path:
    """The file that CONFIG means: a path, or the bare name of a shipped experiment."""
    path = Path(config)
    if path.is_file():
        return path
    if config in shipped():
        return CONFIGS / f"{config}.yaml"
    if path.exists() or not re.fullmatch(r"[\w-]+", config):
        return path  # Reading it says what is wrong with it.
    raise ConfigError(
        [f"{config}: no such file, and no shipped config of that name; there are: {', '.join(shipped())}"]
    )
