"""Plots of results; each function takes and returns a matplotlib ``Axes`` (extra ``viz``)."""

import numpy as np


def scree(result_or_S, ax=None):
    """Plot singular values against their index, on a logarithmic scale.

    Parameters
    ----------
    result_or_S : SVDResult or array, shape (k,)
        A result of ``rnla.svd``, or singular values.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure is made if missing.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on; what was drawn is its last line. Values equal to zero are left out.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the singular values are not one-dimensional.

    Examples
    --------
    >>> import rnla.plotting
    >>> from matplotlib.figure import Figure
    >>> ax = rnla.plotting.scree([4.0, 2.0, 1.0], Figure().subplots())
    >>> ax.get_lines()[-1].get_ydata().tolist()
    [4.0, 2.0, 1.0]
    """
    S = getattr(result_or_S, "S", result_or_S)
    shape = tuple(S.shape) if hasattr(S, "shape") else np.shape(S)
    if len(shape) != 1:
        raise ValueError(f"rnla.plotting.scree: result_or_S must hold singular values of shape (k,); got {shape}.")
    S = np.array([float(S[i]) for i in range(shape[0])])  # the one way from any library and device to the host
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("rnla.plotting.scree: plots need matplotlib: pip install 'rnla[viz]'") from error
        ax = pyplot.subplots(layout="constrained")[1]
    index = np.arange(1, S.size + 1)
    ax.plot(index[S > 0], S[S > 0], marker="o", markersize=3, linewidth=1)
    ax.set_yscale("log")
    ax.set_xlabel("index")
    ax.set_ylabel("singular value")
    return ax
