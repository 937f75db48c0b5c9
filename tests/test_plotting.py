import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import rnla
import rnla.plotting
from rnla._pca import pca
from rnla.testing import matrix_with_spectrum, spectrum

PLOTS = {
    "scree": [2.0, 1.0],
    "cumulative_variance": [0.5, 0.25],
    "error_against_rank": [2.0, 1.0],
    "convergence": [1.0, 0.1],
}


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


def drawn(ax):
    return ax.get_lines()[-1].get_xydata()


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_takes_and_returns_axes_with_labels(name, ax):
    assert getattr(rnla.plotting, name)(PLOTS[name], ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.get_yscale() == ("linear" if name == "cumulative_variance" else "log")


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_makes_a_figure_if_it_gets_none(name):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = getattr(rnla.plotting, name)(PLOTS[name])
    assert made.figure.number in pyplot.get_fignums()
    pyplot.close(made.figure)


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=rf"^rnla\.plotting\.{name}: .*pip install 'rnla\[viz\]'"):
        getattr(rnla.plotting, name)(PLOTS[name])


@pytest.mark.parametrize("name", ["scree", "cumulative_variance", "error_against_rank"])
def test_a_matrix_is_refused(name, ax):
    with pytest.raises(ValueError, match=rf"rnla\.plotting\.{name}: result_or_\w+ must hold .*\(2, 2\)"):
        getattr(rnla.plotting, name)(np.eye(2), ax)


@pytest.mark.parametrize("name", ["scree", "cumulative_variance", "error_against_rank"])
@pytest.mark.parametrize("place", ["numpy", "strict", "strict-device1", "torch"], indirect=True)
def test_arrays_of_every_library_are_taken(name, place, ax):
    xp, device = place
    getattr(rnla.plotting, name)(xp.asarray([0.5, 0.25], device=device), ax)
    expected = {
        "scree": [0.5, 0.25],
        "cumulative_variance": [0.5, 0.75],
        "error_against_rank": [1.0, 0.2**0.5],
    }[name]
    assert drawn(ax)[:, 1] == pytest.approx(expected)


def test_scree_draws_singular_values_of_a_result(ax):
    result = rnla.svd(np.diag([4.0, 2.0, 1.0]), 3, rng=0)
    rnla.plotting.scree(result, ax)
    np.testing.assert_array_equal(drawn(ax), np.stack([[1, 2, 3], result.S], axis=1))


def test_scree_draws_moduli_of_eigenvalues(ax):
    rnla.plotting.scree(SimpleNamespace(eigenvalues=np.array([-3.0, 2.0])), ax)
    assert drawn(ax).tolist() == [[1, 3], [2, 2]]


def test_zeros_are_left_out_of_a_logarithmic_scale(ax):
    rnla.plotting.scree([3.0, 1.0, 0.0], ax)
    assert drawn(ax).tolist() == [[1, 3], [2, 1]]
    rnla.plotting.error_against_rank([3.0, 0.0], ax)
    assert drawn(ax).tolist() == [[0, 1]]
    rnla.plotting.error_against_rank([0.0, 0.0], ax)
    assert drawn(ax).tolist() == []
    rnla.plotting.convergence([np.inf, 1.0, 0.0], ax)
    assert drawn(ax).tolist() == [[2, 1]]


def test_cumulative_variance_of_principal_components(ax):
    A = matrix_with_spectrum(40, 12, spectrum("poly1", 12), rng=0)
    result = pca(A, 5, rng=0)
    rnla.plotting.cumulative_variance(result, ax)
    assert drawn(ax)[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert drawn(ax)[:, 1] == pytest.approx(np.cumsum(result.explained_variance_ratio))


@pytest.mark.parametrize("decompose", [rnla.svd, pca])
def test_error_against_rank_is_the_error_of_every_truncation(decompose, ax):
    A = matrix_with_spectrum(40, 12, spectrum("exp", 12), rng=0)
    k = 5
    rnla.plotting.error_against_rank(decompose(A, k, tol=1e-8, rng=0), ax)
    A = A - A.mean(axis=0) if decompose is pca else A
    sigma = np.linalg.svd(A, compute_uv=False)
    exact = [np.linalg.norm(sigma[r:]) / np.linalg.norm(sigma) for r in range(k + 1)]
    assert drawn(ax)[:, 0].tolist() == list(range(k + 1))
    assert drawn(ax)[:, 1] == pytest.approx(exact, rel=1e-6)


def test_error_against_rank_keeps_its_digits(ax):
    sigma = np.logspace(150, 130, 11)
    rnla.plotting.error_against_rank(sigma, ax, error=1e-25)
    exact = np.append(sigma / sigma[0], 1e-25)  # to first order the next singular value
    assert drawn(ax)[:, 1] == pytest.approx(exact, rel=1e-3, abs=0)


@pytest.mark.parametrize("error", [-0.1, 1.0, np.nan])
def test_an_error_out_of_range_is_refused(error, ax):
    with pytest.raises(ValueError, match=r"^rnla\.plotting\.error_against_rank: error must be at least 0"):
        rnla.plotting.error_against_rank([1.0], ax, error=error)


def test_convergence_draws_the_history_of_a_result(ax):
    A = matrix_with_spectrum(300, 200, spectrum("slow", 200), rng=0)
    result = rnla.svd(A, 5, method="gram", rng=0)
    history = result.info.history
    assert len(history) > 1
    rnla.plotting.convergence(result, ax, tol=1e-2)
    tolerance, _ = ax.get_lines()
    assert set(tolerance.get_ydata()) == {1e-2}
    finite = [record for record in history if np.isfinite(record.error)]
    assert drawn(ax).tolist() == [[record.iteration, record.error] for record in finite]
    rnla.plotting.convergence(history, ax, against="seconds")
    assert drawn(ax).tolist() == [[record.seconds, record.error] for record in finite]


def test_convergence_draws_the_standard_errors_of_an_estimate(ax):
    result = rnla.trace(np.diag(1.0 / np.arange(1.0, 301.0)), rtol=1e-3, rng=0)
    rnla.plotting.convergence(result, ax, tol=1e-3 * result.value)
    assert [y for _, y in drawn(ax)] == [stderr for _, _, stderr in result.history if stderr > 0]


def test_errors_against_rank_of_a_truncation_are_those_of_the_whole():
    from matplotlib.figure import Figure

    result = rnla.svd(matrix_with_spectrum(60, 40, spectrum("slow", 40), rng=0), 9, rng=0)
    whole, part = (
        np.array(drawn(rnla.plotting.error_against_rank(x, Figure().subplots()))) for x in (result, result.truncate(4))
    )
    assert np.abs(whole[:5] - part).max() <= 1e-12


def test_convergence_draws_the_history_of_a_solver(ax):
    rnla.plotting.convergence(SimpleNamespace(history=np.array([1.0, 0.5])), ax)
    assert drawn(ax).tolist() == [[1, 1], [2, 0.5]]


@pytest.mark.parametrize(
    ("history", "options", "message"),
    [
        ([], {}, "must hold at least one iteration"),
        ([1.0], {"against": "passes"}, "against must be one of 'iteration', 'seconds'; got 'passes'"),
        ([1.0], {"against": "seconds"}, "against='seconds' needs records"),
    ],
)
def test_convergence_refuses(history, options, message, ax):
    with pytest.raises(ValueError, match=rf"^rnla\.plotting\.convergence: .*{message}"):
        rnla.plotting.convergence(history, ax, **options)


# ---- robust PCA


@pytest.fixture(scope="module")
def robust():
    problem = rnla.datasets.robust_pca_problem(60, 50, 2, outliers=0.1, rng=0)
    return rnla.robust_pca(problem.A, 2, rng=0), problem


def test_outlier_map_is_where_the_outliers_are(robust, ax):
    result, problem = robust
    assert rnla.plotting.outlier_map(result, problem.A, ax) is ax
    np.testing.assert_array_equal(ax.get_images()[0].get_array(), problem.outliers)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column", "row")
    assert [line.get_xydata().size for line in ax.get_lines()] == [0, 0]


def test_outlier_map_marks_what_is_not_explained(robust, ax):
    result, problem = robust
    marked = replace(result, unresolved_rows=np.array([3, 7]), unresolved_cols=np.array([5]))
    rnla.plotting.outlier_map(marked, problem.A, ax)
    rows, cols = (line.get_xydata().tolist() for line in ax.get_lines())
    assert rows == [[0, 3.5], [0, 7.5]]
    assert cols == [[5.5, 0]]


def test_outlier_map_of_a_large_matrix_shows_shares(robust, ax, monkeypatch):
    result, problem = robust
    monkeypatch.setattr(rnla.plotting, "MAP_CELLS", 12)
    rnla.plotting.outlier_map(result, problem.A, ax)
    shown = ax.get_images()[0].get_array()
    assert shown.shape == (12, 12)
    edges = -(-np.arange(12) * 50 // 12)  # cells begin where 12 * column // 50 changes
    sums = np.add.reduceat(np.add.reduceat(problem.outliers.astype(int), np.arange(0, 60, 5), axis=0), edges, axis=1)
    sizes = 5 * np.diff(np.append(edges, 50))
    assert np.asarray(shown) == pytest.approx(sums / sizes)


def test_background_sheet_has_three_pictures(robust, ax):
    result, problem = robust
    assert rnla.plotting.background_sheet(problem.A, result, (12, 5), ax, show=[0, 1, 2]) is ax
    assert ax.get_images()[0].get_array().shape == (3 * 12 + 4, 3 * 5 + 4)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["frame", "background", "outliers"]
    with pytest.raises(ValueError, match=r"^rnla\.plotting\.background_sheet: .* frames of 12 x 6"):
        rnla.plotting.background_sheet(problem.A, result, (12, 6), ax)


def test_plots_of_robust_pca_make_a_figure(robust):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    result, problem = robust
    for made in (
        rnla.plotting.outlier_map(result, problem.A),
        rnla.plotting.background_sheet(problem.A, result, (12, 5)),
    ):
        assert made.figure.number in pyplot.get_fignums()
        pyplot.close(made.figure)
