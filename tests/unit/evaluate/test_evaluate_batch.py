"""Batch prediction: the same rows whoever makes the parts, and whenever anybody is killed."""

import json
import os
import signal
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hpcmass.data import open_dataset, shard, verify_dataset  # noqa: E402
from hpcmass.errors import AlreadyExists, DataError  # noqa: E402
from hpcmass.evaluate import predict_file  # noqa: E402
from hpcmass.evaluate.batch import Place, predict_dataset  # noqa: E402
from hpcmass.evaluate.batch_out import open_output  # noqa: E402
from hpcmass.train.bundle_writer import write_torch_bundle  # noqa: E402
from hpcmass.train.model import load_bundle  # noqa: E402
from hpcmass.train.recipe import load_recipe  # noqa: E402

N = 1100
RECIPE = """
import torch


def build_model(params):
    torch.manual_seed(params["seed"])
    return torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A dataset of 1100 samples in three shards, five batches; two models; what one process predicts."""
    root = tmp_path_factory.mktemp("batch")
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 6)).astype(np.float32)
    np.savez(root / "raw.npz", x=x, label=x[:, :3].argmax(1), site=np.arange(N) * 7 % 1009)
    shard([root / "raw.npz"], root / "d", shards=3, workers=1, meta=["site"])
    (root / "recipe.py").write_text(RECIPE)
    recipe, data = load_recipe(root / "recipe.py"), open_dataset(root / "d")
    for seed in (0, 1):
        model = recipe.build_model({"seed": seed})
        write_torch_bundle(root / f"m{seed}", model, recipe, {"seed": seed}, data, torch.zeros(2, 3))
    predict_dataset(root / "m0", root / "d", root / "one")
    return root


def made(lab, out, **more):
    return predict_dataset(lab / "m0", lab / "d", out, **more)


def content(folder):
    """Every file's bytes, and of JSON its value without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = (
                {**json.loads(data), "created": 0} if path.suffix == ".json" else data
            )
    return found


def test_it_is_a_dataset_with_the_same_rows_in_the_same_order(lab):
    data, found = open_dataset(lab / "d"), open_dataset(lab / "one")
    assert verify_dataset(lab / "one").ok
    assert len(found) == N
    assert list(found.fields) == ["sample", "probabilities", "predicted", "site"]
    assert (found.inputs, found.metas) == (["probabilities"], ["sample", "predicted", "site"])
    assert found.classes("predicted") == list(load_bundle(lab / "m0").classes)
    rows, known = found.batch(np.arange(N)), data.batch(np.arange(N))
    assert (rows["sample"] == np.arange(N)).all()
    assert (rows["site"] == known["site"]).all()
    alone = predict_file(load_bundle(lab / "m0"), lab / "d")
    assert (rows["probabilities"] == alone.outputs).all()
    assert (rows["predicted"] == alone.indices).all()
    assert found.manifest.source["dataset"] == data.id
    assert found.manifest.source["kind"] == "prediction"


@pytest.mark.parametrize("kind", ["hdf5", "parquet"])
def test_neither_ranks_nor_parts_of_others_show(lab, tmp_path, kind):
    whole = tmp_path / "whole"
    made(lab, whole, kind=kind)
    for rank in (2, 1):
        plan, complete = made(lab, tmp_path / "ranks", kind=kind, place=Place(rank, 3))
        assert complete, "a rank makes what others have not begun"
    assert plan.parts == 5
    assert content(tmp_path / "ranks") == content(whole)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    made(lab, whole, kind=kind)  # once more: nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_processes_of_its_own(lab, tmp_path):
    told = []
    made(lab, tmp_path / "two", place=Place(workers=2), progress=lambda done, total: told.append((done, total)))
    assert content(tmp_path / "two") == content(lab / "one")
    assert told[0] == (0, N)
    assert told[-1] == (N, N)


def test_what_another_process_makes_now_is_left_to_it(lab, tmp_path):
    bundle, data, out = lab / "m0", lab / "d", tmp_path / "out"
    from hpcmass.evaluate.batch_plan import identity_of, make_plan

    plan = make_plan(load_bundle(bundle), identity_of(bundle), open_dataset(data))
    for kind in ("hdf5", "parquet"):
        output = open_output(out / kind, kind)
        output.agree(plan)

        def meanwhile(kind=kind):
            _, complete = predict_dataset(bundle, data, out / kind, kind=kind, place=Place(1, 2))
            assert not complete
            assert open_output_done(out / kind, kind, plan) == {0, 1, 2, 4}
            from hpcmass.evaluate.batch_plan import part_batches

            return part_batches(load_bundle(bundle), open_dataset(data), plan, 3)

        assert output.write(3, meanwhile)
        assert output.finish()
    assert content(out / "hdf5") == content(lab / "one")


def open_output_done(folder, kind, plan):
    output = open_output(folder, kind)
    output.agree(plan)
    return output.done()


def test_parquet_has_the_same_rows(lab, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    made(lab, tmp_path / "p", kind="parquet", keep=["label", "site"], part_samples=300)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "_complete.json", "_plan.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet",
    ]  # fmt: skip
    found = pq.read_table(tmp_path / "p")
    rows = open_dataset(lab / "one").batch(np.arange(N))
    assert found.column_names == ["sample", "probabilities", "predicted", "label", "site"]
    for name in ("sample", "predicted", "site"):
        assert (found[name].to_numpy() == rows[name]).all()
    assert (np.array(found["probabilities"].to_pylist(), np.float32) == rows["probabilities"]).all()
    said = json.loads(found.schema.field("predicted").metadata[b"hpcmass"])
    assert said["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["hdf5", "parquet"])
def test_killed_at_any_point_the_next_start_goes_on(lab, tmp_path, kind):
    """A process that is killed at each of its changes below the folder, one after the other."""
    whole = tmp_path / "whole"
    made(lab, whole, kind=kind, part_samples=512)
    expected, point, kept = content(whole), 0, 0
    while True:
        point += 3
        out = tmp_path / f"at-{point}"
        child = os.fork()
        if child == 0:
            os._exit(_until(point, out, lambda out=out: made(lab, out, kind=kind, part_samples=512)))
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        complete = (out / ("manifest-000001.json" if kind == "hdf5" else "_complete.json")).exists()
        finished = {
            p: p.stat().st_mtime_ns for p in out.rglob("rank-*-done.json" if kind == "hdf5" else "part-*")
        }
        kept += bool(finished)
        made(lab, out, kind=kind, part_samples=512)
        assert content(out) == expected, f"killed at change {point}"
        if complete or kind == "parquet":
            assert all(p.stat().st_mtime_ns == at for p, at in finished.items() if p.exists())
    assert point > 20
    assert kept > 3, "some were killed when a part was finished"


def _until(point, out, work):
    """Run, and be killed at the so-manieth file that is made, renamed, linked or removed below `out`."""
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        changes = event in ("os.rename", "os.link", "os.remove", "os.mkdir") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        )
        if changes and str(out) in str(arguments[0]):
            seen += 1
            if seen == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        work()
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


@pytest.mark.parametrize("kind", ["hdf5", "parquet"])
def test_another_plan_is_refused(lab, tmp_path, kind):
    out = tmp_path / "out"
    output = open_output(out, kind)
    with pytest.raises(ZeroDivisionError):
        _begun(lab, output)
    for what, more in (
        ("model", {}),
        ("part_samples", {"part_samples": 256 * 3}),
        ("columns", {"keep": ["label"]}),
    ):
        bundle = lab / ("m1" if what == "model" else "m0")
        with pytest.raises(DataError, match=what):
            predict_dataset(bundle, lab / "d", out, kind=kind, **more)
    made(lab, out, kind=kind)
    with pytest.raises(DataError, match="model"):
        predict_dataset(lab / "m1", lab / "d", out, kind=kind)


def _begun(lab, output):
    """A prediction that was begun and ended in its first part."""
    from hpcmass.evaluate.batch_plan import identity_of, make_plan

    output.agree(make_plan(load_bundle(lab / "m0"), identity_of(lab / "m0"), open_dataset(lab / "d")))
    output.write(0, lambda: 1 // 0)


def test_folders_that_hold_something_else(lab, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for kind in ("hdf5", "parquet"):
        with pytest.raises(AlreadyExists):
            made(lab, tmp_path / "full", kind=kind)
        with pytest.raises(AlreadyExists):
            made(lab, lab / "d", kind=kind)
    assert os.listdir(tmp_path / "full") == ["thesis.tex"]


def test_what_cannot_be_predicted(lab, tmp_path):
    for keep in (["nothing"], ["sample"]):
        with pytest.raises(DataError):
            made(lab, tmp_path / "out", keep=keep)
    x = np.zeros((600, 6), np.float32)
    x[400, 2] = np.nan
    np.savez(tmp_path / "nan.npz", x=x, label=np.zeros(600, np.int64))
    shard([tmp_path / "nan.npz"], tmp_path / "nan", shards=1, workers=1)
    with pytest.raises(DataError, match="sample 400"):
        predict_dataset(lab / "m0", tmp_path / "nan", tmp_path / "out")
    assert not list((tmp_path / "out").glob("manifest*")), "nothing half"


def test_it_goes_on_with_the_samples_it_began_with(lab, tmp_path):
    import shutil

    from hpcmass.data import append

    shutil.copytree(lab / "d", tmp_path / "d")
    output = open_output(tmp_path / "out", "hdf5")
    with pytest.raises(ZeroDivisionError):
        _begun(lab, output)
    np.savez(
        tmp_path / "more.npz", x=np.ones((5, 6), np.float32), label=np.zeros(5, np.int64), site=np.arange(5)
    )
    append(tmp_path / "d", [tmp_path / "more.npz"])
    predict_dataset(lab / "m0", tmp_path / "d", tmp_path / "out")
    assert content(tmp_path / "out") == content(lab / "one")
