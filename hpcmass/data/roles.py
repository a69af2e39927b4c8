"""Which field is an input, which a target, which is only carried along."""

from __future__ import annotations

from collections.abc import Sequence

from hpcmass.data.manifest import Field
from hpcmass.data.ragged import OFFSETS
from hpcmass.data.sources.base import SourceField
from hpcmass.errors import DataError
from hpcmass.files import check_name

TARGET_NAMES = ("label", "labels", "target", "targets", "y", "class")


def resolve_roles(
    fields: Sequence[SourceField],
    *,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    meta: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    by: str | None = None,
) -> tuple[Field, ...]:
    """Give every field that is kept its role.

    Fields that are named get the role they are named for. Of the others, one called label, target, y or
    class is the target if no target was named; the rest are inputs if no input was named, and left out
    otherwise. `by` is kept as meta if nothing else says what it is. `categories` are inputs that may hold text.

    Returns:
        The kept fields, in the order of the source.

    Raises:
        DataError: An unknown field, two roles for one, no input, or an input that holds text (one stray word
            in a column of numbers would otherwise turn them into class numbers).
        NameNotAllowed: A field's name may not be used.
    """
    known = [one.name for one in fields]
    roles: dict[str, str] = {}
    for role, names in (("input", inputs), ("input", categories), ("target", targets), ("meta", meta)):
        for name in names or ():
            if name not in known:
                raise DataError(f"there is no field {name!r}", hint=f"there are: {', '.join(known)}")
            if roles.setdefault(name, role) != role:
                raise DataError(f"field {name} cannot be {roles[name]} and {role}")
    if by is not None and by not in known:
        raise DataError(f"there is no field {by!r}", hint=f"there are: {', '.join(known)}")
    for name in known:
        if name in roles:
            continue
        if targets is None and name.lower() in TARGET_NAMES:
            roles[name] = "target"
        elif name == by:
            roles[name] = "meta"
        elif inputs is None:
            roles[name] = "input"
    if "sample_id" in roles:
        raise DataError(
            "a field may not be called 'sample_id': batches use it", hint="give it another name in the source"
        )
    for one in fields:
        taken = [one.name + OFFSETS, one.name + "_length", one.name + "_segment", one.name + "_position"]
        if one.ragged and one.name in roles and (clash := [name for name in taken if name in roles]):
            raise DataError(
                f"a field may not be called {clash[0]!r} beside the ragged field {one.name!r}",
                hint="give it another name in the source",
            )
    if "input" not in roles.values() and by is not None and roles.get(by) == "meta" and by not in (meta or ()):
        raise DataError(
            f"no field is left as input: the strategy goes by {by}, which is therefore none",
            hint=f"go by another of: {', '.join(known)}; or name the inputs",
        )
    if "input" not in roles.values():
        raise DataError("no field is an input", hint=f"name one of: {', '.join(known)}")
    for one in fields:
        if roles.get(one.name) == "input" and one.classes is not None and one.name not in (categories or ()):
            shown = ", ".join(repr(word) for word in one.classes[:3])
            raise DataError(
                f"column {one.name} holds text ({shown}{', …' * (len(one.classes) > 3)}), which is no input",
                hint="mend the rows that should be numbers; or make it a category (--category), the target or "
                "meta; or name the inputs",
                column=one.name,
            )
    return tuple(
        Field(
            name=check_name(one.name, "field"),
            dtype=one.dtype.name,
            shape=one.shape,
            role=roles[one.name],
            classes=None if one.classes is None else list(one.classes),
            ragged=one.ragged,
        )
        for one in fields
        if one.name in roles
    )
