"""The language of searches: against a plain evaluation in Python, and what it refuses."""

import contextlib
import datetime
import math
import operator
import sqlite3
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.catalogue import Catalogue, FileEntry, Registration, Version
from hpcmass.catalogue.dates import Span, read_date
from hpcmass.catalogue.index_rows import IndexRows
from hpcmass.catalogue.query import nearest
from hpcmass.catalogue.search import search
from hpcmass.errors import CatalogueError, MissingDependency

FILES = {"w": FileEntry("0" * 64, 10)}


def version(number, name="m", metrics=None, job=None, tags=None, created=None, **lineage):
    facts = {"job": job or {}, **lineage}
    created = 1e9 + number if created is None else created
    told = lineage.get("told", "")
    return Version(name, number, created, "me@here", FILES, metrics or {}, facts, told, tags or {})


def index_of(versions, aliases=()):
    connection = sqlite3.connect(":memory:")
    rows = IndexRows.create(connection)
    rows.add(versions)
    rows.flush()
    for number, (name, alias, at) in enumerate(aliases, 1):
        rows.move_alias(name, alias, number, at)
    rows.finish()
    return connection


def refs(connection, expression=None, sort=(), limit=None):
    return [found.ref for found in search(connection, expression, sort, limit)]


# -- against Python ------------------------------------------------------------------------------------------
TEXTS = st.text(st.sampled_from("ab'\"\\;-%_* é\u0000\n)"), max_size=3)
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -0.5, 1.0, 1e300, math.inf, 2**62, 2**63 - 1]))
VALUES = st.one_of(NUMBERS, TEXTS, st.booleans())
PLAIN = {
    "version": lambda row: row.version,
    "name": lambda row: row.name,
    "accuracy": lambda row: row.metrics.get("accuracy"),
    "metrics.loss": lambda row: row.metrics.get("loss"),
    "params.lr": lambda row: row.lineage["job"]["params"].get("lr"),
    "params['it''s']": lambda row: row.lineage["job"]["params"].get("it'); DROP TABLE versions; --"),
    "parent": lambda row: row.lineage.get("parent"),
    "tags.team": lambda row: row.tags.get("team"),
    "environment.python": lambda row: row.lineage["environment"].get("python"),
    "lineage.sweep.trial": lambda row: row.lineage["sweep"].get("trial"),
}
FIELDS = {**PLAIN}
ODD = "params[" + repr("it'); DROP TABLE versions; --") + "]"
FIELDS[ODD] = FIELDS.pop("params['it''s']")
SPLITS = ("train", "test")
REFS = ("m@1", "n@1", "m@2", "n@2", "m@3", "n@3", "z@99")
MIDNIGHT = datetime.datetime(2001, 9, 9)
TIMES = [MIDNIGHT + datetime.timedelta(hours=h) for h in (-24, -0.001, 0, 5, 23.999, 24, 24 * 22, 24 * 120)]
DATES = {
    "2001-09-09": (lambda moment: moment.date(), MIDNIGHT.date()),
    "2001-09": (lambda moment: (moment.year, moment.month), (2001, 9)),
    "2001-12": (lambda moment: (moment.year, moment.month), (2001, 12)),
    "2001": (lambda moment: moment.year, 2001),
    "2001-09-09 05:00": (lambda moment: moment, MIDNIGHT.replace(hour=5)),
}
OPS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@st.composite
def rows(draw):
    found = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        metrics = draw(st.fixed_dictionaries({}, optional={"accuracy": VALUES, "loss": VALUES}))
        odd = {"lr": VALUES, "it'); DROP TABLE versions; --": VALUES}
        params = draw(st.fixed_dictionaries({}, optional=odd))
        datasets = draw(st.dictionaries(st.sampled_from(SPLITS), st.sampled_from(["a", "b"])))
        parent = draw(st.one_of(st.none(), st.sampled_from([*REFS, *REFS, "", "m"])))
        tags = draw(st.fixed_dictionaries({}, optional={"team": VALUES, "demo": st.just(1), "b": VALUES}))
        found.append(
            version(
                number,
                draw(st.sampled_from(["m", "n"])),
                metrics,
                {"params": params},
                datasets=datasets,
                parent=parent,
                tags=tags,
                created=draw(st.sampled_from(TIMES)).timestamp(),
                environment=draw(st.fixed_dictionaries({}, optional={"python": VALUES})),
                sweep=draw(st.fixed_dictionaries({}, optional={"trial": VALUES})),
            )
        )
    # One that has everything, so that every name is known.
    whole = {"lr": 1, "it'); DROP TABLE versions; --": 1}
    datasets = dict.fromkeys(SPLITS, "c")
    rest = {"tags": {"team": 1}, "environment": {"python": 1}, "sweep": {"trial": 1}, "parent": "m@1"}
    found.append(
        version(99, "z", {"accuracy": 1, "loss": 1}, {"params": whole}, datasets=datasets, created=1e9, **rest)
    )
    return found


def compared(op, left, right):
    """What the documentation says of a comparison."""
    if left is None or right is None:
        return False
    if isinstance(left, str) != isinstance(right, str) and op not in ("==", "!="):
        return False
    return OPS[op](left, right)


def many(row, world, field):
    aliases, versions = world
    if field == "alias":
        return {alias for name, alias, number in aliases if (name, number) == (row.name, row.version)}
    if field == "tag":
        return set(row.tags)
    if field == "ancestor":
        parents = {one.ref: one.lineage.get("parent") for one in versions}
        found, at = set(), row.lineage.get("parent")
        while at is not None and at not in found:
            found.add(at)
            at = parents.get(at)
        return found
    datasets = row.lineage["datasets"]
    split = field.partition(".")[2]
    return {one for key, one in datasets.items() if split in ("", key)}


KINDS = ("plain", "turned", "fields", "in", "has", "none", "many", "chain", "date")


@st.composite
def comparisons(draw, kinds=KINDS):
    """A comparison's text, and what it means."""
    kind = draw(st.sampled_from(kinds))
    name = draw(st.sampled_from(sorted(FIELDS)))
    get, value, op = FIELDS[name], draw(VALUES), draw(st.sampled_from(sorted(OPS)))
    shown = repr(value).replace("inf", "1e999")
    if kind == "plain":
        return f"{name} {op} {shown}", lambda row, _: compared(op, get(row), value)
    if kind == "turned":
        return f"{shown} {op} {name}", lambda row, _: compared(op, value, get(row))
    if kind == "date":
        text = draw(st.sampled_from(sorted(DATES)))
        part, date = DATES[text]
        listed = {"==": f"created in ['{text}']", "!=": f"created not in ['{text}', '1990']"}
        shown = draw(st.sampled_from([f"created {op} '{text}'", listed.get(op, f"created {op} '{text}'")]))
        return shown, lambda row, _: OPS[op](part(datetime.datetime.fromtimestamp(row.created)), date)
    if kind == "chain":
        return (
            f"{shown} {op} {name} < 2",
            lambda row, _: compared(op, value, get(row)) and compared("<", get(row), 2),
        )
    if kind == "fields":
        other = draw(st.sampled_from(sorted(FIELDS)))
        return f"{name} {op} {other}", lambda row, _: compared(op, get(row), FIELDS[other](row))
    no = draw(st.booleans())
    if kind == "none":
        text = draw(st.sampled_from(["!= None", "is not None"] if no else ["== None", "is None"]))
        return f"{name} {text}", lambda row, _: (get(row) is None) is not no
    if kind == "in":
        values = draw(st.lists(VALUES, max_size=3))
        listed = repr(values).replace("inf", "1e999")
        if no:
            return f"{name} not in {listed}", lambda row, _: get(row) is not None and get(row) not in values
        return f"{name} in {listed}", lambda row, _: get(row) is not None and get(row) in values
    if kind == "has":
        part = draw(TEXTS)

        def has(row, _):
            inside = isinstance(get(row), str) and part in get(row)
            return get(row) is not None and not inside if no else inside

        return f"{part!r} {'not in' if no else 'in'} {name}", has
    field = draw(
        st.sampled_from(["alias", "dataset", "datasets.train", "datasets.test", "tag", "ancestor", "ancestors"])
    )
    text = draw(
        st.sampled_from(REFS) if "ancestor" in field else st.sampled_from(["a", "b", "c", "best", "demo"])
    )
    if draw(st.integers(0, 4)) == 0:
        return (
            f"{field} {'!=' if no else '=='} None",
            lambda row, world: bool(many(row, world, field.replace("ancestors", "ancestor"))) is no,
        )
    shown = {
        0: f"{field} {'!=' if no else '=='} {text!r}",
        1: f"{text!r} {'not in' if no else 'in'} {field}",
        2: f"{field} {'not in' if no else 'in'} [{text!r}]",
    }[draw(st.integers(0, 2))]
    return (
        shown,
        lambda row, world: (text in many(row, world, field.replace("ancestors", "ancestor"))) is not no,
    )


def joined(parts):
    def both(pair):
        (a, f), (b, g) = pair
        return f"({a}) and ({b})", lambda row, world: f(row, world) and g(row, world)

    def either(pair):
        (a, f), (b, g) = pair
        return f"({a}) or ({b})", lambda row, world: f(row, world) or g(row, world)

    def nots(one):
        return f"not ({one[0]})", lambda row, world: not one[1](row, world)

    pairs = st.tuples(parts, parts)
    return st.one_of(pairs.map(both), pairs.map(either), parts.map(nots))


@pytest.mark.parametrize(("columns", "kinds"), [(1000, KINDS), (1, KINDS), (1000, ("many", "date"))])
def test_as_python_would_say(columns, kinds, monkeypatch):
    monkeypatch.setattr("hpcmass.catalogue.index_rows.COLUMNS", columns)

    @settings(max_examples=150, deadline=None)
    @given(
        rows(),
        st.recursive(comparisons(kinds), joined, max_leaves=6),
        st.sampled_from([(), ("z",), ("m", "z")]),
    )
    def check(versions, expression, aliased):
        aliases = [(name, "best", 99 if name == "z" else 1) for name in aliased]
        text, holds = expression
        connection = index_of(versions, aliases)
        right = sorted((row.name, row.version) for row in versions if holds(row, (aliases, versions)))
        assert refs(connection, text) == [f"{name}@{number}" for name, number in right]
        down = [f"-{name}" for name in ("version",)]
        assert sorted(refs(connection, text, down)) == sorted(f"{name}@{number}" for name, number in right)
        assert connection.execute("SELECT count(*) FROM versions").fetchone() == (len(versions),)

    check()


def rank(value):
    """Where a value stands: numbers, then texts, then nothing; None is last whatever the direction."""
    return (2, 0) if value is None else (1, value) if isinstance(value, str) else (0, value)


@settings(max_examples=50, deadline=None)
@given(rows(), st.booleans(), st.sampled_from([None, 1, 2, 3, 100]), st.booleans())
def test_order(versions, down, limit, with_condition):
    right = sorted(versions, key=lambda row: (row.name, row.version))
    right.sort(key=lambda row: rank(row.metrics.get("accuracy")), reverse=down)
    # Turned round, equal ones keep the order of their names, and kinds keep theirs.
    right.sort(key=lambda row: rank(row.metrics.get("accuracy"))[0])
    found = refs(
        index_of(versions), "version > 0" if with_condition else None, [f"{'-' * down}accuracy"], limit
    )
    assert found == [row.ref for row in right][:limit]


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=40) | st.from_regex(r"(accuracy|params\.lr|name|[a-z'\"(=<>.;#\\ ]){1,12}", fullmatch=True)
)
def test_whatever_is_written_is_an_answer_or_told(text):
    connection = index_of([version(1, metrics={"accuracy": 1}, job={"params": {"lr": 1}})])
    with contextlib.suppress(CatalogueError):
        refs(connection, text)
    assert connection.execute("SELECT count(*) FROM versions").fetchone() == (1,)


def test_the_same_word_elsewhere_is_meant_before_one_that_looks_alike():
    names = ["job.params.family", "job.params.dropout", "job.params.width", "job.train.lr"]
    assert nearest("params.lr", names).startswith("did you mean train.lr")


# -- what is refused -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("acuracy > 0.9", 1, ["no version has 'acuracy'", "did you mean accuracy"]),
        ("accuracy > 0.9 and param.lr < 1", 20, ["no version has 'param.lr'", "params.lr"]),
        ("accuracy > 0.9 and lr < 1", 20, ["did you mean params.lr"]),
        ("accuracy = 0.9", 10, ["write =="]),
        ("accuracy > 1 && accuracy < 2", 15, ["write and"]),
        ("accuracy >", 11, ["invalid syntax"]),
        ("accuracy", 1, ["no comparison"]),
        ("accuracy > other()", 12, ["no value"]),
        ("__import__('os').system('x') == 1", 1, ["compares no fact"]),
        ("accuracy.__class__ == 1", 1, ["no version has"]),
        ("accuracy > (lambda: 1)", 13, ["no value"]),
        ("[x for x in accuracy] == 1", 1, ["compares no fact"]),
        ("accuracy + 1 > 2", 1, ["compares no fact"]),
        ("1 < 2", 1, ["compares no fact"]),
        ("accuracy in 3", 13, ["no list"]),
        ("1 in accuracy", 1, ["only a text"]),
        ("alias < 'x'", 1, ["several values"]),
        ("accuracy is 1", 1, ["None only"]),
        ("accuracy < None", 1, ["only == and !="]),
        ("created > 'soon'", 11, ["no date", "2026-12-01", "days ago"]),
        ("created > '9999-12-31'", 11, ["no date"]),
        ("created in ['2026-13-01']", 13, ["no date"]),
        ("'2026-12-01' in created", 1, ["use =="]),
        ("ancestor > 'm@1'", 1, ["several values"]),
        ("tags.x == 1", 1, ["no version has 'tags.x'"]),
        ("accuracy == f'{1}'", 13, ["no value"]),
        ("accuracy == b'x'", 13, ["no value"]),
        ("metrics[0] == 1", 1, ["no name of a fact"]),
        ("é == 1 and acuracy > 1", 12, ["no version has 'acuracy'", "did you mean"]),
        ("", None, ["empty"]),
        ("(" * 300 + "accuracy > 1" + ")" * 300, None, []),
        ("accuracy == " + "9" * 3900, None, []),
        (" or ".join(["accuracy > 1"] * 301), None, []),
        ("accuracy in [" + "1," * 1001 + "]", None, ["1000 values"]),
        ("name == '" + "x" * 4000 + "'", None, ["4000"]),
        ("accuracy > 1\x00", None, []),
    ],
)
def test_what_is_wrong_is_shown_at_its_place(text, column, words):
    connection = index_of([version(1, metrics={"accuracy": 1, "é": 1}, job={"params": {"lr": 1}})])
    if text.startswith("accuracy == 9"):
        assert refs(connection, text) == []  # beyond every number
        return
    with pytest.raises(CatalogueError) as caught:
        refs(connection, text)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    if column is not None:
        assert caught.value.data["column"] == column
        lines = caught.value.message.split("\n")
        assert lines[-1].index("^") == column + 1
        assert len(lines[-1]) <= len(lines[-2]) + 1


@pytest.mark.parametrize("sort", ["acuracy", "-acuracy", "alias", "accuracy; DROP TABLE versions", "1", ""])
def test_sorting_by_what_there_is_not(sort):
    connection = index_of([version(1, metrics={"accuracy": 1})])
    with pytest.raises(CatalogueError):
        refs(connection, None, [sort])
    assert refs(connection) == ["m@1"]


def test_dates_recipes_and_large_numbers():
    jobs = [{"recipe": "recipes/mnist.py", "params": {"lr": 0.05, "big": 2**80}}, {"recipe": "other.py"}]
    connection = index_of(
        [version(i + 1, metrics={"accuracy": 0.96 + i / 100}, job=job) for i, job in enumerate(jobs)]
    )
    assert refs(connection, "recipe == 'mnist' and accuracy > 0.95 and params.lr < 0.1") == ["m@1"]
    assert refs(connection, f"params.big > {2**70} and job.recipe == 'recipes/mnist.py'") == ["m@1"]
    day = datetime.datetime.fromtimestamp(1e9 + 1.5)
    assert refs(connection, f"created > '{day.isoformat(sep=' ')}'") == ["m@2"]
    assert refs(connection, "created > '2001-01-01' and\n created < '2002-01-01'") == ["m@1", "m@2"]
    assert refs(connection, None, ["-created"], 1) == ["m@2"]
    assert refs(connection, "metrics.accuracy >= 0.97") == ["m@2"]
    assert refs(index_of([]), "accuracy > 0.9") == []


@pytest.mark.parametrize(
    ("recipe", "name", "found"),
    [
        ("/w/workflows/mnist/recipe.py", "best", "mnist"),
        ("mnist/recipe.py", None, "mnist"),
        ("recipe.py", "mnist", "mnist"),  # a copy
        ("recipe.py", "mnist-000012", "mnist"),  # a trial's
        ("recipe.py", "mnist-12", "mnist-12"),
        ("/lab/runs/7/recipe.py", "mnist-000007", "mnist"),
        ("/lab/runs/7/recipe.py", None, "recipe"),
        ("/lab/runs/8/recipe.py", "mnist", "8"),
        ("./recipe.py", "mnist", "mnist"),
        ("../recipe.py", "mnist", "mnist"),
        ("recipe.py", None, "recipe"),
        ("recipe.py", 3, "recipe"),
        ("flights/trees.py", "flights", "trees"),
        ("trees", "x", "trees"),
        (None, "mnist", None),
        (["recipe.py"], "mnist", None),
    ],
)
def test_what_a_recipe_is_called(recipe, name, found):
    connection = index_of([version(1, job={"recipe": recipe, "name": name}, run="/lab/runs/7")])
    assert [one.recipe for one in search(connection, None, (), None)] == [found]
    assert refs(connection, f"recipe == {found!r}") == ["m@1"]


def test_a_parameter_is_found_where_it_is_an_option_of_training():
    jobs = [
        {"train": {"lr": 0.05}, "params": {"width": 8}},
        {"train": {"lr": 0.001}, "params": {"lr": 0.5}},  # a recipe's own comes first
        {"params": {"lr": 0.01}},
        {"params": {"width": 16}},
    ]
    connection = index_of([version(i, job=job) for i, job in enumerate(jobs, 1)])
    assert refs(connection, "params.lr < 0.1") == ["m@1", "m@3"]
    assert refs(connection, "params.lr == 0.5 or params.lr == 'x'") == ["m@2"]
    assert refs(connection, "params.lr == None") == ["m@4"]
    assert refs(connection, "train.lr < 0.1") == ["m@1", "m@2"]
    assert refs(connection, None, ["-params.lr"], 3) == ["m@2", "m@1", "m@3"]
    assert refs(connection, "params['train.lr'] == 0.05 and job.params.train.lr > 0") == ["m@1"]
    assert [one.get("job.params.lr") for one in search(connection, None, (), None)] == [0.05, 0.5, 0.01, None]
    only = index_of([version(1, job=jobs[0])])
    assert search(only, "params.lr < 0.1", (), None).fields == ["job.train.lr"]
    with pytest.raises(CatalogueError, match=r"no version has 'params.depth'"):
        refs(connection, "params.depth == 1")


def test_a_stand_in_beyond_the_columns_is_found():
    many = {f"p{i}": i for i in range(1000)}
    jobs = [{"params": many}, {"params": {"lr": 1}, "train": {"lr": 2}}, {"train": {"lr": 3, "x": "a"}}]
    connection = index_of([version(i, job=job) for i, job in enumerate(jobs, 1)])
    assert connection.execute("SELECT count(*) FROM keys WHERE number IS NULL").fetchone()[0] >= 2
    assert refs(connection, "params.lr >= 1 and params.lr < 3", ["-params.lr"], 5) == ["m@2"]
    assert refs(connection, "'a' in params.x") == ["m@3"]
    assert refs(connection, "params.lr != None", ["-params.lr"], 1) == ["m@3"]


def test_kinds_have_no_order_among_them_and_what_lacks_a_fact_compares_to_nothing():
    connection = index_of([version(i, metrics=one) for i, one in enumerate(({"a": 1}, {"a": "x"}, {}), 1)])
    for text, right in {
        "a > 0": [1],
        "a >= 0 and a < 2": [1],
        "a < 'z'": [2],
        "a <= 'z' and a > 'a'": [2],
        "a != 1": [2],
        "a not in [1]": [2],
        "not (a == 1)": [2, 3],
        "not (a > 0)": [2, 3],
        "a > version": [],
        "a == None": [3],
        "a != None": [1, 2],
    }.items():
        assert refs(connection, text) == [f"m@{i}" for i in right], text


def test_values_that_are_none_in_json():
    metrics = [
        {"a": "NaN"},
        {"a": "Infinity"},
        {"a": "-Infinity"},
        {"a": [1, 2]},
        {"a": {"b": True}},
        {"a": None},
    ]
    connection = index_of([version(i, metrics=one) for i, one in enumerate(metrics, 1)])
    assert refs(connection, "a > 1e300") == ["m@2"]
    assert refs(connection, "a == None") == ["m@1", "m@4", "m@5", "m@6"]
    assert refs(connection, "a.b == True") == ["m@5"]
    assert search(connection, None, (), None)[3].facts == {"metrics.a": [1, 2]}


# -- from a catalogue ----------------------------------------------------------------------------------------
@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w").write_bytes(b"12345")
    made = Catalogue(tmp_path / "catalogue")
    made.register_many(
        Registration(
            "mnist",
            tmp_path / "model",
            {"accuracy": 0.9 + i / 100, "interval": [0.1, 0.2]},
            {"job": {"params": {"lr": 0.1 * i}}, "datasets": {"train": f"d{i}"}, "parent": None},
        )
        for i in range(5)
    )
    made.alias("mnist", "production", 3, why="")
    return made


def test_a_search_of_a_catalogue(catalogue):
    found = catalogue.search("accuracy > 0.91 and params.lr < 0.35", sort=["-accuracy"], limit=2)
    assert [one.ref for one in found] == ["mnist@4", "mnist@3"]
    assert found.fields == ["metrics.accuracy", "job.params.lr"]
    best = found[1]
    assert best.metrics == {"accuracy": 0.92, "interval": [0.1, 0.2]}
    assert (best.params, best.aliases, best.datasets) == ({"lr": 0.2}, ("production",), {"train": "d2"})
    assert (best.bytes, best.files) == (5, 1)
    assert len(catalogue.search()) == catalogue.count() == 5
    assert catalogue.count("other") == 0
    (one,) = catalogue.search("'production' in aliases and datasets.train == 'd2'")
    assert one == best
    catalogue.alias("mnist", "production", 1, why="")
    assert [one.ref for one in catalogue.search("alias == 'production'")] == ["mnist@1"]


def test_without_pandas_it_is_said(catalogue, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependency, match="pip install pandas"):
        catalogue.frame()


def test_a_frame(catalogue):
    pandas = pytest.importorskip("pandas")
    catalogue.register("other", catalogue.path.parent / "model", metrics={"loss": 1}, lineage={}, tags=["demo"])
    table = catalogue.frame("version < 3", sort=["name", "-version"], limit=10)
    assert table["name"].tolist() == ["mnist", "mnist", "other"]
    assert table["version"].tolist() == [2, 1, 1]
    assert pandas.isna(table["metrics.accuracy"]).tolist() == [False, False, True]
    assert pandas.isna(table["tags.demo"]).tolist() == [True, True, False]
    assert str(table["created"].dtype).startswith("datetime64[ns")
    assert table["aliases"].tolist() == [[], [], []]
    assert abs(table["created"][0] - pandas.Timestamp.now(tz="UTC")) < pandas.Timedelta(hours=1)
    empty = catalogue.frame("version > 99")
    assert (len(empty), "metrics.accuracy" in empty, "name" in empty) == (0, False, True)


def test_a_stream_holds_what_a_search_does(catalogue, monkeypatch):
    monkeypatch.setattr("hpcmass.catalogue.search._AT_ONCE", 2)
    found = catalogue.stream("accuracy > 0.9", sort=["-accuracy"])
    assert found.count == 4
    assert list(found) == list(catalogue.search("accuracy > 0.9", sort=["-accuracy"]))
    assert [one.version for one in found.by_name()] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "tags", [{"": 1}, {"a": [1]}, {"a": None}, {3: 1}, {"a": math.nan}, ["a\nb"], {"x" * 201: 1}]
)
def test_what_is_no_tag(catalogue, tags):
    with pytest.raises(CatalogueError, match="tag"):
        catalogue.register("t", catalogue.path.parent / "model", metrics={}, lineage={}, tags=tags)
    assert "t" not in catalogue.models()


def test_tags_are_kept(catalogue):
    folder = catalogue.path.parent / "model"
    made = catalogue.register("t", folder, metrics={}, lineage={}, tags="demo")
    (many,) = catalogue.register_many([Registration("t", folder, tags={"team": "a", "share": 0.5})])
    assert (catalogue.get("t@1").tags, made.tags) == ({"demo": 1}, {"demo": 1})
    assert catalogue.get("t@2").tags == many.tags == {"team": "a", "share": 0.5}
    assert [one.tags for one in catalogue.search("tag != None")] == [made.tags, many.tags]
    assert "tags" not in catalogue.get("mnist@1").to_json()


NOW = datetime.datetime(2026, 3, 29, 12, 30)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("now", NOW, None),
        ("90 minutes ago", NOW - datetime.timedelta(minutes=90), None),
        ("1.5  Weeks ago", NOW - datetime.timedelta(days=10.5), None),
        ("today", datetime.datetime(2026, 3, 29), datetime.datetime(2026, 3, 30)),
        ("yesterday", datetime.datetime(2026, 3, 28), datetime.datetime(2026, 3, 29)),
        ("2026-12", datetime.datetime(2026, 12, 1), datetime.datetime(2027, 1, 1)),
        ("2026-11", datetime.datetime(2026, 11, 1), datetime.datetime(2026, 12, 1)),
        ("2024", datetime.datetime(2024, 1, 1), datetime.datetime(2025, 1, 1)),
        ("2024-02-29", datetime.datetime(2024, 2, 29), datetime.datetime(2024, 3, 1)),
        ("2024-02-29T01:00:00+00:00", datetime.datetime(2024, 2, 29, 1, tzinfo=datetime.timezone.utc), None),
    ],
)
def test_dates(text, start, end):
    found = read_date(text, NOW)
    right = start.timestamp() if end is None else Span(start.timestamp(), end.timestamp())
    assert found == (pytest.approx(right, abs=1e-3) if end is None else right)


@pytest.mark.parametrize(
    "text", ["", "soon", "2026-13", "0000", "9999", "99999999 weeks ago x", "2026-02-30", "ago", "-1 days ago"]
)
def test_what_is_no_date(text):
    with pytest.raises(ValueError, match=r".*"):
        read_date(text)


def test_a_table_of_pandas(catalogue):
    pandas = pytest.importorskip("pandas")
    table = catalogue.search("accuracy > 0.92").to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table["metrics.accuracy"].tolist() == pytest.approx([0.93, 0.94])
    assert table["datasets.train"].tolist() == ["d3", "d4"]


def test_an_index_that_breaks_in_a_search_is_made_anew(catalogue):
    right = [one.ref for one in catalogue.search("accuracy > 0")]
    catalogue.index.close()
    data = bytearray(catalogue.index.path.read_bytes())
    # The tables are whole, the rows are not.
    with sqlite3.connect(catalogue.index.path) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'versions'").fetchone()
    data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    catalogue.index.path.write_bytes(data)
    assert [one.ref for one in Catalogue(catalogue.path).search("accuracy > 0")] == right
