"""Randomized numerical linear algebra: decompositions, solvers and estimates for matrices of any kind."""

from rnla import _sketch as sketch
from rnla import datasets, testing
from rnla._aliases import randomized_svd, svds
from rnla._cur import CURResult, cur
from rnla._diag import diag, row_norms
from rnla._eigh import eigh
from rnla._errors import AccuracyWarning, ConvergenceWarning, NotPositiveDefiniteError
from rnla._generalized_nystrom import generalized_nystrom
from rnla._interpolative import IDResult, interp_decomp
from rnla._kernel_matrix import KernelMatrix
from rnla._lowrank import EighResult, QBResult, SVDInfo, SVDResult
from rnla._lstsq import LstsqResult, lstsq
from rnla._norm import cond, norm, rank
from rnla._nystrom import nystrom
from rnla._pca import PCAResult, pca
from rnla._pcg import SolveResult, pcg
from rnla._probing import EstimateResult
from rnla._qr import PivotedQRResult, QRResult, qr
from rnla._rangefinder import qb, range_finder
from rnla._robust_code import RobustCodeResult, robust_code
from rnla._rpca import robust_pca
from rnla._rpca_result import RobustPCAResult
from rnla._rpcholesky import CholeskyResult, rpcholesky
from rnla._spectral_density import SpectralDensity, spectral_density
from rnla._streaming import StreamingSVD
from rnla._svd import svd, svdvals
from rnla._svd_stream import svd_stream
from rnla._trace import trace
from rnla._trace_fun import logdet, trace_fun

__version__ = "0.1.0"

__all__ = [
    "AccuracyWarning",
    "CURResult",
    "CholeskyResult",
    "ConvergenceWarning",
    "EighResult",
    "EstimateResult",
    "IDResult",
    "KernelMatrix",
    "LstsqResult",
    "NotPositiveDefiniteError",
    "PCAResult",
    "PivotedQRResult",
    "QBResult",
    "QRResult",
    "RobustCodeResult",
    "RobustPCAResult",
    "SVDInfo",
    "SVDResult",
    "SolveResult",
    "SpectralDensity",
    "StreamingSVD",
    "__version__",
    "cond",
    "cur",
    "datasets",
    "diag",
    "eigh",
    "generalized_nystrom",
    "interp_decomp",
    "logdet",
    "lstsq",
    "norm",
    "nystrom",
    "pca",
    "pcg",
    "qb",
    "qr",
    "randomized_svd",
    "range_finder",
    "rank",
    "robust_code",
    "robust_pca",
    "row_norms",
    "rpcholesky",
    "sketch",
    "spectral_density",
    "svd",
    "svd_stream",
    "svds",
    "svdvals",
    "testing",
    "trace",
    "trace_fun",
]
