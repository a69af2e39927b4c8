"""Lines of keys in a TOML text."""

from __future__ import annotations

from hpcmass.config.document import locate

TEXT = '''\
a = 1
b.c = 2
[t."x.y"] # note
k = { p = 1, "q r" = { z = 2 } }
m = """
k2 = 3
"""
n = [
  { u = 1 },
]
[[arr]]
v = 1
[[arr]]
v = 2
[arr.sub]
w = 3
'''


def test_lines() -> None:
    lines = locate(TEXT)
    assert lines[("a",)] == 1
    assert lines[("b", "c")] == 2
    assert lines[("t", "x.y", "k")] == 4
    assert lines[("t", "x.y", "k", "p")] == 4
    assert lines[("t", "x.y", "m")] == 5
    assert ("t", "x.y", "k2") not in lines
    assert lines[("arr", 0, "v")] == 12
    assert lines[("arr", 1, "v")] == 14
    assert lines[("arr", 1, "sub", "w")] == 16
