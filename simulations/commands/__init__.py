"""The commands of `confide`, a module each: `NAME`, `HELP`, `arguments(parser)`, `execute(args) -> exit code`.

Modules here import nothing slow at their top, so that `confide --help` answers at once.
"""

OK, FAILED, REFUSED, BUDGET, ALARM, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes: done; the work or the machine failed; the user's to correct; stopped by the budget; canaries contradict
the claim; by a signal."""
