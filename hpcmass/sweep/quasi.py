"""Quasi-random points: a scrambled Sobol sequence. The one module of this room that needs SciPy."""

from __future__ import annotations

import warnings

from scipy.stats import qmc

from hpcmass.errors import ConfigError
from hpcmass.sweep.points import point_of
from hpcmass.sweep.space import Params, Space


class Sobol:
    """Point n is the n-th of the sequence, whatever was asked for before.

    Owen's scrambling (in its cheaper form, Matoušek 1998) by the study's seed. A dimension with `when` has a
    coordinate of its own, which is unused where it does not exist.
    """

    def __init__(self, space: Space, seed: int) -> None:
        """Prepare.

        Raises:
            ConfigError: More dimensions than Sobol's direction numbers are known for.
        """
        self._space, self._names = space, list(space.dimensions)
        if len(self._names) > qmc.Sobol.MAXDIM:
            raise ConfigError(
                f"has {len(self._names)} dimensions, and Sobol's sequence {qmc.Sobol.MAXDIM} at most",
                where="sweep.space",
                hint='use sampler = "random"',
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._engine = qmc.Sobol(len(self._names), scramble=True, rng=seed)
        self._next = 0

    def point(self, number: int) -> Params:
        """Point `number`, from 0; the cost is that of the distance from the one asked for before."""
        if number < self._next:
            self._engine.reset()
            self._next = 0
        if number > self._next:
            self._engine.fast_forward(number - self._next)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one point alone is not balanced
            units = self._engine.random(1)[0]
        self._next = number + 1
        return point_of(self._space, dict(zip(self._names, map(float, units), strict=True)))
