"""The report's section on privacy: what is claimed, what was measured, and how the two go together."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.report import privacy_charts as pictures
from simulations.report.markup import Html, element
from simulations.report.run import Run
from simulations.report.words import NEIGHBOURS, meaning, number, small
from simulations.words import audit as audit_words
from simulations.words import local as local_words
from simulations.words import privacy as privacy_words


def privacy_section(run: Run) -> Html:
    """Claim, measurement and epsilon over rounds."""
    heading = element("h2", {}, "Privacy")
    if run.claimed is None and run.example is not None:
        texts = [privacy_words.NO_SILO_PRIVACY, *_examples(run)]
        return element("section", {}, heading, *_paragraphs(texts, run), pictures.grid(run))
    if run.claimed is None and run.local is not None:
        local = [local_words.short(run.local, alone=True), local_words.NO_BETTER, *local_words.details(run.local)]
        return element("section", {}, heading, *(element("p", {}, text) for text in local), pictures.grid(run))
    if run.claimed is None:
        return element("section", {}, heading, element("p", {}, privacy_words.NO_PRIVACY))
    if not run.claimed["charged_rounds"]:
        return element("section", {}, heading, element("p", {}, privacy_words.NOTHING_CHARGED))
    texts = [meaning(run.promised or run.claimed), privacy_words.claim(run), privacy_words.measurement(run)]
    texts += [*privacy_words.stopped(run), *privacy_words.together(run)]
    if run.selection is not None:
        texts += privacy_words.chosen_words(run.selection, run.selection)
    texts += _examples(run)
    if run.local is not None:
        texts += [local_words.not_added(run.local), *local_words.details(run.local)]
    return element("section", {}, heading, *_paragraphs(texts, run), pictures.grid(run))


def _paragraphs(texts: Sequence[str], run: Run) -> list[Html]:
    """Texts, then what is wrong with a measurement."""
    warnings = [element("p", {"class": "warning"}, text) for text in privacy_words.warnings(run)]
    return [element("p", {}, text) for text in texts] + warnings


def _examples(run: Run) -> list[str]:
    """What is claimed of single examples, by this run and by all, and what was measured."""
    if run.example is None:
        return []
    shared = run.cumulative_example
    everywhere = [] if shared is None else [privacy_words.examples_of_all_runs(shared)]
    return [privacy_words.examples(run.example), *everywhere, *privacy_words.example_measurements(run)]


def claimed_words(run: Run) -> tuple[str, str]:
    """The claimed epsilon for the headline: the number, and what it is for."""
    claimed = run.promised
    if claimed is None and run.example is not None:
        upper = run.example["epsilon_upper"]
        what = f"at δ = {small(run.example['delta'])}, for one example of a silo added or removed"
        return f"ε {'≤' if upper is not None else '='} {number(upper, 4, 'up')}", what
    if claimed is None and run.local is not None:
        upper = run.local["epsilon_upper"]
        sign = "≤" if upper is not None else "="
        head = f"ε {sign} {number(upper, 4, 'up')}"
        return head, f"at δ = {small(run.local['delta'])}, against the server and everybody else"
    if claimed is None:
        return "ε = ∞", "no privacy: updates were neither clipped nor noised"
    upper = claimed["epsilon_upper"]
    sweep = "" if run.selection is None else ", the sweep that it comes from included"
    head = f"ε {'≤' if upper else '='} {number(upper, 4, 'up')}"
    return head, f"at δ = {small(claimed['delta'])}, for {NEIGHBOURS[claimed['neighbours']]}{sweep}"


def measured_words(run: Run) -> tuple[str, str]:
    """The measured epsilon for the headline."""
    row = audit_words.largest(run.result["privacy"])
    measured = row if run.claimed is None else run.measured  # As the claim that it stands beside.
    if measured is None:
        return "–", privacy_words.unmeasured(run)
    interval = f"{number(measured['lower'])} to {number(measured['upper'])}"
    several = len(run.measured_examples)
    most = f", the most of {several} silos" if several > 1 else ""
    canaries = "canaries" if run.claimed is not None else f"canary examples in silo {measured['silo']}{most}"
    return f"ε ≈ {number(measured['epsilon'])}", f"95% interval {interval}, from {measured['canaries']:,} {canaries}"
