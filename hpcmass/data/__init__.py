"""Floor 2: datasets: sources, cutting into shards, the sample order, reading and verifying.

The names below are imported when first used: neither torch nor h5py is needed to read a dataset, and
nothing heavy to import this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmass.data.cut import STRATEGIES
    from hpcmass.data.loader import Loaded, Loader, Plan
    from hpcmass.data.manifest import Field, Manifest, ShardInfo, read_manifest, split_folders
    from hpcmass.data.order import Order, epoch_ids, rank_slice
    from hpcmass.data.orders import make_mix, make_order
    from hpcmass.data.ragged import Ragged
    from hpcmass.data.reader import Dataset, Samples, concat, open_dataset
    from hpcmass.data.shaping import Shape
    from hpcmass.data.sources import open_source
    from hpcmass.data.verify import VerifyReport, verify_dataset
    from hpcmass.data.write import shard
    from hpcmass.data.writing.append import append
    from hpcmass.data.writing.commit import commit
    from hpcmass.data.writing.reshard import reshard
    from hpcmass.data.writing.writer import ShardWriter

_WHERE = {
    "Dataset": "reader",
    "Field": "manifest",
    "Loaded": "loader",
    "Loader": "loader",
    "Manifest": "manifest",
    "Order": "order",
    "Plan": "loader",
    "Ragged": "ragged",
    "STRATEGIES": "cut",
    "Samples": "reader",
    "Shape": "shaping",
    "ShardInfo": "manifest",
    "ShardWriter": "writing.writer",
    "VerifyReport": "verify",
    "append": "writing.append",
    "commit": "writing.commit",
    "concat": "reader",
    "epoch_ids": "order",
    "make_mix": "orders",
    "make_order": "orders",
    "open_dataset": "reader",
    "open_source": "sources",
    "rank_slice": "order",
    "read_manifest": "manifest",
    "reshard": "writing.reshard",
    "shard": "write",
    "split_folders": "manifest",
    "verify_dataset": "verify",
}

__all__ = [
    "STRATEGIES",
    "Dataset",
    "Field",
    "Loaded",
    "Loader",
    "Manifest",
    "Order",
    "Plan",
    "Ragged",
    "Samples",
    "Shape",
    "ShardInfo",
    "ShardWriter",
    "VerifyReport",
    "append",
    "commit",
    "concat",
    "epoch_ids",
    "make_mix",
    "make_order",
    "open_dataset",
    "open_source",
    "rank_slice",
    "read_manifest",
    "reshard",
    "shard",
    "split_folders",
    "verify_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"hpcmass.data.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'hpcmass.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
