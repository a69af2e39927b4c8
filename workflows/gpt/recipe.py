"""A small GPT on characters: a block in, for each of its characters the logits of the next one out.

The dataset has one field, `text`, (context + 1,) uint8; with no target the input is the target.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 128


def build_model(params: dict[str, Any], data: dict[str, dict[str, Any]]) -> nn.Module:
    (block,) = data["text"]["shape"]
    return GPT(block - 1, params["layers"], params["width"], params["heads"], params.get("dropout", 0.0))


class GPT(nn.Module):
    """A decoder-only transformer, normed before each part, with tied embeddings (as GPT-2)."""

    def __init__(self, context: int, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.character = nn.Embedding(VOCABULARY, width)
        self.place = nn.Embedding(context, width)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, value in self.named_parameters():
            if value.ndim == 2:
                nn.init.normal_(value, std=0.02 / (math.sqrt(2 * layers) if "out" in name else 1))

    def forward(self, text: Tensor) -> Tensor:
        """Characters (n, context + 1) int64 to logits (n, context, 128); the last character is not seen."""
        seen = text[:, :-1]
        x = self.character(seen) + self.place.weight[: seen.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.norm(x), self.character.weight)


class Layer(nn.Module):
    """Attention to what came before, and a perceptron."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, length, width) to the same shape."""
        n, length, width = x.shape
        parts = self.qkv(self.norms[0](x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(*parts.unbind(), dropout_p=drop, is_causal=True)
        x = x + self._drop(self.attention_out(seen.transpose(1, 2).reshape(n, length, width)))
        return x + self._drop(self.mlp_out(functional.gelu(self.wide(self.norms[1](x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


def transform(batch: dict[str, Tensor], train: bool) -> dict[str, Tensor]:
    """Characters are numbers of rows, not brightness."""
    return {**batch, "text": batch["text"].long()}


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the next character, in nats."""
    return functional.cross_entropy(outputs.flatten(0, 1), targets[:, 1:].flatten())


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Bits a character, a value a block."""
    nats = functional.cross_entropy(outputs.transpose(1, 2), targets[:, 1:], reduction="none")
    return {"bits_per_char": nats.mean(dim=1) / math.log(2)}
