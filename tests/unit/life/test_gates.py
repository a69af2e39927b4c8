"""Requirements of a promotion: read, judged, and never half done."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from life_lab import Lab

from hpcmass.catalogue import Evaluations, parse_requirement
from hpcmass.catalogue.evaluations import EvaluationRecord
from hpcmass.catalogue.gates import judge
from hpcmass.errors import CatalogueError, CorruptError, NotFound
from hpcmass.workflow import promote as promoting
from hpcmass.workflow.promote import promote


def record(value: float, dataset: str = "d", **more: object) -> EvaluationRecord:
    metrics = {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1}, "loss": {"value": 1.0}}
    return EvaluationRecord("m", 3, 1, 0.0, "me", dataset, "test", "", {"n": 10, "metrics": metrics, **more})


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("accuracy >= 0.9 on test", True),
        ("accuracy >= 0.91 on test", False),
        ("accuracy > 0.9 on test", False),
        ("accuracy<=.9 on test", True),
        ("low(accuracy) >= 0.79 on test", True),
        ("low( accuracy ) >= 0.81 on test", False),
        ("high(accuracy) < 1e0 on test", False),
        ("loss < +2 on data/a b/test", True),
        ("recall['a cat'] >= 0.5 on test", True),
        ('recall["a cat"] >= 0.6 on test', False),
        ("accuracy['site == new york'] >= 0.7 on test", True),
        ("accuracy >= production - 0.1 on test", True),
        ("accuracy >= production on test", False),
        ("accuracy > production -0.05 on test", True),
        ("accuracy >= rc-1 + 0.01 on test", False),
    ],
)
def test_requirements_are_read_and_judged(text: str, held: bool) -> None:
    found = record(
        0.9,
        per_class=[{"name": "a cat", "recall": {"value": 0.5}, "precision": None}],
        slices=[{"field": "site", "value": "new york", "n": 4, "metrics": {"accuracy": {"value": 0.75}}}],
    )
    one = parse_requirement(text)
    assert judge(one, found, record(0.94) if one.against else None).held is held
    assert one.against in (None, "production", "rc-1")


@pytest.mark.parametrize(
    "text",
    [
        "", "accuracy", "accuracy >= on test", "accuracy >= 0.9", "accuracy == 0.9 on test", "accuracy >= nan on ",
        "__import__('os').system('x') >= 1 on test", "accuracy >= 1e999 on test", "low(accuracy >= 1 on test",
        "accuracy >= production - 1x on test", "accuracy >= latest on test", "accuracy >= 0.9 and loss < 1 on test",
    ],
)  # fmt: skip
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(CatalogueError):
        parse_requirement(text)


def test_what_was_not_measured_is_no_pass() -> None:
    for text in (
        "f1 >= 0 on test",
        "recall['x'] >= 0 on test",
        "accuracy['a == b'] >= 0 on test",
        "low(loss) > 0 on test",
    ):
        with pytest.raises(CatalogueError, match=r"no f1|no class|no slice|no interval"):
            judge(parse_requirement(text), record(0.9), None)
    nan = record(0.9)
    nan.result["metrics"]["accuracy"]["value"] = "NaN"
    with pytest.raises(CatalogueError, match="no accuracy"):
        judge(parse_requirement("accuracy >= 0 on test"), nan, None)
    with pytest.raises(CatalogueError, match="same data"):
        judge(parse_requirement("accuracy >= production on test"), record(0.9), record(0.9, "other"))


def test_a_promotion_evaluates_before_it_moves(lab: Lab) -> None:
    poor, good = lab.model(knows=2), lab.model()
    catalogue = lab.catalogue
    answer = lab.call(
        "catalogue", "promote", "eyes@1", "--to", "production", "--require", "accuracy >= 0.97 on test"
    )
    assert answer.code == 2
    assert "found accuracy 0.6667 [0.578" in answer.err  # Wilson, 80 of 120
    assert "n=120" in answer.err
    assert catalogue.aliases("eyes") == {}
    (kept,) = Evaluations(catalogue.path).of(poor)
    assert kept.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert kept.why == "promote eyes@1 to production"
    answer = lab.call(
        "catalogue", "promote", "eyes@2", "--to", "production", "--require", "low(accuracy) >= 0.96 on test",
        "--require", "recall['2'] >= 0.9 on data/d/test", "--require", "accuracy['site == 1'] >= 0.9 on test",
        "--require", "accuracy >= production - 0.005 on test",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "there is no production yet" in answer.out
    assert answer.out.splitlines()[-1] == "eyes@production → eyes@2"
    (move,) = catalogue.history("eyes", "production")
    assert [gate["held"] for gate in move.gates] == [True] * 4
    assert move.gates[0]["evaluation"] == "eyes@2/1"
    assert move.gates[0]["found"]["value"] == 1.0
    assert len(Evaluations(catalogue.path).of(good)) == 1  # once a data set, by whatever name
    # Against what is in production now: a worse one does not pass, and the message has both.
    answer = lab.call(
        "catalogue",
        "promote",
        "eyes@1",
        "--to",
        "production",
        "--require",
        "accuracy >= production - 0.005 on test",
    )
    assert answer.code == 2
    assert "production is eyes@2 with 1.0000 [0.96" in answer.err
    assert catalogue.aliases("eyes") == {"production": 2}
    shown = lab.call("catalogue", "history", "eyes")
    assert "production" in shown.out
    raw = json.loads(lab.call("catalogue", "history", "eyes", "production", "--json").out)
    assert raw[0]["gates"][2]["require"] == "accuracy['site == 1'] >= 0.9 on test"
    assert lab.call("catalogue", "history", "eyes", "nosuch").code == 2


def test_gates_of_a_stage_always_count(lab: Lab) -> None:
    lab.model(knows=2)
    file = lab.root / "hpcmass.toml"
    with pytest.raises(CatalogueError, match="nothing is required"):
        promote("eyes", "production", lab.root)
    file.write_text(file.read_text() + '[stages.production]\nrequire = ["accuracy >= 0.9 on test"]\n')
    with pytest.raises(CatalogueError, match="1 of 2 requirements") as raised:
        promote("eyes", "production", lab.root, require=["accuracy > 0.1 on test"])
    assert [gate["held"] for gate in raised.value.data["gates"]] == [False, True]
    assert promote("eyes", "staging", lab.root, require=["accuracy > 0.1 on test"]).move is not None
    with pytest.raises(NotFound, match="no data set 'nowhere'"):
        promote("eyes", "staging", lab.root, require=["accuracy > 0.1 on nowhere"])
    with pytest.raises(NotFound, match="no alias 'canary'"):
        promote("eyes", "staging", lab.root, require=["accuracy > canary on test"])
    assert promote("eyes", "staging", lab.root, require=["accuracy > 0.1 on test"]).move is None


def test_a_move_by_somebody_else_meanwhile_is_not_undone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        lab.model()
    lab.catalogue.alias("eyes", "production", 1, why="first")
    whole = promoting.evaluated

    def slowly(*args: object, **more: object) -> object:
        result = whole(*args, **more)  # type: ignore[arg-type]
        lab.catalogue.alias("eyes", "production", 3, why="faster")
        return result

    monkeypatch.setattr(promoting, "evaluated", slowly)
    with pytest.raises(CatalogueError, match=r"has version 3, not version 1.*faster"):
        promote("eyes@2", "production", lab.root, require=["accuracy >= 0.9 on test"])
    assert lab.catalogue.aliases("eyes") == {"production": 3}
    # Nor is a version said to be there already that was there when the promotion began.
    lab.catalogue.alias("eyes", "production", 2, why="back")
    with pytest.raises(CatalogueError, match=r"has version 3, not version 2.*faster"):
        promote("eyes@2", "production", lab.root, require=["accuracy >= 0.9 on test"])


def test_a_damaged_evaluation_is_named(lab: Lab) -> None:
    version = lab.model()
    answer = lab.call("evaluate", "eyes@1", "test", "--slice", "site", "--record")
    assert answer.code == 0, answer.err
    assert "site == 1" in answer.out
    evaluations = Evaluations(lab.project.catalogue)
    (kept,) = evaluations.of(version)
    assert {(field, value, n) for field, value, n, _ in kept.slices} == {
        ("site", "1", 40),
        ("site", "0", 80),
    }
    path = lab.project.catalogue / "models/eyes/evaluations/000001/000001.json"
    assert path.stat().st_mode & 0o222 == 0
    raw = json.loads(path.read_text())
    for spoilt in ({**raw, "version": 2}, {**raw, "result": []}, {**raw, "created": None}, [], {}):
        path.chmod(0o644)
        path.write_text(json.dumps(spoilt))
        with pytest.raises(CorruptError):
            evaluations.of(version)


def test_writers_at_once_lose_no_evaluation(lab: Lab) -> None:
    version = lab.model()
    evaluations = Evaluations(lab.project.catalogue)

    def add(number: int) -> int:
        return evaluations.add(version, {"n": number}, dataset=f"{number}", data="test").number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, range(40))) == list(range(1, 41))
    assert {one.n for one in evaluations.of(version)} == set(range(40))
    assert len(evaluations.latest(version)) == 40


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("accuracy > production on test significantly", False),
        ("accuracy >= production - 0.03 on test significantly", True),
        ("accuracy > production - 0.01 on test significantly", False),
        ("log_loss < production on test significantly", True),
        ("log_loss <= production - 0.15 on test significantly", False),
        ("log_loss > production on data/significantly", False),
    ],
)
def test_a_difference_has_to_be_beyond_chance(text: str, held: bool) -> None:
    differences = {
        "accuracy": {"value": 0.02, "low": -0.02, "high": 0.06, "p": 0.3},
        "log_loss": {"value": -0.2, "low": -0.3, "high": -0.1, "p": 0.001},
    }
    found = record(0.9, paired={"against": "m@2", "n": 10, "differences": differences})
    found.result["metrics"]["log_loss"] = {"value": 0.3}
    base = record(0.5)
    base.result["metrics"]["log_loss"] = {"value": 0.5}
    one = parse_requirement(text)
    assert one.significantly is text.endswith("on test significantly")
    assert judge(one, found, base).held is held
    assert judge(one, record(0.9, metrics=found.result["metrics"]), None).held, (
        "there is nothing to be worse than"
    )


def test_what_cannot_be_significant_is_refused() -> None:
    for text in (
        "accuracy > 0.9 on test significantly",
        "low(accuracy) > production on test significantly",
        "recall['cat'] > production on test significantly",
    ):
        with pytest.raises(CatalogueError, match="against an alias"):
            parse_requirement(text)
    with pytest.raises(CatalogueError, match="not compared on the same samples"):
        judge(parse_requirement("accuracy > production on test significantly"), record(0.9), record(0.5))


def test_a_promotion_compares_measures_noise_and_times(lab: Lab) -> None:
    lab.model(knows=2), lab.model()
    lab.catalogue.alias("eyes", "production", 1, why="first")
    answer = lab.call(
        "catalogue", "promote", "eyes@2", "--to", "production", "--json",
        "--require", "accuracy > production on test significantly", "--require", "ece <= 0.05 on test",
        "--require", "accuracy['noise == 0.01'] >= 0.9 on test", "--require", "p99_ms['batch == 1'] < 5e4 on test",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    gates = json.loads(answer.out)["gates"]
    assert [gate["held"] for gate in gates] == [True] * 4
    assert gates[0]["found"]["value"] == pytest.approx(1 / 3)
    assert gates[0]["against"] == "eyes@1/1"
    assert len({gate["evaluation"] for gate in gates}) == 1, "one evaluation has all that is required"
    # The worse one is not significantly better, and what it is instead is said.
    answer = lab.call(
        "catalogue", "promote", "eyes@1", "--to", "production",
        "--require", "accuracy >= production on test significantly",
    )  # fmt: skip
    assert answer.code == 2
    assert "found accuracy to differ by -0.3333 [-0.4" in answer.err
    assert lab.catalogue.aliases("eyes") == {"production": 2}
    answer = lab.call(
        "catalogue", "promote", "eyes@1", "--to", "x", "--require", "accuracy['noise == much'] > 0 on test"
    )
    assert answer.code == 2
    assert "no amount of noise" in answer.err


def test_evaluate_compares_and_keeps_it(lab: Lab) -> None:
    lab.model(knows=2), lab.model()
    answer = lab.call(
        "evaluate", "eyes@2", "test", "--record", "--against", "eyes@1", "--noise", "0.1", "--missing", "0.1",
        "--latency",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    for words in ("against eyes@1, on the same samples", "noise == 0.1", "latency of a call", "better", "ece"):
        assert words in answer.out
    (kept,) = Evaluations(lab.catalogue.path).of(lab.catalogue.get("eyes@2"))
    assert kept.paired["accuracy"].difference.low > 0.2
    assert kept.paired["accuracy"].p < 1e-6
    assert [batch for _, batch, _, _ in kept.latency] == ["1", "8", "64"]
    assert ("missing", "0.1") in [(field, value) for field, value, _, _ in kept.slices]
    answer = lab.call("evaluate", "eyes@2", "data/d/test", "--against", "eyes@7")
    assert answer.code != 0
    assert "eyes" in answer.err
    assert "Traceback" not in answer.err
