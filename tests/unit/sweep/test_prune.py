from collections import Counter

from toy_trials import toy_job

from hpcmass.sweep.prune import Hyperband, Median, Rungs, make_pruner


def play(pruner, number, losses):
    """The evaluation at which the trial is given up, or None."""
    for evaluation, loss in enumerate(losses, start=1):
        if pruner.report(number, evaluation, loss):
            return evaluation
    pruner.complete(number)
    return None


def test_the_median_of_whole_trials_is_what_a_trial_is_held_against():
    pruner = Median(2)
    for number in range(4):
        assert play(pruner, number, [number, number, number]) is None
    assert play(pruner, 5, [9, 3, 3]) == 2  # not before the second evaluation
    assert play(pruner, 6, [1, 9, 9]) is None  # its best so far counts
    assert play(pruner, 7, [2.0, 2.0]) is None


def test_of_each_rung_the_better_third_goes_on():
    pruner = Rungs(1)
    stops = [play(pruner, number, [loss] * 9) for number, loss in enumerate([5, 4, 6, 3, 7, 2, 8, 1, 9])]
    assert stops == [None, None, 1, None, 1, None, 1, None, 1]
    stops = [play(pruner, 10 + place, [loss] * 9) for place, loss in enumerate([4.5, 0.5])]
    assert stops == [1, None]
    assert play(Rungs(2), 0, [1.0]) is None


def test_hyperband_s_brackets_begin_later_and_have_their_shares():
    pruner = Hyperband(1, 9, seed=3)
    counts = Counter(pruner.bracket(number) for number in range(1800))
    assert all(abs(counts[bracket] - share) < 120 for bracket, share in enumerate((900, 600, 300)))
    for bracket in range(3):
        numbers = [number for number in range(60) if pruner.bracket(number) == bracket][:4]
        stops = [play(pruner, number, [loss] * 9) for loss, number in enumerate(numbers)]
        assert stops == [None] + [3**bracket] * 3


def test_the_job_names_its_pruner():
    assert make_pruner(toy_job().sweep, 3) is None
    assert isinstance(make_pruner(toy_job(pruner="hyperband", max_evaluations=9).sweep, 9), Hyperband)
