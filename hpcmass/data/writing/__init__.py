"""Datasets written by their producers, rank by rank, and datasets that grow: see docs/writing.md.

`staging.py` has the hidden folder in which all of it is made, `shardout.py` one shard that is being filled,
`writer.py` the writer, `commit.py` the publication; `append.py` and `reshard.py` are producers themselves.
"""
