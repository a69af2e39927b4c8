"""Minutes of delay on arrival: a network with embeddings, or boosted trees, as `params["family"]` says.

Each column of the table is a field of its own. What is known of the columns comes from the manifest, as `data`:
the mean and deviation of numbers, the words of categories.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def build_model(params: dict[str, Any], data: dict[str, dict[str, Any]]) -> Any:
    """The model of a trial: a torch module, or an estimator with scikit-learn's interface."""
    columns = [facts for facts in data.values() if facts["role"] == "input"]
    (target,) = (facts for facts in data.values() if facts["role"] == "target")
    if params["family"] == "trees":
        return build_trees(params, columns)
    return Delay(columns, target, params["width"], params.get("dropout", 0.0))


class Delay(nn.Module):
    """Numbers standardised, words embedded, then a line and a perceptron side by side; gives minutes.

    The line goes on where few flights were seen: a delay of ten hours.
    """

    def __init__(
        self, columns: list[dict[str, Any]], target: dict[str, Any], width: int, dropout: float
    ) -> None:
        super().__init__()
        self.words = [bool(facts["classes"]) for facts in columns]
        known = [facts for facts in columns if not facts["classes"]]
        self.register_buffer("mean", torch.tensor([facts["mean"] for facts in known]))
        self.register_buffer("std", torch.tensor([facts["std"] or 1.0 for facts in known]))
        sizes = [len(facts["classes"]) for facts in columns if facts["classes"]]
        self.embed = nn.ModuleList(nn.Embedding(size, min(8, 1 + size // 2)) for size in sizes)
        inside = len(known) + sum(table.embedding_dim for table in self.embed)
        self.body = nn.Sequential(
            nn.Linear(inside, width), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(width, 1),
        )  # fmt: skip
        self.line = nn.Linear(inside, 1)
        nn.init.zeros_(self.body[-1].weight)
        self.centre, self.scale = target["mean"], target["std"]

    def forward(self, *columns: Tensor) -> Tensor:
        """One tensor (n,) a column, in the order of the table; gives (n,)."""
        numbers = [column.float() for column, word in zip(columns, self.words, strict=True) if not word]
        words = [column for column, word in zip(columns, self.words, strict=True) if word]
        x = (torch.stack(numbers, dim=1) - self.mean) / self.std
        x = torch.cat([x, *(table(word) for table, word in zip(self.embed, words, strict=True))], dim=1)
        return self.centre + self.scale * (self.line(x) + self.body(x)).squeeze(1)


def build_trees(params: dict[str, Any], columns: list[dict[str, Any]]) -> Any:
    """Gradient-boosted trees; words stay categories."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        learning_rate=params["learning_rate"],
        max_leaf_nodes=params["leaves"],
        max_iter=params["rounds"],
        categorical_features=[number for number, facts in enumerate(columns) if facts["classes"]],
        random_state=0,
    )


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Huber's loss: squares up to ten minutes, so that a few lost days do not rule."""
    return functional.huber_loss(outputs, targets, delta=10.0) / 100.0


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Minutes off, and the share of flights told to a quarter of an hour; a value a flight."""
    off = (outputs - targets).abs()
    return {"mae": off, "within_15": (off <= 15).float()}
