"""Trials of different sizes: how nodes are cut for them, who takes the next one, and what a target has together."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from study_jobs import SCRIPT_JOB, job_of

from hpcmass.config import Resources, Site, Target
from hpcmass.errors import ConfigError
from hpcmass.sweep.records import read_trials
from hpcmass.workflow.block_shape import block_shape
from hpcmass.workflow.lanes import Ask, Item, Lane, choose
from hpcmass.workflow.quota import Quota
from hpcmass.workflow.sweeps import check_study, sweep
from hpcmass.workflow.trial_workers import item_of

NODE = Target(kind="slurm", cores=8, memory_gb=16, max_nodes=2, max_time="2h", default_time="10m")


def lane(label, room, usual_s=None, busy=0):
    made = Lane(label, None, room=room)
    if usual_s is not None:
        made.note(usual_s)
    for place in range(busy):
        made.bound.add(Item(len, (), Ask(Resources()), place, Future(), bound_at=0.0))
    return made


def test_a_node_has_as_many_slots_as_its_memory_holds():
    assert block_shape(Resources(), NODE, name="n").slots == 8
    assert block_shape(Resources(memory_gb=2.0), NODE, name="n").slots == 8
    assert block_shape(Resources(memory_gb=5.0), NODE, name="n").slots == 3
    assert block_shape(Resources(ranks=3, memory_gb=2.0), NODE, name="n").slots == 2
    with pytest.raises(ConfigError, match="20 GB a node"):
        block_shape(Resources(memory_gb=20.0), NODE, name="n")


def test_a_block_is_as_long_as_its_trial_needs_within_what_the_target_allows():
    assert block_shape(Resources(), NODE, name="n").time_s == 600
    assert block_shape(Resources(), NODE, name="n", wall_s=1800).time_s == 1800
    assert block_shape(Resources(), NODE, name="n", wall_s=86400).time_s == 7200


def test_the_next_trial_goes_where_it_is_done_first_and_waits_rather_than_be_last():
    fast, slow = lane("fast", 2, 1.0, busy=4), lane("slow", 2, 10.0)
    # In ten seconds the fast one does twenty: of thirty that wait, the slow one takes its share.
    assert choose([fast, slow], 30, now=0.0) is slow
    assert choose([fast, slow], 4, now=0.0) is None
    # What is slower by chance is not slower: items differ in length.
    assert choose([lane("one", 2, 5.0, busy=2), lane("other", 2, 7.0)], 1, now=0.0).label == "other"
    assert choose([lane("fast", 2, 1.0), slow], 4, now=0.0).label == "fast"


def test_a_target_that_was_not_tried_yet_gets_its_first_trials():
    assert choose([lane("fast", 2, 1.0, busy=4), lane("new", 2)], 1, now=0.0).label == "new"
    assert choose([lane("pending", 0), lane("slow", 1, 10.0)], 1, now=0.0).label == "slow"


class Blocks:
    """An executor as a quota sees it: how many blocks it has, and how many items want them."""

    def __init__(self, live, work):
        self.shape, self.live, self.work, self.given_way = SimpleNamespace(nodes=1), live, work, set()

    def live_blocks(self):
        return list(range(self.live))

    def outstanding(self):
        return self.work

    def give_way(self):
        self.given_way.add(0)

    def scale_in_facade(self, n, max_idletime):
        self.live -= n
        return [0]


def test_executors_of_one_target_share_its_blocks_and_the_idle_gives_way(monkeypatch):
    small, large = Blocks(2, work=0), Blocks(0, work=1)
    quota = Quota(2, None)
    quota.members += [small, large]
    assert not quota.grant(large)  # But it has made room.
    assert small.live == 1
    assert quota.grant(large)
    busy = Blocks(2, work=9)
    large.live, quota = 0, Quota(None, 2)
    quota.members += [busy, large]
    assert not quota.grant(large)
    assert not busy.given_way
    monkeypatch.setattr("hpcmass.workflow.quota._PATIENCE_S", -1.0)
    assert not quota.grant(large)
    assert busy.given_way
    busy.live -= 1
    assert not quota.grant(busy)  # What became free is for who waited.
    assert quota.grant(large)


SIZED = SCRIPT_JOB.replace("ranks = 2\n", "") + '"resources.ranks" = { type = "int", low = 1, high = 3 }\n'


def test_ranks_of_a_trial_are_drawn_like_any_other_value(project):
    result = sweep(job_of(project, SIZED, trials=6), project, Site.local())
    assert result.counts["complete"] == 6
    trials = [spec for spec, _ in read_trials(result.folder)]
    assert {spec.params["resources.ranks"] for spec in trials} == {1, 2, 3}
    for spec in trials:
        ranks = spec.params["resources.ranks"]
        assert f"rank {ranks - 1} of {ranks}" in spec.run.log_file(1, ranks - 1).read_text()
        assert spec.run.status().ranks == ranks


def test_sizes_that_no_target_has_are_refused_before_anything_is_written(project):
    site = Site(name="s", default_target="n", targets={"n": NODE, "m": NODE.model_copy(update={"cores": 2})})
    job = job_of(project, SIZED.replace("high = 3", "high = 17"))
    with pytest.raises(ConfigError, match="at most 2 a job"):
        check_study(job, site)
    drawn = SIZED + '"resources.target" = { type = "categorical", choices = ["m", "n"] }\n'
    assert sorted(check_study(job_of(project, drawn), site)) == ["m", "n"]
    assert item_of(job, {"resources.ranks": 2, "resources.target": "m"}).target == "m"
    with pytest.raises(ConfigError, match="no target 'x'"):
        check_study(job_of(project, drawn.replace('"m", "n"', '"x"')), site)
