"""The peers of the SVD benchmark, each brought to one form: ``run(A, k) -> U, S, Vh`` in descending order."""

import functools
import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse.linalg

import rnla
from bench.harness import tolerance


@dataclass(frozen=True)
class Peer:
    """One way to compute a truncated SVD without rnla."""

    name: str
    module: str
    run: object  # (A, k) -> U, S, Vh
    passes: object = None  # (shape, k) -> reads of A; None: found by counting the products of one run
    dense_only: bool = False

    @property
    def installed(self):
        """Whether the package is there."""
        return importlib.util.find_spec(self.module) is not None


def scikit_learn():
    """Return scikit-learn's randomized SVD at its defaults."""

    def run(A, k):
        from sklearn.utils.extmath import randomized_svd

        return randomized_svd(A, k, random_state=0)

    # Documented: n_iter is 7 for k below a tenth of the shorter side, else 4. Each iteration reads A twice.
    return Peer("scikit-learn", "sklearn", run, lambda shape, k: 2 * (7 if k < 0.1 * min(shape) else 4) + 2)


def scipy_svds(solver, tol):
    """Return scipy.sparse.linalg.svds with one of its solvers."""

    def run(A, k):
        # PROPACK gives up after 10 * k steps by default, which is too early for slow decay.
        limit = {"maxiter": min(20 * k, *A.shape)} if solver == "propack" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # LOBPCG says that it did not converge; its errors are in the table
            U, S, Vh = scipy.sparse.linalg.svds(A, k, tol=tol, solver=solver, rng=np.random.default_rng(0), **limit)
        order = np.argsort(S)[::-1]
        return U[:, order], S[order], Vh[order]

    return Peer(f"{solver.upper()} tol={tolerance(tol)}", "scipy", run)


def fbpca():
    """Return fbpca at its defaults, without centring."""

    def run(A, k):
        import fbpca

        np.random.seed(0)  # noqa: NPY002  (fbpca draws from the global state)
        return fbpca.pca(A, k, raw=True)

    return Peer("fbpca", "fbpca", run, lambda shape, k: 6)  # n_iter=2: 2 * n_iter + 2


def primme(tol):
    """Return PRIMME's svds."""

    def run(A, k):
        import primme

        return primme.svds(A, k, tol=tol)

    return Peer(f"PRIMME tol={tolerance(tol)}", "primme", run)


def torch_lowrank(niter):
    """Return torch.svd_lowrank with ten further test vectors."""

    def run(A, k):
        import torch

        torch.manual_seed(0)
        U, S, V = torch.svd_lowrank(torch.from_numpy(A), q=min(k + 10, *A.shape), niter=niter)
        return U[:, :k].numpy(), S[:k].numpy(), V[:, :k].numpy().T

    return Peer(f"torch niter={niter}", "torch", run, lambda shape, k: 2 * niter + 2, dense_only=True)


def dask_compressed(niter):
    """Return dask's svd_compressed on eight blocks along the longer side, read again in every iteration."""

    def run(A, k):
        import dask
        import dask.array
        from dask.array.linalg import svd_compressed

        long_side = int(np.argmax(A.shape))
        chunks = tuple(-(-size // 8) if axis == long_side else size for axis, size in enumerate(A.shape))
        blocks = dask.array.from_array(A, chunks=chunks, name=False)
        return dask.compute(*svd_compressed(blocks, k, n_power_iter=niter, seed=0, compute=True))

    return Peer(f"dask n_power_iter={niter}", "dask", run, lambda shape, k: 2 * niter + 2, dense_only=True)


def run_counted(peer, A, k):
    """Run a peer once and return its result and how often it read A."""
    if peer.passes is not None:
        return peer.run(A, k), peer.passes(A.shape, k)
    counted = rnla.testing.CountingOperator(A)
    operator = scipy.sparse.linalg.LinearOperator(
        A.shape,
        matvec=counted.matvec,
        rmatvec=counted.rmatvec,
        matmat=counted.matmat,
        rmatmat=counted.rmatmat,
        dtype=A.dtype,
    )
    return peer.run(operator, k), counted.passes


@functools.cache
def warm_up(peer):
    """Call a peer once on a small matrix: imports and compilation are not part of its memory or time."""
    A = rnla.testing.matrix_with_spectrum(120, 80, rnla.testing.spectrum("poly1", 80), rng=0)
    peer.run(A, 3)
