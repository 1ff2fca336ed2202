"""Server optimizers: how the mean update moves the model.

An update is trained minus received, so the server's pseudo-gradient is minus the update (Reddi et al. 2021, "Adaptive
Federated Optimization", arXiv 2003.00295, algorithm 2). Every rule is a `torch.optim` optimizer run for one step;
what it remembers between rounds (its slots) goes in and comes out as named tensors, so that a checkpoint holds them.
They work on released numbers alone and so cost no privacy.

The adaptive defaults are that paper's: beta1 = 0.9, beta2 = 0.99 and tau (here `eps`) = 1e-3. Two deviations: Adam and
AdamW correct the bias of their moments (Kingma & Ba 2015, algorithm 1), where algorithm 2 starts the second moment at
tau**2 instead; Adagrad has no momentum (the paper's experiments too set its beta1 to 0).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar, overload

import torch
from torch import Tensor, nn

from strategies.named import enter
from strategies.schema import key

Kind = TypeVar("Kind", bound="type[Optimizer]")

OPTIMIZERS: dict[str, type[Optimizer]] = {}
"""The server optimizers by the name that a config gives them."""


def optimizer(name: str) -> Callable[[Kind], Kind]:
    """Registers a frozen dataclass as the server optimizer that a config calls `name`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: Kind) -> Kind:
        enter(OPTIMIZERS, cls, what="server optimizer", name=name)
        return cls

    return register


class Optimizer(ABC):
    """A rule for the server's step. Subclasses are frozen dataclasses whose fields are their YAML schema."""

    name: ClassVar[str] = ""

    @property
    @abstractmethod
    def slots(self) -> frozenset[str]:
        """The names of what the rule remembers between steps."""

    @abstractmethod
    def build(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """The rule as a torch optimizer of one parameter."""

    def apply(self, params: Tensor, update: Tensor, slots: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """One step along an update; nothing given is changed.

        Args:
            params: the server's model, `(N,)`.
            update: the mean of what silos trained minus what they received, `(N,)`.
            slots: what the last step returned (through a checkpoint, or not: the same bits), or nothing at first.

        Returns:
            The next model, `(N,)`, and the next slots.

        Raises:
            ValueError: the update does not fit the model, or the slots are another optimizer's.
        """
        if update.shape != params.shape or update.dtype != params.dtype:
            raise ValueError(
                f"the update is {update.dtype} {tuple(update.shape)}, the model {params.dtype} {tuple(params.shape)}: "
                "they must agree"
            )
        if slots and slots.keys() != self.slots:
            raise ValueError(
                f"server optimizer {self.name!r} keeps {sorted(self.slots)}, found {sorted(slots)}: "
                "resume with the optimizer that wrote the checkpoint"
            )
        parameter = nn.Parameter(params.detach().clone())  # torch.optim steps in place.
        rule = self.build(parameter)
        if slots:
            groups = rule.state_dict()["param_groups"]
            state = {name: value.detach().clone() for name, value in slots.items()}
            rule.load_state_dict({"state": {0: state}, "param_groups": groups})
        parameter.grad = update.detach().neg()
        rule.step()
        return parameter.detach(), {name: rule.state[parameter][name] for name in sorted(self.slots)}


@optimizer("sgd")
@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent: `momentum * v + g` is stepped along; the defaults give FedAvg's plain `model + update`.

    Momentum on the server is FedAvgM (Hsu et al. 2019, arXiv 1909.06335).
    """

    learning_rate: float = key(1.0, above=0, help="the server's step size; 1 takes the mean update as it is")
    momentum: float = key(0.0, at_least=0, below=1, help="how much of the last step is kept")
    nesterov: bool = key(False, help="looks ahead along the momentum; needs momentum")

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum > 0:
            raise ValueError(f"nesterov needs momentum > 0, got momentum {self.momentum!r}")

    @property
    def slots(self) -> frozenset[str]:
        """The momentum, if there is any."""
        return frozenset({"momentum_buffer"}) if self.momentum > 0 else frozenset()

    def build(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """`torch.optim.SGD`."""
        return torch.optim.SGD(
            [parameter], lr=self.learning_rate, momentum=self.momentum, nesterov=self.nesterov, foreach=False
        )


@optimizer("adam")
@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), with its bias correction."""

    learning_rate: float = key(0.01, above=0, help="the server's step size")
    beta1: float = key(0.9, at_least=0, below=1, help="decay of the first moment")
    beta2: float = key(0.99, at_least=0, below=1, help="decay of the second moment")
    eps: float = key(1e-3, above=0, help="tau, added to the root of the second moment: how adaptive the steps are")

    @property
    def slots(self) -> frozenset[str]:
        """Both moments and the number of steps."""
        return frozenset({"exp_avg", "exp_avg_sq", "step"})

    def build(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """`torch.optim.Adam`."""
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam([parameter], lr=self.learning_rate, betas=betas, eps=self.eps, foreach=False)


@optimizer("adamw")
@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2)."""

    learning_rate: float = key(0.01, above=0, help="the server's step size")
    beta1: float = key(0.9, at_least=0, below=1, help="decay of the first moment")
    beta2: float = key(0.99, at_least=0, below=1, help="decay of the second moment")
    eps: float = key(1e-3, above=0, help="tau, added to the root of the second moment: how adaptive the steps are")
    weight_decay: float = key(0.01, at_least=0, help="shrinks the model by learning_rate * weight_decay per step")

    @property
    def slots(self) -> frozenset[str]:
        """Both moments and the number of steps."""
        return frozenset({"exp_avg", "exp_avg_sq", "step"})

    def build(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """`torch.optim.AdamW`."""
        return torch.optim.AdamW(
            [parameter],
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            foreach=False,
        )


@optimizer("adagrad")
@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011): steps shrink with the root of all squared gradients so far."""

    learning_rate: float = key(0.01, above=0, help="the server's step size")
    eps: float = key(1e-3, above=0, help="tau, added to the root of the sum: how adaptive the steps are")
    initial: float = key(1e-6, at_least=0, help="the sum of squares before the first step; tau**2 in Reddi et al.")

    @property
    def slots(self) -> frozenset[str]:
        """The sum of squared gradients and the number of steps."""
        return frozenset({"step", "sum"})

    def build(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """`torch.optim.Adagrad`."""
        return torch.optim.Adagrad(
            [parameter],
            lr=self.learning_rate,
            eps=self.eps,
            initial_accumulator_value=self.initial,
            foreach=False,
        )


@optimizer("yogi")
@dataclass(frozen=True)
class Yogi(Optimizer):
    """Yogi (Zaheer et al. 2018, algorithm 2): Adam whose second moment moves by at most (1 - beta2) * g**2.

    Without bias correction, as published there and in Reddi et al. 2021, whose second moment starts at tau**2.
    """

    learning_rate: float = key(0.01, above=0, help="the server's step size")
    beta1: float = key(0.9, at_least=0, below=1, help="decay of the first moment")
    beta2: float = key(0.99, at_least=0, below=1, help="how slowly the second moment moves")
    eps: float = key(1e-3, above=0, help="tau, added to the root of the second moment: how adaptive the steps are")
    initial: float = key(1e-6, at_least=0, help="the second moment before the first step; tau**2 in Reddi et al.")

    @property
    def slots(self) -> frozenset[str]:
        """Both moments."""
        return frozenset({"exp_avg", "exp_avg_sq"})

    def build(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """`YogiRule`, which torch.optim has not."""
        return YogiRule(parameter, self)


class YogiRule(torch.optim.Optimizer):
    """Yogi as a torch optimizer of one parameter."""

    def __init__(self, parameter: nn.Parameter, settings: Yogi) -> None:
        super().__init__([parameter], {})
        self._settings = settings

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step along the gradient the parameter holds; a closure is called first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                self._move(parameter, parameter.grad)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor) -> None:
        rule, state = self._settings, self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.full_like(parameter, rule.initial)
        first, second, square = state["exp_avg"], state["exp_avg_sq"], gradient.square()
        first.mul_(rule.beta1).add_(gradient, alpha=1 - rule.beta1)
        second.addcmul_((second - square).sign_(), square, value=rule.beta2 - 1)
        parameter.addcdiv_(first, second.sqrt().add_(rule.eps), value=-rule.learning_rate)


def step(rule: Optimizer, state: Mapping[str, Tensor], update: Tensor) -> dict[str, Tensor]:
    """A strategy's state after one step of its server optimizer along an update `(N,)`.

    Args:
        rule: the optimizer.
        state: holds `model`, `(N,)`, and the rule's slots as `server.NAME`; what else it holds stays.
        update: the mean of what silos trained minus what they received.
    """
    slots = {name.removeprefix("server."): value for name, value in state.items() if name.startswith("server.")}
    model, slots = rule.apply(state["model"], update, slots)
    kept = {name: value.clone() for name, value in state.items() if name != "model" and not name.startswith("server.")}
    return {**kept, "model": model} | {f"server.{name}": value for name, value in slots.items()}
