"""The sections of a comparison that are pictures, each only where the numbers of the runs are of one kind."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.comparing import Difference, Group, paired, unpaired
from simulations.outcomes import metric
from simulations.report import comparison_plots as plots
from simulations.report.comparison_plots import Shown, bytes_unit, claimed, score_name, sent, signed
from simulations.report.markup import Html, element, join
from simulations.report.tables import table
from simulations.report.words import size, small

PRIVACY = {  # Claims by their column: where result.json has them, and what they are of.
    "epsilon": ("silo", "ε claimed for a whole silo"),
    "server": ("local", "ε claimed against the server"),
    "row epsilon": ("example", "ε claimed for one example"),
}
APART = "They are not drawn: the claims are at different δ or for different neighbouring relations."
ALONE = (
    "Differences are between runs of the same seed, which have the same rows in the same silos. Each interval is "
    "Student’s: it holds the true mean difference in 95 of 100 repetitions, if differences over seeds are about "
    "normal; of many intervals some miss. Orange ones leave 0 outside."
)


def frontiers_section(groups: Sequence[Shown]) -> Html:
    """What was reached against what it cost: in epsilon, a picture a kind of claim, and in bytes."""
    scored = _of_one_kind([each for each in groups if each.scores() is not None])
    figures: list[Html] = []
    texts: list[str] = []
    for column in PRIVACY:
        drawn, text = _claims(scored, groups, column)
        figures += drawn
        texts += [text] if text else []
    if scored:
        figures.insert(1 if figures else 0, _traffic(scored))  # Beside the first, as it is as high.
    heading = element("h2", {}, "What it costs")
    if not figures:
        return element("section", {}, heading, element("p", {}, "No run has a score that may be shown."))
    return element("section", {}, heading, *(element("p", {}, text) for text in texts), _grid(figures))


def _claims(scored: Sequence[Shown], groups: Sequence[Shown], column: str) -> tuple[list[Html], str]:
    """Score against one kind of epsilon, and claimed beside measured; or why there is no such picture."""
    section, words = PRIVACY[column]
    claims = [
        claim for each in groups for member in each.group.members if (claim := member.result["privacy"].get(section))
    ]
    if not claims:
        return [], ""
    if len({(claim["delta"], claim.get("neighbours")) for claim in claims}) > 1:
        return [], f"{words[:1].upper()}{words[1:]}: {APART[:1].lower()}{APART[1:]}"
    delta, figures = small(claims[0]["delta"]), []
    if scored:
        x = f"{words}, at δ = {delta}"
        figures.append(
            plots.frontier(
                f"frontier-{section}",
                "Score against ε",
                told=_spread(scored),
                groups=scored,
                cost=lambda each: claimed(each, column),
                x=x,
            )
        )
    private = [each for each in groups if all(member.result["privacy"]["silo"] for member in each.group.members)]
    if column == "epsilon" and private:
        figures.append(plots.claims(private, delta))
    return figures, ""


def _traffic(scored: Sequence[Shown]) -> Html:
    unit, name = bytes_unit(scored)
    return plots.frontier(
        "frontier-bytes",
        "Score against bytes",
        told=_spread(scored),
        groups=scored,
        cost=lambda each: sent(each) / unit,
        x=f"{name} up and down, all silos",
    )


def curves_section(groups: Sequence[Shown]) -> Html:
    """Score, loss and epsilon over rounds."""
    alike = _of_one_kind(groups)
    name = metric(alike[0].group.members[0].result)
    told = "mean over seeds, band: one standard deviation" if _several(alike) else "one run each"
    wanted = (
        (name, score_name(alike).partition(",")[0], score_name(alike)),
        ("loss", "Loss", "loss on the public test set"),
        ("train_loss", "Training loss", "mean loss in the silos"),
        ("epsilon", "ε spent", "ε claimed so far"),
    )
    drawn = [
        plots.curves(f"over-{key}", title, told=told, groups=alike, name=key, y=y, percent=key == "accuracy")
        for key, title, y in wanted
        if key != "epsilon" or _one_claim(alike)
    ]
    figures = [each for each in drawn if each is not None]
    return element("section", {}, element("h2", {}, "Over rounds"), _grid(figures)) if figures else join([])


def pairs_section(groups: Sequence[Group], factor: float) -> Html:
    """Every experiment against the first, seed by seed; or why not."""
    if len(groups) < 2:
        return join([])
    base, found, refused = groups[0], list[tuple[Group, Difference]](), list[str]()
    for other in groups[1:]:
        reason = unpaired(base, other)
        if reason is None:
            found += [(other, each) for each in paired(base, other)]
        else:
            refused.append(f"{other.letter} is not paired with {base.letter}: {reason}.")
    parts = [element("p", {}, ALONE)] if any(each.interval for _, each in found) else []
    parts += [element("p", {"class": "warning"}, line) for line in refused]
    figures = _pictures(base, found, factor)
    parts += [_grid(figures)] if figures else []
    if found:
        parts.append(table(("", "number", "difference", "from", "to", "seeds"), [_row(*each) for each in found]))
    title = f"Against {base.letter}, seed by seed"
    return element("section", {}, element("h2", {}, title), *parts)


def _pictures(base: Group, found: Sequence[tuple[Group, Difference]], factor: float) -> list[Html]:
    """Score and loss, where there are intervals to be seen."""
    figures = []
    name = metric(base.members[0].result)
    units = {"accuracy": "percentage points, above 0 is better", "mse": "squared error, below 0 is better"}
    for column, unit in ((name, units[name]), ("loss", "loss, below 0 is better")):
        held = [(group, each) for group, each in found if each.column == column and each.interval is not None]
        if held:
            title = f"{'Loss' if column == 'loss' else score_title(column)}, difference to {base.letter}"
            scaled = factor if column == name else 1.0
            figures.append(plots.pairs(f"pairs-{column}", title, base=base, found=held, factor=scaled, unit=unit))
    return figures


def score_title(column: str) -> str:
    """A score's name at the head of a picture."""
    return {"accuracy": "Accuracy", "mse": "Squared error"}[column]


def _row(group: Group, found: Difference) -> tuple[str, ...]:
    def said(value: float) -> str:
        if found.column == "accuracy":
            return f"{signed(100 * value)} points"
        if found.column == "bytes":
            return f"{'−' if value < 0 else '+'}{size(abs(value))}"
        return signed(value)

    low, high = ("", "") if found.interval is None else map(said, found.interval)
    name = {"bytes": "bytes sent", "mse": "squared error"}.get(found.column, found.column)
    return f"{group.letter}  {group.label}", name, said(found.mean), low, high, str(len(found.seeds))


def _of_one_kind(groups: Sequence[Shown]) -> list[Shown]:
    """The groups that are scored as the first is: one axis has one unit."""
    return [
        each for each in groups if metric(each.group.members[0].result) == metric(groups[0].group.members[0].result)
    ]


def _one_claim(groups: Sequence[Shown]) -> bool:
    claims = [member.result["privacy"]["silo"] for each in groups for member in each.group.members]
    known = {(claim["delta"], claim["neighbours"]) for claim in claims if claim is not None}
    return len(known) == 1


def _several(groups: Sequence[Shown]) -> bool:
    return any(len(each.group.members) > 1 for each in groups)


def _spread(groups: Sequence[Shown]) -> str:
    return "mean over seeds, bar: one standard deviation" if _several(groups) else "one run each"


def _grid(figures: Sequence[Html]) -> Html:
    """Plots are framed here; charts bring a frame of their own."""
    framed = [each if each.startswith("<figure") else element("figure", {}, each) for each in figures]
    return element("div", {"class": "charts"}, *framed)
