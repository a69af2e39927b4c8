from hpcmass.runs import FreeLosses


def test_losses_are_counted_anew_whenever_the_work_got_further_than_ever():
    losses = FreeLosses()
    assert [losses.add("a", step) for step in (0, 0, 5, 5, 4, 6, 6)] == [1, 2, 1, 2, 3, 1, 2]
    assert losses.add("b", 0) == 1
