"""Files of strangers: nothing is unpickled, no other file is read, nothing but ONNX's own operators is let through."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

sys.path[:0] = [str(Path(__file__).parent)]

import torch  # noqa: E402
from export_lab import torch_model  # noqa: E402

from hpcmass.errors import CorruptError, RecipeError  # noqa: E402
from hpcmass.export import export_bundle  # noqa: E402
from hpcmass.export.portable import check_portable  # noqa: E402
from hpcmass.files import sha256_file  # noqa: E402
from hpcmass.train.exported import checked_archive, onnx_session  # noqa: E402
from hpcmass.train.model import load_bundle  # noqa: E402
from hpcmass.train.onnx_wire import read_onnx  # noqa: E402

LINE = "from torch import nn\n\ndef build_model(params):\n    return nn.Linear(4, 1)\n"


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def small(nodes: list[Any], opset: int = 18, tensors: list[Any] | None = None, **more: Any) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=tensors or [])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    x = np.ones((4, 4), np.float32)
    parent = torch_model(folder, LINE, {"x": x}, {"y": x[:, 0]}, torch.zeros(2, 1))
    return export_bundle(parent, "torch-export", folder / "out", {"x": x}).folder


def forged(program: Path, folder: Path, change: dict[str, bytes], also: dict[str, bytes]) -> Path:
    """The bundle with other contents in its archive, and digests that fit."""
    folder.mkdir()
    for one in program.iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    file = folder / "model.pt2"
    with zipfile.ZipFile(program / "model.pt2") as old, zipfile.ZipFile(file, "w") as new:
        top = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            new.writestr(name, change.get(name.partition("/")[2], old.read(name)))
        for name, data in also.items():
            new.writestr(f"{top}/{name}", data)
    raw = json.loads((folder / "model.json").read_text())
    raw["files"]["model.pt2"] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (folder / "model.json").write_text(json.dumps(raw))
    return folder


def test_what_hpcmass_writes_is_let_through(program: Path) -> None:
    assert zipfile.is_zipfile(checked_archive(program / "model.pt2"))
    assert load_bundle(program)(np.ones((2, 4), np.float32)).shape == (2, 1)


@pytest.mark.parametrize("where", ["samples", "weight", "constant", "legacy", "native", "older", "twice"])
def test_nothing_of_a_forged_program_is_unpickled(program: Path, tmp_path: Path, where: str) -> None:
    evil = tmp_path / "made-by-the-file"
    bytes_of_evil = pickle.dumps(Evil(evil))
    buffer = tmp_path / "evil.pt"
    torch.save(Evil(evil), buffer)
    saved = buffer.read_bytes()
    with zipfile.ZipFile(program / "model.pt2") as archive:
        top = archive.namelist()[0].split("/")[0]
        config = json.loads(archive.read(f"{top}/data/weights/model_weights_config.json"))
    for meta in config["config"].values():
        meta["use_pickle"] = True
    constants = {"config": {"evil": {**meta, "path_name": "opaque_obj_0"}}}
    change: dict[str, bytes] = {}
    also: dict[str, bytes] = {}
    if where == "samples":
        change = {"data/sample_inputs/model.pt": saved}
    elif where == "weight":
        change = {
            "data/weights/model_weights_config.json": json.dumps(config).encode(),
            "data/weights/weight_0": saved,
        }
    elif where == "constant":
        change = {"data/constants/model_constants_config.json": json.dumps(constants).encode()}
        also = {"data/constants/opaque_obj_0": bytes_of_evil}
    elif where == "legacy":
        also = {"data/weights/model.pt": saved}
    elif where == "native":
        also = {"data/aotinductor/model/model.so": b"\x7fELF"}
    elif where == "older":
        also = {"version": b"8.8", "serialized_state_dict.pt": saved}
    else:
        also = {"data/sample_inputs/model.pt": saved}
    twice = where == "twice"
    with pytest.warns(UserWarning, match="Duplicate") if twice else contextlib.nullcontext():
        folder = forged(program, tmp_path / "forged", change, also)
    with pytest.raises(CorruptError, match="without pickles"):
        load_bundle(folder)
    assert not evil.exists()


def test_the_forged_sample_inputs_would_be_unpickled_by_torch(program: Path, tmp_path: Path) -> None:
    """Else the test above proves nothing."""
    evil = tmp_path / "made-by-the-file"
    torch.save(Evil(evil), tmp_path / "evil.pt")
    saved = (tmp_path / "evil.pt").read_bytes()
    folder = forged(program, tmp_path / "forged", {"data/sample_inputs/model.pt": saved}, {})
    with contextlib.suppress(Exception):
        torch.export.load(folder / "model.pt2")
    assert evil.is_dir()


def test_a_tensor_in_another_file_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", str(secret)), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    model = small([helper.make_node("Add", ["x", "w"], ["y"])], tensors=[tensor])
    with pytest.raises(ValueError, match="other files"):
        onnx_session(model.SerializeToString())
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["z"])], "then", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4])], initializer=[tensor],
    )  # fmt: skip
    constant = helper.make_node(
        "Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True])
    )
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    assert read_onnx(small([constant, branch]).SerializeToString()).external


def test_operators_of_microsoft_and_of_no_kernel_are_refused() -> None:
    own = small([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]).SerializeToString()
    onnx_session(own)  # it runs here, and nothing says that it does elsewhere
    with pytest.raises(RecipeError, match=r"com\.microsoft:Gelu"):
        check_portable(own)
    with pytest.raises(RecipeError, match="no CPU kernel of Gelu for opset 18"):
        check_portable(small([helper.make_node("Gelu", ["x"], ["y"])]).SerializeToString())
    fine = check_portable(small([helper.make_node("Relu", ["x"], ["y"])]).SerializeToString())
    assert (fine.operators, fine.opsets) == (("Relu",), {"ai.onnx": 18})


def test_operators_in_branches_and_functions_are_seen() -> None:
    y = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4])
    inner = helper.make_graph([helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft")], "then", [], [y])
    constant = helper.make_node(
        "Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True])
    )
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(RecipeError, match=r"com\.microsoft:Gelu"):
        check_portable(small([constant, branch]).SerializeToString())
    function = helper.make_function(
        "own",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 18)],
    )
    model = small([helper.make_node("Twice", ["x"], ["y"], domain="own")], functions=[function])
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert check_portable(model.SerializeToString()).operators == ("Add",)


def test_what_is_read_off_the_bytes_is_what_onnx_reads(program: Path, tmp_path: Path) -> None:
    x = np.ones((4, 4), np.float32)
    parent = torch_model(tmp_path, LINE, {"x": x}, {"y": x[:, 0]}, torch.zeros(2, 1))
    export_bundle(parent, "int8", tmp_path / "out", {"x": x}, calibration=[{"x": x}])
    data = (tmp_path / "out" / "model.onnx").read_bytes()
    model, facts = onnx.load_model_from_string(data), read_onnx(data)
    assert facts.operators == {(node.domain, node.op_type) for node in model.graph.node}
    assert facts.opsets == {one.domain: one.version for one in model.opset_import}
    assert facts.ir_version == model.ir_version


WHOLE = small(
    [helper.make_node("Add", ["x", "w"], ["y"])],
    tensors=[helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0] * 4)],
).SerializeToString()


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(WHOLE)),
)
def test_damaged_bytes_are_refused_or_read_and_never_worse(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    with contextlib.suppress(ValueError):
        read_onnx(bytes(data[:length]))
