"""Orders in blocks, by class and of several data sets: what each promises, at any position."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.data import Dataset, concat, make_mix, make_order, open_dataset, shard
from hpcmass.data.blocks import BlockOrder, block_samples
from hpcmass.data.order import PlainOrder, rank_slice
from hpcmass.data.orders import mix_quotas, read_labels
from hpcmass.data.strata import MixedOrder, Strata, StratifiedOrder
from hpcmass.errors import ConfigError, CorruptError

seeds = st.integers(0, 2**63 - 1)
small = st.integers(1, 12)


def in_proportion(groups: np.ndarray, counts: np.ndarray, batch: int) -> None:
    """Each batch holds the groups in their proportion, rounded down or up."""
    n = len(groups)
    for start in range(0, n, batch):
        part = np.bincount(groups[start : start + batch], minlength=len(counts))
        exact = part.sum() * counts
        assert (part >= exact // n).all(), (start, part)
        assert (part <= -(-exact // n)).all(), (start, part)


# -- block ------------------------------------------------------------------------------------------------
@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(0, 400), seed=seeds, batch=st.integers(1, 50), block=st.integers(1, 40), window=small,
    lanes=small, epoch=st.integers(0, 10**6), data=st.data(),
)  # fmt: skip
def test_block_order_holds_every_sample_once_and_says_what_it_reads(
    n: int, seed: int, batch: int, block: int, window: int, lanes: int, epoch: int, data: st.DataObject
) -> None:
    order = BlockOrder(n, seed, batch=batch, block=block, window=window, lanes=lanes)
    ids = order.ids(epoch, 0, n)
    assert sorted(ids.tolist()) == list(range(n))
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    again = pickle.loads(pickle.dumps(order))
    assert again.ids(epoch, start, stop).tolist() == ids[start:stop].tolist()
    assert again.to_json() == order.to_json()
    said: set[int] = set()
    places = 0
    for first, end in order.stretches(start, stop):
        places += end - first
        for blocks in order.windows(epoch, first, end):
            assert len(blocks) <= window
            assert all(low % block == 0 and low < high <= min(n, low + block) for low, high in blocks)
            said.update(i for low, high in blocks for i in range(low, high))
    assert places == stop - start
    assert set(ids[start:stop].tolist()) <= said


@pytest.mark.parametrize("place", [0, 10**9, 10**10 - 2**15 - 5])
def test_block_order_of_1e10_samples_anywhere(place: int) -> None:
    order = BlockOrder(10**10 - 5, 1, batch=256, block=170, window=16, lanes=16)
    ids = order.ids(4, place, place + 2**15)
    assert len(np.unique(ids)) == 2**15
    assert 0 <= ids.min() <= ids.max() < order.n
    assert order.ids(4, place + 999, place + 1010).tolist() == ids[999:1010].tolist()


@pytest.mark.parametrize(("n", "block"), [(400_000, 100), (60_000, 669), (60_000, 170)])
def test_a_batch_draws_from_as_many_blocks_as_said(n: int, block: int) -> None:
    order = BlockOrder(n, 2, batch=256, block=block, window=16, lanes=16)
    whole = n // 256
    batches = order.ids(0, 0, 256 * whole).reshape(whole, 256) // block
    drawn = np.mean([len(np.unique(row)) for row in batches])
    assert abs(drawn / order.blocks_a_batch() - 1) < 0.05
    assert f"about {order.blocks_a_batch():.0f} blocks" in order.describe()


def test_block_order_mixes_anew_every_epoch() -> None:
    order = BlockOrder(400_000, 2, batch=256, block=100, window=16, lanes=16)
    # Another epoch has other companions: of 30,000 pairs of blocks that share a window, 112 do so again by chance.
    pairs = []
    for epoch in (0, 1):
        windows = order.windows(epoch, 0, order.n)
        assert [len(blocks) for blocks in windows] == [16] * 250
        pairs.append({pair for blocks in windows for pair in itertools.combinations(blocks, 2)})
    assert 60 < len(pairs[0] & pairs[1]) < 170
    first = order.ids(0, 0, 256)
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.3


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_ranks_read_different_blocks(size: int) -> None:
    """With as many ranks as lanes, or a divisor, a block is read by one rank, but for a few at the seams."""
    n, batch = 160_000, 160
    order = BlockOrder(n, 0, batch=batch, block=100, window=10, lanes=16)
    readers: dict[int, set[int]] = {}
    for step in range(n // batch):
        for rank in range(size):
            low, high = rank_slice(step * batch, (step + 1) * batch, rank, size)
            for block in np.unique(order.ids(0, low, high) // 100).tolist():
                readers.setdefault(block, set()).add(rank)
    assert len(readers) == 1600
    shared = sum(len(who) > 1 for who in readers.values())
    assert shared <= 10 * (size - 1)  # a window a seam between two ranks


@pytest.mark.parametrize(
    ("row", "n", "block"), [(3073, 10**6, 171), (1 << 20, 100, 1), (8, 100, 100), (0, 0, 1)]
)
def test_a_block_is_one_read_of_half_a_mebibyte(row: int, n: int, block: int) -> None:
    assert block_samples(n, row) == block


# -- stratified -------------------------------------------------------------------------------------------
label_lists = st.lists(st.sampled_from([-3, 0, 1, 2, 7, 7, 7, 7]), min_size=1, max_size=300)


@settings(max_examples=200, deadline=None)
@given(values=label_lists, seed=seeds, batch=st.integers(1, 40), epoch=st.integers(0, 10**6), data=st.data())
def test_stratified_batches_are_in_proportion(
    values: list[int], seed: int, batch: int, epoch: int, data: st.DataObject
) -> None:
    labels = np.array(values)
    order = StratifiedOrder(labels, seed, batch=batch, field="y")
    ids = order.ids(epoch, 0, len(labels))
    assert sorted(ids.tolist()) == list(range(len(labels)))
    numbers = np.unique(labels, return_inverse=True)[1]
    in_proportion(numbers[ids], np.bincount(numbers), batch)
    start = data.draw(st.integers(0, len(labels)))
    stop = data.draw(st.integers(start, len(labels)))
    assert order.ids(epoch, start, stop).tolist() == ids[start:stop].tolist()


def test_stratified_order_is_random_within_the_classes() -> None:
    labels = np.random.default_rng(0).choice(10, 20_000, p=np.arange(1, 11) / 55).astype(np.uint8)
    order = StratifiedOrder(labels, 5, batch=64, field="y")
    one, other = (order.ids(epoch, 0, 20_000) for epoch in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(one, np.arange(20_000))[0, 1]) < 0.03
    assert (one == other).sum() < 12
    for number in (0, 9):  # the places of a class, within batches and within the epoch
        at = np.flatnonzero(labels[one] == number)
        places, expected = np.bincount(at % 64, minlength=64), len(at) / 64
        assert ((places - expected) ** 2 / expected).sum() < 63 + 4.5 * np.sqrt(2 * 63)
        members = one[at]
        assert abs(np.corrcoef(members[:-1], members[1:])[0, 1]) < 4.5 / np.sqrt(len(at))
    # Any run of batches is in proportion as well: the rounding up is spread over the epoch.
    counts = np.bincount(labels)
    sums = np.cumsum([np.bincount(labels[one[k : k + 64]], minlength=10) for k in range(0, 19_968, 64)], axis=0)
    exact = np.arange(1, len(sums) + 1)[:, None] * 64 * counts / 20_000
    assert np.abs(sums - exact).max() < 4


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 200), min_size=1, max_size=9).filter(any),
    batch=st.integers(1, 50),
    turn=seeds,
)
def test_ups_are_counted_without_counting(counts: list[int], batch: int, turn: int) -> None:
    strata = Strata(counts, batch)
    if not strata.batches:
        return
    turn %= strata.batches
    ups = strata.ups_of(strata.steps(0, strata.batches, turn))
    for group in range(len(counts)):
        before = np.concatenate([[0], np.cumsum((ups == group).any(axis=1))])
        assert [strata.ups_before(group, k, turn) for k in range(strata.batches + 1)] == before.tolist()
        assert before[-1] == strata.ups[group]


# -- mixtures ---------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60)), min_size=1, max_size=4),
    kind=st.sampled_from(["global", "sequential", "block"]), seed=seeds, batch=st.integers(1, 40), data=st.data(),
)  # fmt: skip
def test_mixtures_go_through_each_data_set_again_and_again(
    parts: list[tuple[int, int]], kind: str, seed: int, batch: int, data: st.DataObject
) -> None:
    sizes, quotas = [size for size, _ in parts], [quota for _, quota in parts]
    quotas[0] += 1
    children = [
        BlockOrder(size, seed, batch=batch, block=3, window=2, lanes=1, key=str(number))
        if kind == "block"
        else PlainOrder(kind, size, seed, key=str(number))
        for number, size in enumerate(sizes)
    ]
    order = MixedOrder(children, [str(i) for i in range(len(parts))], quotas, seed, batch=batch)
    firsts, n = np.cumsum([0, *sizes]), sum(quotas)
    assert order.n == n
    used = np.zeros(sum(sizes), int)
    for epoch in range(3):
        ids = order.ids(epoch, 0, n)
        groups = np.searchsorted(firsts[1:], ids, side="right")
        in_proportion(groups, np.array(quotas), batch)
        used += np.bincount(ids, minlength=len(used))
        start = data.draw(st.integers(0, n))
        stop = data.draw(st.integers(start, n))
        assert order.ids(epoch, start, stop).tolist() == ids[start:stop].tolist()
        for group, quota in enumerate(quotas):
            mine = used[firsts[group] : firsts[group + 1]]
            assert mine.sum() == (epoch + 1) * quota
            assert mine.max() - mine.min() <= 1  # none again before each was used


def test_quotas_follow_the_weights() -> None:
    assert mix_quotas([0.7, 0.3], [700, 900]) == [700, 300]
    assert mix_quotas([7, 3], [7000, 90]) == [210, 90]
    assert mix_quotas([1, 1, 1], [100, 100, 100], 100) == [34, 33, 33]
    assert mix_quotas([0.1, 0.2], [10**10, 10**10]) == [5 * 10**9, 10**10]


# -- stopped and gone on with -----------------------------------------------------------------------------
def made(kind: str, n: int, seed: int, batch: int, shards: int) -> PlainOrder | BlockOrder | StratifiedOrder:
    if kind == "block":
        return BlockOrder(n, seed, batch=batch, block=1 + n // (4 * shards), window=3, lanes=4)
    if kind == "stratified":  # the shards are the classes, so that they are as unequal as can be
        return StratifiedOrder(np.arange(n) * shards // max(n, 1), seed, batch=batch, field="y")
    return PlainOrder(kind, n, seed)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["sequential", "global", "block", "stratified"]), n=st.integers(1, 300),
    shards=st.integers(1, 9), batch=st.integers(1, 60), ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=seeds, epoch=st.integers(0, 10**6), data=st.data(),
)  # fmt: skip
def test_stopped_at_any_step_and_resumed_on_any_ranks_each_sample_is_seen_once(
    kind: str, n: int, shards: int, batch: int, ranks: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    """Positions are cut as the loop cuts them; every attempt has ranks, and an order, of its own."""
    seen: list[int] = []
    step, steps = 0, -(-n // batch)
    for attempt, size in enumerate(ranks):
        last = attempt + 1 == len(ranks)
        until = steps if last else data.draw(st.integers(step, steps), label="stop after step")
        orders = [made(kind, n, seed, batch, shards) for _ in range(size)]
        for at in range(step, until):
            start, stop = at * batch, min((at + 1) * batch, n)
            parts = []
            for rank, order in enumerate(orders):
                low, high = rank_slice(start, stop, rank, size)
                parts.append(order.ids(epoch, low, high))
            ids = np.concatenate(parts)
            # The global batch of a step is the same whatever the ranks.
            assert ids.tolist() == made(kind, n, seed, batch, shards).ids(epoch, start, stop).tolist()
            seen += ids.tolist()
        step = until
    assert sorted(seen) == list(range(n))


# -- made for a data set ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    made = []
    for number, n in enumerate((300, 100)):
        folder = tmp_path_factory.mktemp(f"d{number}")
        rng = np.random.default_rng(number)
        np.savez(
            folder / "raw.npz", x=rng.normal(size=(n, 4)).astype("float32"), y=np.arange(n) % 3,
            z=rng.normal(size=n), other=np.arange(n),
        )  # fmt: skip
        shard(
            folder / "raw.npz", folder / "out", inputs=["x", "z", "other"], targets=["y"], shards=3, workers=1
        )
        made.append(open_dataset(folder / "out"))
    return made


@pytest.mark.parametrize("kind", ["sequential", "global", "block", "stratified"])
def test_orders_of_a_data_set(datasets: list[Dataset], kind: str) -> None:
    order = make_order(kind, datasets[0], 3, batch=16)
    assert order.n == 300
    assert sorted(order.ids(0, 0, 300).tolist()) == list(range(300))
    assert order.to_json()["kind"] == kind
    assert order.describe().startswith(kind)
    if kind == "stratified":
        assert (read_labels(datasets[0], "y") == datasets[0].batch(np.arange(300))["y"]).all()
        numbers = datasets[0].batch(order.ids(0, 0, 16))["y"]
        assert sorted(np.bincount(numbers).tolist()) == [5, 5, 6]


def test_a_mixture_of_data_sets(datasets: list[Dataset]) -> None:
    whole = concat(datasets)
    order = make_mix("global", whole, {"a": 300, "b": 100}, {"b": 1, "a": 1}, batch=10)
    assert order.n == 200
    ids = order.ids(0, 0, 200)
    assert (np.bincount(np.arange(200) // 10, weights=ids >= 300) == 5).all()
    assert sorted(ids[ids >= 300].tolist()) == list(range(300, 400))
    assert "a 100 of 300 (global), b 100 of 100 (global)" in order.describe()
    longer = make_mix("global", whole, {"a": 300, "b": 100}, {"b": 1, "a": 1}, batch=10, epoch_samples=1000)
    assert np.bincount(longer.ids(0, 0, 1000), minlength=400)[300:].tolist() == [5] * 100


@pytest.mark.parametrize(
    ("settings_", "where", "text"),
    [
        ({"kind": "stratified", "field": "q"}, "data.stratify", "is no field"),
        ({"kind": "stratified", "field": "z"}, "data.stratify", "no single whole number"),
    ],
)
def test_what_does_not_fit_is_refused(datasets: list[Dataset], settings_: dict, where: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_order(settings_.pop("kind"), datasets[0], **settings_)
    assert str(caught.value.where) == where
    assert text in caught.value.message


def test_mixtures_that_do_not_fit_are_refused(datasets: list[Dataset]) -> None:
    whole, parts = concat(datasets), {"a": 300, "b": 100}
    for kind, weights, more, where in (
        ("global", {"a": 1.0}, {}, "data.mix"),
        ("global", {"a": 1.0, "b": 0.0}, {}, "data.mix"),
        ("global", {"a": 1.0, "b": 1e-9}, {"epoch_samples": 10}, "data.mix"),
        ("stratified", {"a": 1.0, "b": 1.0}, {}, "data.order"),
        ("global", {"a": 1.0, "b": 1.0}, {"epoch_samples": 10**12}, "data.epoch_samples"),
    ):
        with pytest.raises(ConfigError) as caught:
            make_mix(kind, whole, parts, weights, **more)
        assert str(caught.value.where) == where, (kind, weights)


def test_too_many_samples_to_stratify_are_refused_with_the_number(
    datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcmass.data.orders.STRATIFIED_LIMIT", 299)
    with pytest.raises(ConfigError, match=r"4 bytes a sample on every rank: 300 samples"):
        make_order("stratified", datasets[0])


def test_labels_of_a_shard_cut_off_since_are_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "raw.npz", x=np.zeros((50, 4), "float32"), y=np.arange(50) % 3)
    shard(tmp_path / "raw.npz", tmp_path / "out", inputs=["x"], targets=["y"], shards=1, workers=1)
    dataset = open_dataset(tmp_path / "out")
    file = tmp_path / "out" / dataset.manifest.shards[0].file
    file.chmod(0o644)
    with open(file, "r+b") as opened:
        opened.truncate(dataset.manifest.shards[0].offsets["y"] + 8)
    with pytest.raises(CorruptError, match="'y'"):
        make_order("stratified", dataset)
