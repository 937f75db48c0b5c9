"""Randomized numerical linear algebra: decompositions, solvers and estimates for matrices of any kind."""

from rnla import _sketch as sketch
from rnla import datasets, testing
from rnla._aliases import randomized_svd, svds
from rnla._completion import complete
from rnla._completion_cv import CompletionCVResult, complete_cv
from rnla._completion_result import CompletionResult
from rnla._corrected_sqrt import LowRankCorrectedSqrt
from rnla._cur import CURResult, cur
from rnla._diag import diag, row_norms
from rnla._eigh import eigh
from rnla._errors import AccuracyWarning, ConvergenceWarning, NotPositiveDefiniteError
from rnla._generalized_nystrom import generalized_nystrom
from rnla._interpolative import IDResult, interp_decomp
from rnla._kernel_matrix import KernelMatrix
from rnla._lowrank import EighResult, QBResult, SVDInfo, SVDResult
from rnla._lstsq import LstsqResult, lstsq
from rnla._lyapunov import LyapunovResult, solve_lyapunov_lowrank
from rnla._norm import cond, norm, rank
from rnla._nystrom import nystrom
from rnla._pca import PCAResult, pca
from rnla._pcg import SolveResult, pcg
from rnla._probing import EstimateResult
from rnla._qr import PivotedQRResult, QRResult, qr
from rnla._rangefinder import qb, range_finder
from rnla._rational import adi_shifts, correction_rank, decay_bound, zolotarev_nodes
from rnla._riccati import RiccatiResult, solve_riccati_lowrank
from rnla._robust_code import RobustCodeResult, robust_code
from rnla._rpca import robust_pca
from rnla._rpca_cur import RobustCUR
from rnla._rpca_result import RobustPCAResult
from rnla._rpcholesky import CholeskyResult, rpcholesky
from rnla._spectral_density import SpectralDensity, spectral_density
from rnla._sqrt_base import SqrtRoots
from rnla._sqrt_factor import SqrtFactor, sample_mvn, sqrt_factor_update
from rnla._sqrt_riccati import solve_sqrt_riccati
from rnla._sqrtm import function_update, inv_sqrt_update, sqrt_pair_update, sqrt_update
from rnla._streaming import StreamingSVD
from rnla._streaming_sqrt import StreamingSqrt
from rnla._svd import svd, svdvals
from rnla._svd_stream import svd_stream
from rnla._trace import trace
from rnla._trace_fun import logdet, trace_fun
from rnla._transition import learn_transition_operator
from rnla._transition_result import TransitionResult

__version__ = "0.1.0"

__all__ = [
    "AccuracyWarning",
    "CURResult",
    "CholeskyResult",
    "CompletionCVResult",
    "CompletionResult",
    "ConvergenceWarning",
    "EighResult",
    "EstimateResult",
    "IDResult",
    "KernelMatrix",
    "LowRankCorrectedSqrt",
    "LstsqResult",
    "LyapunovResult",
    "NotPositiveDefiniteError",
    "PCAResult",
    "PivotedQRResult",
    "QBResult",
    "QRResult",
    "RiccatiResult",
    "RobustCUR",
    "RobustCodeResult",
    "RobustPCAResult",
    "SVDInfo",
    "SVDResult",
    "SolveResult",
    "SpectralDensity",
    "SqrtFactor",
    "SqrtRoots",
    "StreamingSVD",
    "StreamingSqrt",
    "TransitionResult",
    "__version__",
    "adi_shifts",
    "complete",
    "complete_cv",
    "cond",
    "correction_rank",
    "cur",
    "datasets",
    "decay_bound",
    "diag",
    "eigh",
    "function_update",
    "generalized_nystrom",
    "interp_decomp",
    "inv_sqrt_update",
    "learn_transition_operator",
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
    "sample_mvn",
    "sketch",
    "solve_lyapunov_lowrank",
    "solve_riccati_lowrank",
    "solve_sqrt_riccati",
    "spectral_density",
    "sqrt_factor_update",
    "sqrt_pair_update",
    "sqrt_update",
    "svd",
    "svd_stream",
    "svds",
    "svdvals",
    "testing",
    "trace",
    "trace_fun",
    "zolotarev_nodes",
]
