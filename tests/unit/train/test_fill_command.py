"""Commands of scripts: cut into words before anything is put in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmass.errors import ConfigError
from hpcmass.train.script import fill_command


@pytest.mark.parametrize(
    ("command", "params", "words"),
    [
        ("python train.py --lr {lr}", {"lr": 0.001}, ["python", "train.py", "--lr", "0.001"]),
        ("python train.py --lr={lr}", {"lr": 1e-05}, ["python", "train.py", "--lr=1e-05"]),
        ("x '{a} and {b}'", {"a": 1, "b": "two words"}, ["x", "1 and two words"]),
        ("x {a}{a}", {"a": "{b}", "b": "no"}, ["x", "{b}{b}"]),
        ("x {{a}} {a}", {"a": 1}, ["x", "{a}", "1"]),
        ("x {flag} {off}", {"flag": True, "off": False}, ["x", "true", "false"]),
        ("x {sizes} {table}", {"sizes": [1, 2], "table": {"k": "v"}}, ["x", "[1, 2]", '{"k": "v"}']),
        ("x '{\"json\": 1}'", {}, ["x", '{"json": 1}']),
        (["x", "a b {a}"], {"a": "c d"}, ["x", "a b c d"]),
        ("x {a}", {"a": ""}, ["x", ""]),
    ],
)
def test_fill(command: str | list[str], params: dict[str, object], words: list[str]) -> None:
    assert fill_command(command, params) == words


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_value_stays_one_word(value: str) -> None:
    assert fill_command("run --note {note} end", {"note": value}) == ["run", "--note", value, "end"]


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="hiden") as caught:
        fill_command("x {hiden}", {"hidden": 1, "lr": 2})
    assert "{hidden}" in (caught.value.hint or "")
    with pytest.raises(ConfigError) as caught:
        fill_command("x {zzzz}", {"hidden": 1, "lr": 2})
    assert caught.value.hint == "parameters: hidden, lr"


@pytest.mark.parametrize("command", ["", "   ", [], "x 'unclosed"])
def test_no_command(command: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="command"):
        fill_command(command, {})


def test_a_nul_is_refused() -> None:
    with pytest.raises(ConfigError, match="NUL"):
        fill_command("x {a}", {"a": "b\0c"})
