"""The order in which micro-batches are added up does not depend on who has them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.train.comm.single import SingleCommunicator
from hpcmass.train.ordered import Buffers
from hpcmass.train.ordered_reducer import OrderedReducer
from hpcmass.train.tree import across, whole_nodes, within


def expected(a: int, b: int) -> str:
    middle = (a + b) // 2
    return str(a) if b - a == 1 else f"({expected(a, middle)}+{expected(middle, b)})"


@settings(max_examples=200, deadline=None)
@given(many=st.integers(1, 40), data=st.data())
def test_the_sum_is_the_same_expression_whatever_the_shares(many: int, data: Any) -> None:
    """Also of unequal shares, and of ranks that have none."""
    size = data.draw(st.integers(1, 6))
    inner = sorted(data.draw(st.lists(st.integers(0, many), min_size=size - 1, max_size=size - 1)))
    bounds = [0, *inner, many]
    held = [whole_nodes(many, bounds[r], bounds[r + 1]) for r in range(size)]
    rows = max(len(nodes) for nodes in held)
    table: dict[int, str] = {}
    for rank, nodes in enumerate(held):
        leaves, count = within(nodes, rows)
        assert sorted(leaves) == list(range(bounds[rank], bounds[rank + 1]))
        own: dict[int, str] = {}
        for micro in sorted(leaves):
            assert leaves[micro].row < count
            own[leaves[micro].row] = str(micro)
            for to, of in leaves[micro].adds:
                own[to] = f"({own[to]}+{own[of]})"
        table |= {rank * rows + n: own[n] for n in range(len(nodes))}
    first = min(table)
    for to, of in across(many, held, rows):
        table[to] = f"({table[to]}+{table[of]})"
    assert table[first] == expected(0, many)


class Lasting(SingleCommunicator):
    """As if there were other ranks."""

    def broadcast_(self, tensors: Any, root: int = 0) -> None:
        return


def test_one_rank_s_gradients_are_added_up_along_the_tree() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    parameters = [*model.parameters(), unused]
    many = 7
    inputs = [torch.randn(3, 5) * 10.0**n for n in range(many)]
    reducer = OrderedReducer(parameters, SingleCommunicator(), many, [(0, many)])
    alone: list[torch.Tensor] = []
    for _ in range(2):  # the second time over used rows
        reducer.zero()
        alone = []
        for number, x in enumerate(inputs):
            if number != 4:  # one has no samples
                model(x).sum().backward()
                alone.append(model[0].weight.grad.clone())
            else:
                alone.append(torch.zeros(4, 5))
            reducer.add(number)
        reducer.finish()

    def tree(a: int, b: int) -> torch.Tensor:
        middle = (a + b) // 2
        return alone[a] if b - a == 1 else tree(a, middle) + tree(middle, b)

    assert torch.equal(model[0].weight.grad, tree(0, many))
    assert unused.grad is not None
    assert not unused.grad.any()
    reducer.close()
    assert unused.grad is None


def test_buffers_are_those_of_micro_batch_0() -> None:
    model = torch.nn.BatchNorm1d(2)
    model.register_buffer("constant", torch.tensor([1.0, float("inf")]))
    buffers = Buffers(model, Lasting())
    for step in range(1, 3):
        buffers.begin()
        before = model.running_mean.clone()
        model(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        after = model.running_mean.clone()
        buffers.put_back(keep=True)
        assert torch.equal(model.running_mean, before)
        model(torch.tensor([[7.0, 7.0], [9.0, 8.0]]))
        buffers.put_back(keep=False)
        assert torch.equal(model.running_mean, before)
        assert buffers.changed
        buffers.settle(changed=True)
        assert torch.equal(model.running_mean, after)
        assert int(model.num_batches_tracked) == step


@pytest.mark.parametrize(("many", "rows"), [(1, 1), (12, 5)])
def test_rows_stay_few(many: int, rows: int) -> None:
    assert within(whole_nodes(many, 0, many), 1)[1] == rows
