"""Moments of silos on machines of their own, summed as those of one process are."""

from __future__ import annotations

from collections.abc import Mapping

from privacy.contributions import Contributions, Partial
from privacy.mechanism import Mechanism
from server.remote import RemoteLink, Unreachable
from strategies.envelope import Expected


def gathered(link: RemoteLink, mechanisms: Mapping[str, Mechanism], sizes: Mapping[str, int]) -> Partial:
    """The clipped sum over all silos; the caller adds noise to it, and has paid.

    A mean that lacks a silo would be wrong for the whole run, as its divisor counts all: then nothing is released.

    Raises:
        Unreachable: a silo did not answer; what the others sent is dropped, and charged all the same.
    """
    done = link.everybody(Expected(sizes))
    sums = Contributions(mechanisms, sizes)
    for silo, reply in sorted(done.replies.items()):
        sums.add(reply.channels, 1.0, [silo])
    missing = dict(done.failures) | {failure.silo: failure.reason for failure in sums.failures}
    if missing:
        silo = min(missing)
        raise Unreachable(
            f"silo {silo}: {missing[silo]}; data.standardize: private needs every silo once, then resume, which asks "
            "and charges all of them again"
        )
    return sums.partial(0)
