"""Says where the two files of the PyPI package iris-sample-data lie: NetCDF-4, which is HDF5.

    python workflows/air-temperature/prepare.py

A1B_north_america.nc and E1_north_america.nc hold `air_temperature` (240, 37, 49) in kelvin: yearly means from
1860 to 2099, at 1.5 m over North America, of the Met Office's model HadGEM2-AO under two scenarios of emissions
(Open Government Licence).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hpcmass.errors import MissingDependency


def source_file(scenario: str) -> Path:
    """The file of a scenario, `A1B` or `E1`.

    Raises:
        MissingDependency: The package is not installed.
    """
    found = find_spec("iris_sample_data")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency(
            "the temperatures come from the package iris-sample-data", hint="pip install iris-sample-data"
        )
    return Path(found.submodule_search_locations[0]) / "sample_data" / f"{scenario}_north_america.nc"


if __name__ == "__main__":
    for each in ("A1B", "E1"):
        print(source_file(each))
