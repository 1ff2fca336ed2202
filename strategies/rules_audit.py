"""The rules between the keys of `privacy.audit.examples`, and between them and the sections that they depend on."""

from __future__ import annotations

from collections.abc import Iterator

from strategies.experiment import Data, Metrics, Privacy

WHERE = "privacy.audit.examples"


def planted_rules(privacy: Privacy) -> Iterator[str]:
    """Canary examples need batches to be in."""
    audit = privacy.audit.examples
    if not audit.canaries:
        return
    if privacy.example is None:
        yield (
            f"{WHERE}.canaries: found {audit.canaries}, but there is no privacy.example to audit; "
            "add it or use canaries: 0"
        )
    if not audit.silos:
        yield f"{WHERE}.silos: found an empty list; name a silo to audit, or use canaries: 0"
    for silo in sorted({silo for silo in audit.silos if audit.silos.count(silo) > 1}):
        yield f"{WHERE}.silos: found {silo} more than once; name each silo once"


def absent(privacy: Privacy, silos: int) -> Iterator[str]:
    """Audited silos that are not there, a line each."""
    audit = privacy.audit.examples
    for silo in audit.silos if audit.canaries else ():
        if silo >= silos:
            yield f"{WHERE}.silos: found {silo}, but the last of {silos} silos is {silos - 1}"


def audited_rules(privacy: Privacy, data: Data) -> Iterator[str]:
    """Audited silos are there, where their number is known without the data."""
    if data.silos is not None:
        yield from absent(privacy, data.silos)


def alone_rules(privacy: Privacy, metrics: Metrics) -> Iterator[str]:
    """What is measured of one silo is a function of that silo's own updates, which silo-level privacy keeps secret."""
    if privacy.audit.examples.canaries and privacy.silo is not None and metrics.privacy == "strict":
        yield (
            f"{WHERE}.canaries: scores follow from one silo's own updates, which have no price under privacy.silo; "
            "use metrics.privacy: research, or canaries: 0"
        )
