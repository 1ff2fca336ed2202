"""What noise of the silos' own promises, in words: the server's view, and what follows from it for outsiders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simulations.report.words import NEIGHBOURS, number, small

NO_BETTER = (
    "Outside, and other silos: no more than what the server may learn, so the same ε at most. The silos’ noises add up "
    "in a mean, but nothing better is claimed, as nothing better is proved."
)


def bound(local: Mapping[str, Any]) -> str:
    """The server's epsilon in a few words; `local` as result.json holds it."""
    upper = local["epsilon_upper"]
    if upper is None:
        return f"no finite ε at δ = {small(local['delta'])}"
    return f"ε at most {number(upper, 4, 'up')} at δ = {small(local['delta'])}"


def short(local: Mapping[str, Any], *, alone: bool) -> str:
    """The claim in one sentence."""
    against = "Against the server, and so against everybody," if alone else "Against the server"
    return f"{against} {bound(local)}, for {NEIGHBOURS[local['neighbours']]}."


def details(local: Mapping[str, Any]) -> Iterator[str]:
    """How the server's epsilon comes about."""
    noise, clip = f"{local['noise_multiplier']:.4g}", f"{local['clip_norm']:.4g}"
    yield (
        f"Every silo shortens its own update to norm {clip} and adds noise of {noise} times that before it leaves. The "
        "server sees single updates and knows whom it asked, so nothing amplifies, and each update costs in full."
    )
    most, charges = local["most_charges"], local["charges"]
    spread = ", ".join(f"{silos:,} silos {times} times" for times, silos in list(charges.items())[:6])
    more = f", and {len(charges) - 6} more counts in result.json" if len(charges) > 6 else ""
    yield f"It is the price of the silo that was asked most, {most:,} times. Asked: {spread}{more}."
    yield (
        "Replacing a silo’s data moves its update by up to two clip norms and is priced so."
        if local["neighbours"] == "replace"
        else "A silo whose update is zeroed still answers, with noise alone; that it answers is not hidden."
    )


def server(local: Mapping[str, Any]) -> str:
    """What the server may learn."""
    return f"The server: sees each update clipped and noised by its silo, and who answers; {bound(local)}."


def not_added(local: Mapping[str, Any]) -> str:
    """That two views are two numbers."""
    return (
        f"Two views, two numbers, which are not to be added: the claim is for whoever gets the models and counts the "
        f"server’s noise alone; {bound(local)} is for the server and counts the silos’ own noise alone."
    )
