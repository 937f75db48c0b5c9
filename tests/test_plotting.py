import sys

import numpy as np
import pytest

import rnla
import rnla.plotting


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_scree_draws_singular_values_of_a_result_on_a_log_scale(ax):
    result = rnla.svd(np.diag([4.0, 2.0, 1.0]), 3, rng=0)
    assert rnla.plotting.scree(result, ax) is ax
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), result.S)
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel()
    assert ax.get_ylabel()


@pytest.mark.parametrize("place", ["numpy", "strict", "torch"], indirect=True)
def test_scree_takes_arrays_of_every_library_and_leaves_out_zeros(place, ax):
    xp, device = place
    rnla.plotting.scree(xp.asarray([3.0, 1.0, 0.0], device=device), ax)
    assert ax.get_lines()[-1].get_xydata().tolist() == [[1, 3], [2, 1]]


def test_scree_makes_a_figure_if_it_gets_none(monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = rnla.plotting.scree([2.0, 1.0])
    assert made.figure.number in pyplot.get_fignums()
    pyplot.close(made.figure)


def test_scree_refuses_a_matrix(ax):
    with pytest.raises(ValueError, match=r"rnla\.plotting\.scree: result_or_S must .*\(2, 2\)"):
        rnla.plotting.scree(np.eye(2), ax)


def test_scree_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'rnla\[viz\]'"):
        rnla.plotting.scree([2.0, 1.0])
