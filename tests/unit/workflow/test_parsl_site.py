from hpcmass.errors import BlockLost
from hpcmass.runs import MOST_FREE_LOSSES
from hpcmass.workflow.parsl_site import Cost


def test_what_a_lost_app_costs_of_its_retries():
    cost, task = Cost(), {"id": 3}
    for step in range(100):  # An app that trains through a hundred blocks.
        assert cost(BlockLost("its block came to the end of its time", step=step), task) == 0.0
    again = [cost(BlockLost("the workers are gone"), task) for _ in range(MOST_FREE_LOSSES)]
    assert again == [0.0] * (MOST_FREE_LOSSES - 1) + [1.0]
    assert cost(ValueError("its own"), task) == 1.0
