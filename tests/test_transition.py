"""rnla.learn_transition_operator: recovery, scaling, agreement with completion, bad input."""

import warnings

import numpy as np
import pytest

import rnla


def graph_problem(n, k, n_steps, oversampling, seed=0, **options):
    graph = rnla.datasets.graph_operator("erdos_renyi", n, p=0.2, k=k, rng=seed, **options)
    count = round(oversampling * k * (2 * n - k))
    samples = rnla.datasets.space_time_samples((graph.U, graph.s, graph.Vh), n_steps, count, rng=seed)
    return graph.to_dense(), samples


def error_of(result, A):
    return np.linalg.norm(result.to_dense() - A) / np.linalg.norm(A)


@pytest.mark.parametrize("n_steps", [2, 3, 5])
def test_recovery(n_steps):
    A, samples = graph_problem(40, 2, n_steps, 4.0)
    result = rnla.learn_transition_operator(samples, 2, n=40, rng=0)
    assert result.converged
    assert error_of(result, A) < 1e-11
    for t in (1, 2, n_steps, n_steps + 2):
        power = np.linalg.matrix_power(A, t)
        np.testing.assert_allclose(result.power(t), power, atol=1e-10)
        np.testing.assert_allclose(result.entries([0, 3], [5, 7], t), power[[0, 3], [5, 7]], atol=1e-10)
    np.testing.assert_allclose(result.to_dense(), result.power(1))
    np.testing.assert_allclose(result.U.T @ result.U, np.eye(2), atol=1e-13)
    x = np.random.default_rng(0).standard_normal(40)
    np.testing.assert_allclose(result.predict(x, 3)[2], np.linalg.matrix_power(A, 3) @ x, atol=1e-9)
    assert "rank 2" in repr(result)


def test_one_step_is_completion():
    A, (rows, cols, times, values) = graph_problem(30, 2, 1, 3.5)
    here = rnla.learn_transition_operator((rows, cols, times, values), 2, n=30, rng=0)
    there = rnla.complete((rows, cols, values), 2, shape=(30, 30), rng=0)
    np.testing.assert_allclose(here.to_dense(), there.to_dense(), atol=1e-12 * abs(A).max())


def test_matrices_of_each_time_are_the_same_as_samples():
    A, (rows, cols, times, values) = graph_problem(25, 2, 3, 5.0)
    matrices = []
    for t in (1, 2, 3):
        X = np.full((25, 25), np.nan)
        some = times == t
        X[rows[some], cols[some]] = values[some]
        matrices.append(X)
    result = rnla.learn_transition_operator(matrices, 2, rng=0)
    assert error_of(result, A) < 1e-11


def test_a_scaled_operator_gives_the_scaled_result():
    rng = np.random.default_rng(1)
    U, V = rng.standard_normal((2, 40, 2))
    A = U @ V.T
    A *= 1 / abs(np.linalg.eigvals(A)).max()
    place = rnla.datasets.space_time_samples(A, 4, 700, rng=1)
    reference = rnla.learn_transition_operator(place, 2, n=40, rng=0)
    assert error_of(reference, A) < 1e-10
    for c in (0.1, 20.0):
        samples = (*place[:3], place[3] * c ** place[2])
        result = rnla.learn_transition_operator(samples, 2, n=40, rng=0)
        assert abs(result.time_scale / reference.time_scale / c - 1) < 1e-10
        np.testing.assert_allclose(result.to_dense(), c * reference.to_dense(), atol=1e-9 * c * abs(A).max())


def test_full_rank():
    graph = rnla.datasets.graph_operator("erdos_renyi", 12, p=0.4, tau=0.7, rng=0)
    samples = rnla.datasets.space_time_samples(graph.to_dense(), 7, 850, rng=0)
    result = rnla.learn_transition_operator(samples, 12, n=12, rng=0)
    assert error_of(result, graph.to_dense()) < 1e-9


def test_noise_is_estimated_and_fitted():
    A, (rows, cols, times, values) = graph_problem(50, 2, 3, 6.0)
    tau = 0.05 * np.sqrt(np.mean(values**2))
    noisy = values + tau * np.random.default_rng(0).standard_normal(values.shape)
    result = rnla.learn_transition_operator((rows, cols, times, noisy), 2, n=50, noise_std="auto", rng=0)
    assert result.converged
    assert abs(result.noise_std / tau - 1) < 0.15
    assert error_of(result, A) < 0.1


def test_nothing_of_the_size_of_the_operator_is_formed():
    import tracemalloc

    n = 3000
    rng = np.random.default_rng(0)
    U = np.linalg.qr(rng.standard_normal((n, 2)))[0]
    samples = rnla.datasets.space_time_samples((U, np.array([1.0, 0.8]), U.T), 3, 4 * 2 * 2 * n, rng=0)
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rnla.learn_transition_operator(samples, 2, n=n, max_iter=2, rng=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * n * n / 2


def test_callback_ends_the_run():
    _, samples = graph_problem(30, 2, 3, 4.0)

    def stop(record):
        raise StopIteration

    assert rnla.learn_transition_operator(samples, 2, callback=stop).n_iter == 1


@pytest.mark.parametrize(
    ("change", "options", "error", "text"),
    [
        ({2: 0}, {}, ValueError, "times must be in 1"),
        ({0: 99}, {"n": 30}, ValueError, "rows must be in 0..29"),
        ({3: np.nan}, {}, ValueError, "finite"),
        ({}, {"k": 31}, ValueError, "k must be in 1..30"),
        ({}, {"window": 4}, ValueError, "window must be in 1..3"),
        ({}, {"time_scale": -1.0}, ValueError, "time_scale must be"),
        ({}, {"noise_std": -1.0}, ValueError, "noise_std must be"),
        ({}, {"n_steps": 2}, ValueError, "times must be in 1..2"),
    ],
)
def test_bad_input_is_refused(change, options, error, text):
    _, samples = graph_problem(30, 2, 3, 4.0)
    samples = [x.copy() for x in samples]
    for which, value in change.items():
        samples[which][0] = value
    with pytest.raises(error, match=text):
        rnla.learn_transition_operator(tuple(samples), **{"k": 2, "n": 30, **options})


def test_other_bad_input_is_refused():
    _, (rows, cols, times, values) = graph_problem(30, 2, 3, 4.0)
    twice = tuple(np.append(x, x[:1]) for x in (rows, cols, times, values))
    with pytest.raises(ValueError, match="given once"):
        rnla.learn_transition_operator(twice, 2)
    with pytest.raises(TypeError, match="samples must be"):
        rnla.learn_transition_operator(np.eye(3), 2)
    with pytest.raises(ValueError, match="square matrices"):
        rnla.learn_transition_operator([np.eye(3), np.ones((3, 2))], 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rnla.learn_transition_operator((rows, cols, times, values), 2, window=1, max_iter=2)
    assert any("window = 1" in str(warning.message) for warning in caught)


def test_samples_are_entries_of_powers():
    rng = np.random.default_rng(0)
    U, V = rng.standard_normal((2, 12, 2))
    s = np.array([0.5, 0.2])
    A = (U * s) @ V.T
    for given in (A, (U, s, V.T)):
        rows, cols, times, values = rnla.datasets.space_time_samples(given, 4, 300, rng=0)
        assert len(set(zip(rows, cols, times, strict=True))) == 300
        powers = np.array([np.linalg.matrix_power(A, t) for t in range(5)])
        np.testing.assert_allclose(values, powers[times, rows, cols], atol=1e-12 * abs(powers).max())
    adaptive = rnla.datasets.space_time_samples(A, 4, 200, adaptive=True, k=2, rng=0)
    assert 120 < len(adaptive[0]) < 280


def test_coherence_is_that_of_its_definition():
    n, T, d1 = 4, 3, 2
    A = np.random.default_rng(0).standard_normal((n, 2)) @ np.random.default_rng(1).standard_normal((2, n))
    powers = [np.linalg.matrix_power(A, t) for t in range(1, T + 1)]
    U, _, Vh = np.linalg.svd(np.block([[powers[a + b] for b in range(2)] for a in range(d1)]))
    mu = rnla.datasets.completion_coherence(A, T, 2)
    for i, j, t in np.ndindex(n, n, T):
        E = np.zeros((n, n))
        E[i, j] = 1.0
        G = np.block([[E * (a + b == t) for b in range(2)] for a in range(d1)])
        G /= np.linalg.norm(G)
        expected = np.linalg.norm(U[:, :2].T @ G) ** 2 + np.linalg.norm(G @ Vh[:2].T) ** 2
        assert abs(mu[i, j, t] - expected) < 1e-12


@pytest.mark.parametrize("kind", ["erdos_renyi", "block_model", "barabasi_albert", "swiss_roll"])
@pytest.mark.parametrize("operator", ["heat", "random_walk"])
def test_graph_operators(kind, operator):
    graph = rnla.datasets.graph_operator(kind, 40, sizes=(20, 20), operator=operator, k=6, rng=0)
    W = graph.adjacency.toarray()
    assert np.array_equal(W, W.T)
    assert (W.sum(axis=1) > 0).all()
    N = W / np.sqrt(np.outer(W.sum(axis=1), W.sum(axis=1)))
    lam, Q = np.linalg.eigh(N)
    lam = np.exp(lam - 1) if operator == "heat" else lam
    best = np.argsort(-abs(lam))[:6]
    expected = (Q[:, best] * lam[best]) @ Q[:, best].T
    if abs(lam[best[-1]]) - np.sort(abs(lam))[-7] > 1e-6:
        np.testing.assert_allclose(graph.to_dense(), expected, atol=1e-9)
    assert np.all(np.diff(graph.s) <= 0)


def test_problems_have_enough_entries_in_every_line():
    for oversampling in (1.1, 3.0):
        problem = rnla.datasets.completion_problem((50, 30), 3, oversampling=oversampling, rng=0)
        assert np.bincount(problem.rows, minlength=50).min() > 3
        assert np.bincount(problem.cols, minlength=30).min() > 3
        assert len(problem.rows) == round(oversampling * 3 * 77)
    with pytest.raises(ValueError, match="oversampling must give"):
        rnla.datasets.completion_problem((50, 30), 3, oversampling=0.5)
    with pytest.raises(ValueError, match="kind must be"):
        rnla.datasets.graph_operator("star", 5)
