"""Layers that mix tokens outside of attention, put in the place of a model's own."""

from typing import Any

import torch
from torch import Tensor, nn


class Mixing(nn.Module):
    """A layer that adds to each token the one before it in the row: a convolution."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        before = torch.roll(hidden_states, 1, dims=1)
        before[:, 0] = 0
        return self.layer(hidden_states + before, **others)
