"""What the libraries say of a collective that failed, and what becomes of it."""

import numpy as np
import pytest

from hpcmass.errors import DataError
from hpcmass.train.comm.base import failure
from hpcmass.train.inputs import to_tensors


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:29090.",
            True,
        ),
        ("[../gloo/transport/tcp/pair.cc:534] Read error [127.0.0.1]:1: Connection reset by peer", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("Horovod has been shut down. This was caused by an exception on one of the ranks", True),
        ("MPI_Allreduce failed, see MPI output for details.", True),
        (
            "[enforce fail at ../gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 24 vs 16",
            False,
        ),
        ("Mismatched allreduce tensor shapes: One or more ranks sent tensors of shape [3]", False),
        ("Tensors must be contiguous", False),
    ],
)
def test_a_lost_rank_is_told_from_data_that_does_not_fit(text: str, lost: bool) -> None:
    error = failure(RuntimeError(text + "\nand a stack"))
    assert bool(error.data.get("lost_peer")) == lost
    assert ("lost the connection" in error.message) == lost
    assert text in error.message
    assert "stack" not in error.message


def test_what_int64_cannot_hold_is_refused_and_not_made_negative() -> None:
    small, large = np.array([0, 2**63 - 1], np.uint64), np.array([0, 2**63], np.uint64)
    assert to_tensors({"x": small}, ["x"])["x"].tolist() == [0, 2**63 - 1]
    with pytest.raises(DataError, match=r"'x' has a value of 9223372036854775808"):
        to_tensors({"x": large}, ["x"])
    assert list(to_tensors({"id": large, "x": small}, ["x"])) == ["x"]
