"""Randomized numerical linear algebra: truncated SVD and low-rank approximation of matrices of any kind."""

from rnla import _sketch as sketch
from rnla import datasets, testing
from rnla._aliases import randomized_svd, svds
from rnla._errors import AccuracyWarning, ConvergenceWarning, NotPositiveDefiniteError
from rnla._lowrank import QBResult, SVDInfo, SVDResult
from rnla._rangefinder import qb, range_finder
from rnla._svd import svd, svdvals

__version__ = "0.1.0"

__all__ = [
    "AccuracyWarning",
    "ConvergenceWarning",
    "NotPositiveDefiniteError",
    "QBResult",
    "SVDInfo",
    "SVDResult",
    "__version__",
    "datasets",
    "qb",
    "randomized_svd",
    "range_finder",
    "sketch",
    "svd",
    "svds",
    "svdvals",
    "testing",
]
