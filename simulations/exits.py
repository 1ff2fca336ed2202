"""Which exit code an error stands for: those of the project's own classes, that a user can mend."""

from __future__ import annotations

from collections.abc import Iterator

from simulations.commands import BUDGET, FAILED, REFUSED

# Named, not imported: most of these modules import torch, and an error can only come from a module that is loaded.
ERRORS = {
    ("strategies.schema", "ConfigError"): REFUSED,
    ("strategies.plugins", "PluginError"): REFUSED,
    ("client.errors", "DataError"): REFUSED,
    ("client.example_sums", "UnsupportedModel"): REFUSED,
    ("privacy.terms", "Unpriceable"): REFUSED,
    ("privacy.chain", "LedgerError"): REFUSED,
    ("privacy.account", "BudgetSpent"): BUDGET,
    ("server.store", "StoreError"): REFUSED,
    ("server.checkpoint", "CheckpointError"): REFUSED,
    ("simulations.commands.runs", "RunError"): REFUSED,
    ("simulations.report.run", "ReportError"): REFUSED,
    ("simulations.auditing", "AuditError"): REFUSED,
    ("server.loop", "Diverged"): FAILED,
    ("server.turns", "TooSoon"): FAILED,
    ("simulations.engines.pool", "WorkerError"): FAILED,
    ("server.remote", "Unreachable"): FAILED,
    ("simulations.deploying.certificates", "CertificateError"): REFUSED,
    ("simulations.deploying.probing", "Refused"): REFUSED,
    ("simulations.deploying.processes", "ProcessError"): FAILED,
    ("simulations.deploying.submitting", "FederationError"): FAILED,
}


def codes(error: Exception) -> Iterator[int]:
    """The exit codes that the classes of an error stand for, the nearest first; none for a bug."""
    for cls in type(error).__mro__:
        if (cls.__module__, cls.__name__) in ERRORS:
            yield ERRORS[cls.__module__, cls.__name__]
