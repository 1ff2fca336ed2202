"""The server's Flower app: `flwr run .` has a SuperLink start it, with a Grid that reaches the silos' nodes.

It is an entry point, and the one place that looks up: an experiment is run by the room above this one.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.flower import GridPost, end_with_parent

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the experiment that the run's configuration names."""
    from simulations.deploying.serving import serve

    end_with_parent()
    serve(GridPost(grid), context.run_config)
