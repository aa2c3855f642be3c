"""Names of runs: an adjective and a scientist, as in `patient-noether`."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["fresh_name"]

ADJECTIVES = (
    "agile amber brave bright calm clear clever curious daring deep eager early fair fast fine "
    "fond frank free gentle glad golden grand green happy honest humble keen kind light lively "
    "lucid merry mild modest noble open patient plain proud quick quiet rapid ready sharp silent "
    "smart solid steady still strong subtle sunny swift tidy true vivid warm wise witty young"
).split()
SCIENTISTS = (
    "abel archimedes banach bayes bernoulli bohr boole borel carson cauchy chandra curie darwin "
    "dirac einstein erdos euclid euler faraday fermat fermi feynman franklin galileo galois gauss "
    "germain goedel hamming hilbert hopper huygens hypatia jacobi johnson kepler kolmogorov "
    "lagrange laplace leibniz lorenz lovelace markov maxwell mendel mirzakhani newton noether "
    "pascal pauli planck poincare ramanujan riemann sanger shannon tao tesla turing vaughan wiener"
).split()


def fresh_name(taken: Callable[[str], bool]) -> str:
    """A name that is not taken; with a number behind it once the plain ones get rare.

    Not drawn from torch's or the run's random state: names must differ between equal runs.
    """
    source = random.SystemRandom()
    for attempt in range(1000):
        name = f"{source.choice(ADJECTIVES)}-{source.choice(SCIENTISTS)}"
        if attempt > 10:
            name += f"-{source.randrange(10_000)}"
        if not taken(name):
            return name
    raise RuntimeError("no free run name was found")
