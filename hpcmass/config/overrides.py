"""Overrides: `--set train.lr=0.1`, and the values that a sweep draws."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hpcmass.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse_set(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as TOML, and as plain text where it is not TOML.

    Raises:
        ConfigError: There is no `=`, or no key.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"'{text}' is not an override", where="--set", hint="write --set train.lr=0.1")
    try:
        return key, tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value.strip()


def parse_sets(texts: Sequence[str]) -> dict[str, Any]:
    """Several overrides; the last of one key holds."""
    return dict(parse_set(text) for text in texts)


def apply(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with dotted keys set; the value None removes the key.

    Raises:
        ConfigError: A key leads through something that is not a table.
    """
    return set_keys(copy.deepcopy(dict(values)), overrides)


def set_keys(result: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The same in place, for who has the values to himself."""
    for key, value in overrides.items():
        *tables, last = key.split(".")
        place = result
        for depth, table in enumerate(tables):
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{'.'.join(tables[: depth + 1])}' is not a table", where=f"--set {key}")
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return result
