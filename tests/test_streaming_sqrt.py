"""A stream of updates and downdates: nothing accumulates, and what was added can be taken away."""

import numpy as np
import pytest
import scipy.sparse as sp

import rnla


def matrix(root):
    return root @ root.to_dense()


def test_a_sliding_window_does_not_lose_accuracy():
    n, window, tol = 100, 6, 1e-10
    rng = np.random.default_rng(0)
    d, columns = rng.uniform(0.01, 1, n), rng.standard_normal((120, n))
    stream, errors = rnla.StreamingSqrt(d, tol=tol), []
    for step, z in enumerate(columns, 1):
        stream.update(z)
        if step > window:
            stream.downdate(columns[step - 1 - window])
        assert stream.n_columns == min(step, window)
        if step in (20, 120):
            kept = columns[step - window : step]
            W = np.diag(d) + kept.T @ kept
            errors.append(np.linalg.norm(matrix(stream.sqrt()) - W, 2) / np.linalg.norm(W, 2))
    assert errors[0] <= 2 * tol  # the error of the quadrature is below its bound by a factor that varies
    assert errors[1] <= 2 * max(errors[0], tol)


@pytest.mark.parametrize("inverse", [False, True])
def test_a_root_is_corrected_until_its_rank_has_doubled(inverse):
    n, window, tol = 150, 12, 1e-10
    rng = np.random.default_rng(0)
    d, columns = rng.uniform(0.1, 1, n), rng.standard_normal((120, n))
    stream, ranks = rnla.StreamingSqrt(d, tol=tol), []
    for step, z in enumerate(columns, 1):
        stream.update(z)
        if step <= window:
            continue
        stream.downdate(columns[step - 1 - window])
        root = stream.inv_sqrt() if inverse else stream.sqrt()
        ranks.append(root.rank)
        if step in (20, 120):
            kept = columns[step - window : step]
            W = np.diag(d) + kept.T @ kept
            if inverse:
                assert np.linalg.norm(root @ (W @ root.to_dense()) - np.eye(n), 2) <= 10 * tol * root.kappa**0.5
            else:
                assert np.linalg.norm(matrix(root) - W, 2) <= 10 * tol * np.linalg.norm(W, 2)
            assert root.residual_norm() <= 10 * tol * (root.kappa**0.5 if inverse else root.high)
    steps = np.diff(ranks)
    assert 1 <= np.sum(steps < -window) < np.sum(steps > 0)  # built anew, and more often corrected
    assert max(ranks) <= 2 * min(ranks) + 8 * window


def test_corrections_stop_where_the_interval_or_the_precision_ends():
    rng = np.random.default_rng(0)
    d, Z = rng.uniform(0.1, 1, 200), rng.standard_normal((200, 10))
    for new in (10 * Z[:, 0], 0.9j * Z[:, 0], Z[:, :0], -Z[:, 0], rng.standard_normal((200, 3))):
        stream = rnla.StreamingSqrt(d).update(Z)
        stream.sqrt()
        stream.update(new)
        columns = np.column_stack([Z, new])
        W = np.diag(d) + columns @ columns.conj().T
        assert np.linalg.norm(matrix(stream.sqrt()) - W, 2) <= 1e-7 * np.linalg.norm(W, 2)
    stream.update(Z[:, 1]).downdate(2 * Z[:, 2])
    with pytest.raises(rnla.NotPositiveDefiniteError):
        stream.sqrt()


def test_a_downdate_undoes_an_update():
    rng = np.random.default_rng(0)
    d, Z = rng.uniform(0.1, 1, 80), rng.standard_normal((80, 3))
    stream = rnla.StreamingSqrt(d).update(Z)
    assert stream.downdate(Z[:, ::-1]).n_columns == 0
    assert stream.sqrt().rank == 0
    stream.update(Z).downdate(Z @ np.linalg.qr(rng.standard_normal((3, 3)))[0])
    assert stream.n_columns == 6
    assert np.abs(stream.sqrt().to_dense() - np.diag(np.sqrt(d))).max() <= 10 * 1e-8 * np.linalg.norm(Z, 2)


def test_a_decaying_mean_forgets_exactly():
    rng = np.random.default_rng(0)
    d, columns, beta = rng.uniform(0.1, 1, 50), rng.standard_normal((30, 50)), 0.9
    D = np.diag(d)
    for base, A in ((d, D), (sp.diags_array(d), D), (2.0, 2.0 * np.eye(50)), (D, D)):
        stream, W = rnla.StreamingSqrt(base, n=50), A
        for z in columns:
            stream.scale(beta).update(z)
            W = beta * W + np.outer(z, z)
        assert np.abs(matrix(stream.sqrt()) - W).max() <= 1e-6 * np.abs(W).max()
        assert stream.logdet() == pytest.approx(np.linalg.slogdet(W)[1], abs=1e-9)
        stream.downdate(columns[10] * beta ** (0.5 * 19))  # rounded otherwise than the column that is kept
        assert stream.n_columns == 29


def test_all_roots_are_of_the_same_matrix():
    rng = np.random.default_rng(0)
    d, Z = rng.uniform(0.5, 1, 40), rng.standard_normal((40, 3)) + 1j * rng.standard_normal((40, 3))
    stream = rnla.StreamingSqrt(d).update(Z[:, :2]).replace(Z[:, 1], Z[:, 2]).downdate(0.1 * Z[:, 0].real)
    used = [Z[:, [0]], Z[:, [2]]]
    W = np.diag(d) + sum(z @ z.conj().T for z in used) - 0.01 * np.outer(Z[:, 0].real, Z[:, 0].real)
    assert np.abs(matrix(stream.sqrt()) - W).max() <= 1e-6
    assert np.abs(stream.inv_sqrt() @ (stream.sqrt() @ np.eye(40)) - np.eye(40)).max() <= 1e-6
    L = stream.factor()
    assert np.abs(L @ (L.H @ np.eye(40)) - W).max() <= 1e-10
    assert stream.logdet() == pytest.approx(np.linalg.slogdet(W)[1], abs=1e-10)
    assert stream.sqrt() is stream.sqrt()  # kept until the next update
    assert repr(stream) == "StreamingSqrt(n=40, 3 columns on a diagonal base)"


@pytest.mark.parametrize("shrink", ["truncate", "frequent_directions"])
def test_at_most_so_many_columns(shrink):
    rng = np.random.default_rng(0)
    d, W = np.ones(60), np.eye(60)
    stream = rnla.StreamingSqrt(d, max_update_rank=10, shrink=shrink)
    columns = rng.standard_normal((100, 60)) * np.logspace(0, -3, 60)
    for z in columns:
        stream.update(z)
        W += np.outer(z, z)
        assert stream.n_columns <= 10
    error = np.linalg.norm(matrix(stream.sqrt()) - W, 2)
    tail = np.linalg.norm(columns - columns[:, :9] @ np.eye(9, 60)) ** 2
    assert error <= tail


def test_downdates_that_leave_nothing_show_when_a_root_is_asked_for():
    stream = rnla.StreamingSqrt(np.ones(3)).downdate(2 * np.eye(3)[0])
    for call in (stream.sqrt, stream.inv_sqrt, stream.factor):
        with pytest.raises(rnla.NotPositiveDefiniteError) as caught:
            call()
        assert caught.value.gap == pytest.approx(-3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: rnla.StreamingSqrt(2.0), TypeError, r"^rnla\.StreamingSqrt: n must be an integer"),
        (lambda: rnla.StreamingSqrt(np.ones(3), n=4), ValueError, "n must be the order of A, 3"),
        (lambda: rnla.StreamingSqrt("A"), TypeError, "A must be a positive number"),
        (lambda: rnla.StreamingSqrt(np.ones(3), shrink="x"), ValueError, "shrink must be one of"),
        (lambda: rnla.StreamingSqrt(np.ones(3), max_update_rank=0), ValueError, "max_update_rank must be"),
        (lambda: rnla.StreamingSqrt(np.ones(3)).update(np.ones(4)), ValueError, r"update: Z must have 3 rows"),
        (lambda: rnla.StreamingSqrt(np.ones(3)).downdate(np.ones(4)), ValueError, r"downdate: Z must have 3 rows"),
        (lambda: rnla.StreamingSqrt(np.ones(3)).scale(0.0), ValueError, "beta must be positive"),
        (lambda: rnla.StreamingSqrt(np.ones(3), tol=2.0).sqrt(), ValueError, r"tol must be in \(0, 1\)"),
    ],
)
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
