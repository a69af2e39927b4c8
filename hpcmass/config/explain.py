"""From pydantic's list of errors to one `ConfigError` that a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from hpcmass.config.document import Key
from hpcmass.errors import ConfigError

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text in quotes",
    "list_type": "a list, in [ ]",
    "too_short": "at least one item",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def nearest(word: str, known: list[str]) -> str | None:
    """The known word most like `word`, whatever their case, or None when none is like it."""
    lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def explain(error: ValidationError, model: type[BaseModel], where: Callable[[Key], str]) -> ConfigError:
    """One error that lists every fault: where, key, what was wrong, what was expected, nearest name.

    Args:
        error: What pydantic raised.
        model: The model that was validated, to know the valid names.
        where: Gives the place (`file:line`) of a key.
    """
    faults: list[tuple[str, str, str | None]] = []
    for item in error.errors(include_url=False):
        key = _plain(item["loc"])
        message, hint = _fault(item, key, model)
        place = where(key)
        if (place, message, hint) not in faults:
            faults.append((place, message, hint))
    faults.sort(key=lambda fault: (_line(fault[0]), fault[0]))
    place, message, hint = faults[0]
    if len(faults) > 1:
        message += f" ({hint})" if hint else ""
        hint = None
    more = [f"{at}: {what}" + (f" ({how})" if how else "") for at, what, how in faults[1:]]
    return ConfigError("\n".join([message, *more]), where=place, hint=hint, faults=len(faults))


def _line(place: str) -> int:
    """The line of `file:line`, for faults to be listed as they stand in the file."""
    number = place.rpartition(":")[2]
    return int(number) if number.isdigit() else 0


def _plain(location: tuple[int | str, ...]) -> Key:
    """The location without the tags that pydantic adds for members of a union."""
    tags = {"float", "int", "categorical", "str", "bool", "tagged-union"}
    kept = [part for part in location if not (isinstance(part, str) and ("[" in part or part in tags))]
    return tuple(kept)


def _fault(item: Any, key: Key, model: type[BaseModel]) -> tuple[str, str | None]:
    name = ".".join(map(str, key)) or "the file"
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        known = sorted(valid_names(model, key[:-1]))
        like = nearest(str(key[-1]), known)
        hint = f"did you mean '{like}'?" if like else f"known here: {', '.join(known)}"
        return f"unknown key '{name}'", hint
    if kind == "missing":
        return f"'{name}' is missing", f"add {key[-1]} = …" if key else None
    if kind == "literal_error":
        expected = item["ctx"]["expected"]
        like = nearest(str(value), [w.strip("' ") for w in expected.replace(" or ", ", ").split(",")])
        return f"'{name}' is {value!r}; expected {expected}", f"did you mean '{like}'?" if like else None
    if kind == "union_tag_invalid":
        return f"'{name}.type' is {item['ctx']['tag']!r}; expected {item['ctx']['expected_tags']}", None
    if kind == "union_tag_not_found":
        return f"'{name}' has no type", "expected type = 'float', 'int' or 'categorical'"
    if kind == "value_error":
        return (f"'{name}': " if key else "") + str(item["ctx"]["error"]), None
    expected = _EXPECTED.get(kind) or item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"'{name}' is {value!r}; expected {expected}", None


def valid_names(model: type[BaseModel], table: Key) -> set[str]:
    """Names of the keys that the table at `table` may hold; empty where anything may stand."""
    current: list[type[BaseModel]] = [model]
    for part in table:
        following: list[type[BaseModel]] = []
        for candidate in current:
            field = candidate.model_fields.get(str(part))
            following += _models(field.annotation) if field else []
        # A table of tables (`sweep.space`) is entered by a name of the user's: its models stay candidates.
        current = following or current
    return {name for candidate in current for name in candidate.model_fields}


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None:
        return []
    return [model for argument in get_args(annotation) for model in _models(argument)]
