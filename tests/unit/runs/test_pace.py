"""What is told of slow steps and slow ranks."""

from hpcmass.runs.pace import pace_lines, rank_in_words, shares_in_words, step_in_words

STEP = {"kind": "slow-step", "step": 412, "seconds": 3.1, "usual_s": 0.21, "part": "input", "part_s": 2.9}
OF_RANK = {**STEP, "rank": 3, "host": "cn2"}


def test_words() -> None:
    assert step_in_words(OF_RANK) == "step 412 took 3.1 s (usually 0.21 s): input of rank 3 on cn2, 2.9 s more"
    network = {**STEP, "part": "reduction"}
    assert step_in_words(network) == "step 412 took 3.1 s (usually 0.21 s): the reduction, 2.9 s more"
    record = {"kind": "slow-rank", "rank": 3, "host": "cn2", "times": 1.84, "part": "compute"}
    assert rank_in_words(record) == "rank 3 on cn2 takes 1.8 times as long as the others (compute)"


def test_shares() -> None:
    record = {"input_s": 0.01, "compute_s": 0.16, "reduction_s": 0.03, "checkpoint_s": 0.0}
    assert shares_in_words(record) == "input 5 %, compute 80 %, reduction 15 %"
    assert shares_in_words({"loss": 1.0}) == ""  # of an earlier version, or of a script


def test_a_run_that_went_evenly_says_nothing() -> None:
    assert pace_lines([{"kind": "train", "step": 1}]) == []


def test_many_slow_steps_are_grouped_by_whose_fault_they_were() -> None:
    network = {**STEP, "step": 7, "seconds": 1.0, "part": "reduction"}
    lines = pace_lines([network, OF_RANK, {**OF_RANK, "step": 500, "seconds": 2.0}])
    assert lines[0].startswith("step 412 took 3.1 s")
    assert lines[1] == "slow steps were seen 3 times: input of rank 3 on cn2 2 times, the reduction 1 times"


def test_only_the_newest_attempts_slow_rank_is_told() -> None:
    slow = {"kind": "slow-rank", "rank": 3, "host": "cn2", "times": 1.84, "part": "compute"}
    assert pace_lines([slow]) == [rank_in_words(slow)]
    assert pace_lines([slow, {"kind": "start"}]) == []
    assert pace_lines([slow, {"kind": "slow-rank", "rank": None}]) == []
