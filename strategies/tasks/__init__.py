"""Tasks: a model, its loss and its score, one file per family; `TASKS` holds them by name."""

from strategies.tasks import cnn, dense, lora, lstm, transformer  # noqa: F401  Importing a task registers it.
from strategies.tasks.base import TASKS, Chain, Shape, Task, evaluate, initial, task

__all__ = ["TASKS", "Chain", "Shape", "Task", "evaluate", "initial", "task"]
