"""The order of a run's training samples: made from the job, recorded in its folder, held against it later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmass.config import Job, Project
from hpcmass.data import Dataset, read_manifest
from hpcmass.data.order import FORMAT, Order
from hpcmass.data.orders import make_mix, make_order
from hpcmass.errors import ConfigError, CorruptError, NotFound
from hpcmass.files import read_json, replace_json
from hpcmass.runs import RunFolder
from hpcmass.train.begun import has_trained

FILE = "order.json"


def open_order(job: Job, project: Project, dataset: Dataset, pins: Mapping[str, str] | None = None) -> Order:
    """The order in which a job's training data is read.

    Args:
        job: Its `data` and `train.global_batch` say which.
        project: What the data paths are relative to.
        dataset: The training data, as opened for the run.
        pins: The ids by which its datasets were opened.

    Raises:
        ConfigError: The order does not fit the data; the message names the key.
    """
    data, batch = job.data, job.train.global_batch
    block_bytes, window, lanes = data.block.kib << 10, data.block.window, data.block.lanes
    if data.mix is None:
        return make_order(
            data.order, dataset, data.seed, batch=batch, block_bytes=block_bytes, window=window, lanes=lanes,
            field=data.stratify,
        )  # fmt: skip
    names = data.train if isinstance(data.train, list) else [data.train or ""]
    parts = {name: read_manifest(project.data_path(name), (pins or {}).get(name)).samples for name in names}
    return make_mix(
        data.order, dataset, parts, data.mix, data.seed, batch=batch, epoch_samples=data.epoch_samples,
        block_bytes=block_bytes, window=window,
    )  # fmt: skip


def check_order(run: RunFolder, order: Order) -> None:
    """Refuse to go on in another order than the run was begun in.

    Raises:
        ConfigError: It is another; the message says in what.
        CorruptError: `order.json` is not what it should be.
    """
    if not run.exists() or not has_trained(run):
        return
    now = order.to_json()
    try:
        then = _read(run.path / FILE)
    except NotFound:
        then = {**now, "format": 1}  # a run of before there was the file
    if then.get("format") == 1 and now["kind"] == "sequential":
        return
    if then != now:
        listed = "; ".join(
            f"{key}: {_say(then.get(key))} then, {_say(now.get(key))} now"
            for key in dict.fromkeys([*then, *now])
            if then.get(key) != now.get(key)
        )
        other = then.get("format") != FORMAT
        raise ConfigError(
            f"the run was begun with its samples in another order ({listed}): "
            "some would be seen twice and others never",
            where=run.path,
            hint="go on with the hpcmass that began it, or begin again (--fresh)"
            if other
            else "undo the change of the data or of [data], or begin again (--fresh)",
        )


def record_order(run: RunFolder, order: Order) -> None:
    """Write down what the order is, for those who go on with the run and for those who ask.

    Raises:
        StorageError: The file system refused.
    """
    replace_json(run.path / FILE, {**order.to_json(), "text": order.describe()})


def _read(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise CorruptError("is not the order of a run", where=path)
    return {key: said for key, said in value.items() if key != "text"}


def _say(value: Any) -> str:
    return "nothing" if value is None else str(value)
