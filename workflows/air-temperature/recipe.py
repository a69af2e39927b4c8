"""An autoencoder of maps: (37, 49) kelvin to a few numbers and back. With no target the input is the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

KELVIN = 2.0  # about the deviation of a place from its own mean


def build_model(params: dict[str, Any], data: dict[str, dict[str, Any]]) -> nn.Module:
    facts = data["air_temperature"]
    return Autoencoder(facts["shape"], facts["mean"], params["latent"], params["width"])


class Autoencoder(nn.Module):
    """Departures from the mean map, through convolutions, to `latent` numbers and back.

    The mean map is that of all maps seen so far in training; a rank's own, as the statistics of batch norm are.
    """

    def __init__(self, shape: list[int], mean: float, latent: int, width: int) -> None:
        super().__init__()
        self.height, self.breadth = shape
        rows, columns = -(-self.height // 8), -(-self.breadth // 8)  # after three strides of 2
        self.register_buffer("mean", torch.full((1, self.height, self.breadth), mean))
        self.register_buffer("seen", torch.tensor(0.0))
        pad = (0, 8 * columns - self.breadth, 0, 8 * rows - self.height)
        self.encode = nn.Sequential(
            nn.ZeroPad2d(pad),
            nn.Conv2d(1, width, 4, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1), nn.GELU(),
            nn.Flatten(), nn.Linear(4 * width * rows * columns, latent),
        )  # fmt: skip
        self.decode = nn.Sequential(
            nn.Linear(latent, 4 * width * rows * columns), nn.Unflatten(1, (4 * width, rows, columns)),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1), nn.GELU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.GELU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        )  # fmt: skip

    def forward(self, kelvin: Tensor) -> Tensor:
        """(n, height, width) in kelvin to the same."""
        if self.training:
            self.seen += len(kelvin)
            self.mean += (kelvin - self.mean).sum(dim=0) / self.seen
        code = self.encode((kelvin[:, None] - self.mean) / KELVIN)
        departure = self.decode(code)[:, 0, : self.height, : self.breadth]
        return self.mean + KELVIN * departure


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error in units of KELVIN."""
    return (outputs - targets).square().mean() / KELVIN**2


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Mean squared and absolute error of each map, in K² and K."""
    off = (outputs - targets).flatten(1)
    return {"mse": off.square().mean(dim=1), "mae": off.abs().mean(dim=1)}
