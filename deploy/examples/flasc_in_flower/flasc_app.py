"""Digits at some silos: a tenth of every update travels, and whole silos have differential privacy."""

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import nn

from client.flower_client import reply
from server.flower_strategy import FlowerStrategy
from strategies.flasc import FLASC
from strategies.flower_records import trainable

server = ServerApp()
client = ClientApp()


def model() -> nn.Module:
    """A small network for 8 x 8 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Charges, clips and noises every round; the strategy is all that a plain Flower project has otherwise."""
    config = context.run_config
    privacy = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}
    flasc = FLASC(density_down=0.5, density_up=0.1)
    strategy = FlowerStrategy(flasc, silos=config["silos"], ledger=config["ledger"], budget=20.0, **privacy)
    result = strategy.start(grid, trainable(model()), num_rounds=config["rounds"])
    strategy.close()
    np.savez(config["model"], **dict(zip(result.arrays, result.arrays.to_numpy_ndarrays())))


@client.train()
def train(message: Message, context: Context) -> Message:
    """Trains on the rows of this node."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    own = slice(int(context.node_config["partition-id"]), None, int(context.run_config["silos"]))
    features, targets = torch.tensor(digits.data[own] / 16).float(), torch.tensor(digits.target[own])

    def fit(module: nn.Module) -> None:  # Your own loop: any optimizer, any number of epochs.
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for batch in torch.randperm(len(targets)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(features[batch]), targets[batch]).backward()
            optimizer.step()

    return reply(message, model(), fit)
