"""How rows are dealt to silos: label skew, quantity skew, rotated images, or the silos the data already names.

Every partition deals every row exactly once, is a function of its key alone, and leaves no silo empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from privacy.checks import finite, positive
from strategies.named import enter
from strategies.schema import key as field

if TYPE_CHECKING:  # torch is imported where it is used: the experiment schema must load at once.
    import torch
    from torch import Tensor


class Partition:
    """A way to deal rows to silos."""

    name: ClassVar[str]

    def split(self, targets: Tensor, *, silos: int, key: int, natural: Tensor | None = None) -> list[Tensor]:
        """Deals every row to one silo.

        Args:
            targets: `(rows,)` classes or numbers, or `(rows, length)` for sequences.
            silos: how many silos; `column` requires the number that the data names.
            key: seed of the draw; the same key deals the same rows.
            natural: `(rows,)` int64, the silo that the data names, if it does.

        Returns:
            One int64 index tensor per silo, ascending, none of them empty.

        Raises:
            ValueError: fewer rows than silos, or data that this partition cannot deal.
        """
        if silos < 1:
            raise ValueError(f"partition {self.name}: silos must be at least 1, got {silos}")
        if len(targets) < silos:
            raise ValueError(f"partition {self.name}: {len(targets)} rows cannot fill {silos} silos; use fewer silos")
        parts = self.deal(targets, silos, generator(key), natural)
        return [part.sort().values for part in occupy(parts)]

    def skewed(self, targets: Tensor, groups: Tensor | None) -> Tensor:
        """What rows are dealt by, in the place of targets, from these and the groups that the data names."""
        return targets

    def deal(self, targets: Tensor, silos: int, rng: torch.Generator, natural: Tensor | None) -> list[Tensor]:
        """The variant's own rule; silos may still be empty, order is free."""
        raise NotImplementedError

    def transform(self, features: Tensor, *, silo: int) -> Tensor:
        """What silo number `silo` sees instead of `features`: the same rows, unless the partition skews features."""
        return features


Kind = TypeVar("Kind", bound=type[Partition])
PARTITIONS: dict[str, type[Partition]] = {}


def partition(name: str) -> Callable[[Kind], Kind]:
    """Registers a frozen dataclass as the partition that a config calls `name`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: Kind) -> Kind:
        enter(PARTITIONS, cls, what="partition", name=name)
        return cls

    return register


@partition("iid")
@dataclass(frozen=True)
class Iid(Partition):
    """Rows dealt at random, silo sizes equal to within one."""

    def deal(self, targets: Tensor, silos: int, rng: torch.Generator, natural: Tensor | None) -> list[Tensor]:
        """A random order, cut into equal pieces."""
        return list(permutation(len(targets), rng).tensor_split(silos))


@partition("dirichlet")
@dataclass(frozen=True)
class Dirichlet(Partition):
    """Label skew: each class is dealt to silos in Dirichlet(alpha) proportions (Yurochkin et al. 2019, section 4).

    Groups of rows can be dealt in the place of classes.
    """

    alpha: float = field(help="skew of classes between silos: 0.1 is strong, 100 is almost none", above=0)
    by: Literal["class", "group"] = field("class", help="what is skewed: classes, or the groups of data.group")

    def __post_init__(self) -> None:
        positive(alpha=self.alpha)
        finite(alpha=self.alpha)

    def skewed(self, targets: Tensor, groups: Tensor | None) -> Tensor:
        """Classes, or groups."""
        if self.by == "class":
            return targets
        if groups is None:
            raise ValueError("partition dirichlet: by: group needs data.group; give it, or use by: class")
        return groups

    def deal(self, targets: Tensor, silos: int, rng: torch.Generator, natural: Tensor | None) -> list[Tensor]:
        """Class by class, so that the classes' proportions are independent."""
        import torch

        if targets.dim() != 1 or targets.is_floating_point():
            raise ValueError("partition dirichlet: needs classes as targets; use iid or quantity for other data")
        dealt: list[list[Tensor]] = [[] for _ in range(silos)]
        for label in sorted(set(targets.tolist())):
            rows = (targets == label).nonzero().flatten()
            rows = rows[permutation(len(rows), rng)]
            share = proportions(self.alpha, silos, rng).cumsum(0)
            cuts = (share[:-1] * len(rows)).to(torch.int64).clamp(max=len(rows))
            for silo, piece in enumerate(rows.tensor_split(cuts)):
                dealt[silo].append(piece)
        return [torch.cat(pieces) for pieces in dealt]


@partition("shards")
@dataclass(frozen=True)
class LabelShards(Partition):
    """Rows sorted by target and cut into shards; each silo gets a few of them (McMahan et al. 2017, section 3)."""

    shards_per_silo: int = field(2, help="shards of sorted rows that each silo gets", at_least=1)

    def deal(self, targets: Tensor, silos: int, rng: torch.Generator, natural: Tensor | None) -> list[Tensor]:
        """Ties in the sort are broken at random, so that a shard is no accident of the file's order."""
        import torch

        if targets.dim() != 1:
            raise ValueError("partition shards: needs one target per row; use iid, quantity or column for sequences")
        count = silos * self.shards_per_silo
        if len(targets) < count:
            raise ValueError(f"partition shards: {len(targets)} rows cannot fill {count} shards; lower shards_per_silo")
        order = permutation(len(targets), rng)
        shards = order[targets[order].argsort(stable=True)].tensor_split(count)
        hands = permutation(count, rng).view(silos, self.shards_per_silo).tolist()
        return [torch.cat([shards[shard] for shard in hand]) for hand in hands]


@partition("quantity")
@dataclass(frozen=True)
class Quantity(Partition):
    """Quantity skew: rows dealt at random, silo sizes in Dirichlet(alpha) proportions (Li et al. 2022, section 4.3)."""

    alpha: float = field(help="skew of the silos' sizes: 0.1 is strong, 100 is almost none", above=0)

    def __post_init__(self) -> None:
        positive(alpha=self.alpha)
        finite(alpha=self.alpha)

    def deal(self, targets: Tensor, silos: int, rng: torch.Generator, natural: Tensor | None) -> list[Tensor]:
        """One row for every silo, the others in proportion."""
        import torch

        free = len(targets) - silos
        cuts = (proportions(self.alpha, silos, rng).cumsum(0)[:-1] * free).to(torch.int64).clamp(max=free)
        return list(permutation(len(targets), rng).tensor_split(cuts + torch.arange(1, silos)))


@partition("rotation")
@dataclass(frozen=True)
class Rotation(Partition):
    """Feature skew: an iid split whose silo k sees every image turned by angles[k mod len(angles)] degrees."""

    angles: tuple[int, ...] = field((0, 90, 180, 270), help="multiples of 90, one per group of silos")

    def __post_init__(self) -> None:
        if not self.angles or any(angle % 90 for angle in self.angles):
            raise ValueError(f"angles must be multiples of 90, at least one, got {self.angles!r}")

    def deal(self, targets: Tensor, silos: int, rng: torch.Generator, natural: Tensor | None) -> list[Tensor]:
        """As iid."""
        return list(permutation(len(targets), rng).tensor_split(silos))

    def transform(self, features: Tensor, *, silo: int) -> Tensor:
        """Quarter turns only: they permute pixels exactly, no interpolation blurs the data.

        Args:
            features: `(rows, channels, side, side)`.
            silo: number of the silo.
        """
        if features.dim() != 4 or features.shape[-1] != features.shape[-2]:
            raise ValueError(f"partition rotation: needs square images, rows have shape {tuple(features.shape[1:])}")
        return features.rot90(self.angles[silo % len(self.angles)] // 90, dims=(-2, -1))


@partition("column")
@dataclass(frozen=True)
class Column(Partition):
    """The silos that the data itself names, by its silo column."""

    def deal(self, targets: Tensor, silos: int, rng: torch.Generator, natural: Tensor | None) -> list[Tensor]:
        """Rows by silo number; a silo without rows is refused, not filled with another silo's rows."""
        if natural is None:
            raise ValueError("partition column: the data names no silos; give data.silo or another partition")
        if len(natural) != len(targets):
            raise ValueError(f"partition column: {len(natural)} silo names for {len(targets)} rows")
        parts = [(natural == silo).nonzero().flatten() for silo in range(silos)]
        if sum(map(len, parts)) != len(targets) or not all(map(len, parts)):
            raise ValueError(f"partition column: the data's silos are not numbered 0 to {silos - 1} without a gap")
        return parts


def generator(key: int) -> torch.Generator:
    """A generator of its own for one purpose; the global one is never touched."""
    import torch

    return torch.Generator().manual_seed(key)


def permutation(rows: int, rng: torch.Generator) -> Tensor:
    """A random order of `rows` numbers."""
    import torch

    return torch.randperm(rows, generator=rng)


def occupy(parts: list[Tensor]) -> list[Tensor]:
    """Gives each empty silo one row of the silo that is then the largest; needs as many rows as silos."""
    parts = list(parts)
    for silo in range(len(parts)):
        if len(parts[silo]) == 0:
            largest = max(range(len(parts)), key=lambda other: len(parts[other]))
            parts[silo], parts[largest] = parts[largest][-1:], parts[largest][:-1]
    return parts


def proportions(alpha: float, count: int, rng: torch.Generator) -> Tensor:
    """One draw of a symmetric Dirichlet, `(count,)` float64.

    Gamma variates after Marsaglia and Tsang (2000), with their boost for shape < 1 taken in logarithms: at alpha 0.01
    plain variates underflow, all of them to 0 at times, and their ratio would be NaN.
    """
    import torch

    shape = alpha + 1 - 1 / 3
    logs = torch.full((count,), torch.nan, dtype=torch.float64)
    while (todo := logs.isnan()).any():
        normal, uniform = (
            draw(int(todo.sum()), generator=rng, dtype=torch.float64) for draw in (torch.randn, torch.rand)
        )
        cube = (1 + normal / (9 * shape) ** 0.5) ** 3
        accept = (cube > 0) & ((1 - uniform).log() < normal**2 / 2 + shape * (1 - cube + cube.clamp(min=1e-300).log()))
        logs[todo] = torch.where(accept, (shape * cube.clamp(min=1e-300)).log(), torch.nan)
    boost = (1 - torch.rand(count, generator=rng, dtype=torch.float64)).log() / alpha  # 1 - rand is never 0.
    return (logs + boost).softmax(0)
