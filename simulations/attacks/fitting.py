"""Whether the attacks of an experiment can be made on its data; what cannot is refused before anything runs."""

from __future__ import annotations

from simulations.attacks.poison import tails
from simulations.attacks.roles import Roles
from simulations.attacks.triggers import attacked, needs_images
from simulations.data.federation import Federation
from strategies.attacks import EdgeCase, PixelPatch, Poison
from strategies.experiment import Experiment
from strategies.schema import ConfigError


def require_fit(experiment: Experiment, federation: Federation) -> None:
    """Requires silos to attack, classes to mistake and images to draw on.

    Raises:
        ConfigError: with every problem, a line each.
    """
    attacks, silos = experiment.attacks, len(federation.train)
    if not attacks:
        return
    roles = Roles(attacks, seed=experiment.seed, silos=silos, rounds=experiment.rounds)
    lines = []
    for at, attack in enumerate(attacks):
        if not roles.pool(attack):
            lines.append(f"attacks[{at}].fraction: {attack.most:g} of {silos} silos is none; raise it")
        elif isinstance(attack, Poison):
            lines += [f"attacks[{at}]{line}" for line in _problems(attack, federation)]
    if lines:
        raise ConfigError(lines)
    lines = [
        line
        for at, attack in enumerate(attacks)
        if isinstance(attack, Poison)
        for line in _lacks(roles, at, federation)
    ]
    if lines:
        raise ConfigError(lines)


def _problems(attack: Poison, federation: Federation) -> list[str]:
    if federation.kind != "classification" or federation.train.rows.targets.dim() != 1:
        return [f": {attack.name} mistakes classes, but the targets of {federation.name} are {federation.kind}"]
    known, found, shape = federation.classes or 0, [], federation.shape
    for name in ("target", "source"):
        label = getattr(attack, name)
        if label is not None and not label < known:
            found.append(f".{name}: must be < {known}, the classes of {federation.name}, got {label}")
    if isinstance(attack, EdgeCase) and not bool((federation.train.rows.targets == attack.source).any()):
        found.append(f".source: no silo has a row of class {attack.source}; give another")
    if needs_images(attack) and (len(shape) != 3 or not federation.train.rows.features.is_floating_point()):
        found.append(f": {attack.name} is drawn on images, but rows of {federation.name} have shape {shape}")
    elif isinstance(attack, PixelPatch) and (
        attack.row + attack.size > shape[1] or attack.column + attack.size > shape[2]
    ):
        found.append(
            f".size: the patch ends beyond the image of {shape[1]} x {shape[2]} pixels; lower size, row or column"
        )
    return found


def _lacks(roles: Roles, at: int, federation: Federation) -> list[str]:
    """Says so where nobody of a crew has a row to poison."""
    attack, rows = roles.attacks[at], federation.train.rows
    assert isinstance(attack, Poison)
    fit = attacked(attack, rows.features, rows.targets, tails(roles.attacks, rows).get(at))
    offsets = federation.train.offsets
    if any(bool(fit[int(offsets[silo]) : int(offsets[silo + 1])].any()) for silo in roles.pool(attack)):
        return []
    return [f"attacks[{at}]: the malicious silos have no row to poison; raise fraction, or give another source"]
