"""Tables of very many rows."""

import csv
import io
import json
import os

import pytest

from hpcmass.cli.console import csv_cell
from hpcmass.cli.tables import stream_csv, stream_json, stream_table


class Terminal(io.StringIO):
    """Says that it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((40, 20)))
    return Terminal()


ROWS = [("m@1", {"accuracy": 0.5, "loss": 2.0}, 7, "short"), ("a-long-name@100", None, 12345, "x" * 60)]


def test_nothing_is_cut_where_a_program_reads() -> None:
    out = io.StringIO()
    stream_table(ROWS, ["version", "metrics", "files", "said"], out)
    lines = out.getvalue().split("\n")
    assert lines[1].split() == ["version", "metrics", "files", "said"]
    assert lines[3] == "m@1              accuracy=0.5, loss=2      7  short"
    assert lines[4].endswith("12345  " + "x" * 60)


def test_a_row_fits_a_terminal(terminal: Terminal) -> None:
    stream_table(ROWS, ["version", "metrics", "files", "said"], terminal)
    lines = terminal.getvalue().split("\n")
    assert max(map(len, lines)) <= 40
    assert "…" in lines[4]
    assert "12345" in lines[4]


def test_what_others_wrote_moves_no_cursor(terminal: Terminal) -> None:
    stream_table([("\x1b[2J\x1b]0;x\x07evil\nline", "日本語")], ["a", "b"], terminal)
    text = terminal.getvalue()
    assert "\x1b" not in text
    assert text.count("\n") == 5
    assert text.split("\n")[2] == "─" * (len(" [2J ]0;x evil line") + 2 + 6)


def test_rows_are_printed_as_they_come() -> None:
    out, seen = io.StringIO(), []

    def rows():
        for number in range(3000):
            seen.append(out.getvalue().count("\n"))
            yield (f"m@{number}", number)

    stream_table(rows(), ["version", "number"], out)
    assert seen[-1] > 1900
    assert out.getvalue().count("\n") == 3004


def test_a_terminal_of_plain_letters(terminal: Terminal) -> None:
    terminal.encoding = "ascii"
    stream_table(ROWS, ["version", "metrics", "files", "said"], terminal)
    assert terminal.getvalue().isascii()


@pytest.mark.parametrize("values", [[], [{"a": 1}], [{"a": [1]}, {"b": "é\n"}]])
def test_json_and_csv(values: list) -> None:
    out = io.StringIO()
    stream_json(iter(values), out)
    assert json.loads(out.getvalue()) == values
    out = io.StringIO()
    stream_csv(lambda: iter(values), out)
    keys = list(dict.fromkeys(key for one in values for key in one))
    assert out.getvalue().splitlines()[0] == ",".join(keys)


def test_no_text_is_a_formula_in_csv() -> None:
    out = io.StringIO()
    said = {
        "=x": "=1+1",
        "b": "-2.5",
        "c": -1,
        "d": "@a",
        "e": "+x",
        "f": "-",
        "g": "a=b",
        "h": "\t=1",
        "i": ["=1"],
    }
    stream_csv(lambda: iter([said]), out)
    header, row = csv.reader(io.StringIO(out.getvalue()))
    assert header == ["'=x", *"bcdefghi"]
    assert row == ["'=1+1", "-2.5", "-1", "'@a", "'+x", "'-", "a=b", "'\t=1", '["=1"]']
    assert csv_cell("=1") == "'=1"
