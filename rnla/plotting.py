"""Plots of results; each function takes and returns a matplotlib ``Axes`` (extra ``viz``)."""

import numpy as np

from rnla._progress import Record
from rnla._video_sheet import video_sheet

MAP_CELLS = 400  # along each side of an outlier map at most


def scree(result_or_S, ax=None):
    """Plot singular values against their index, on a logarithmic scale.

    Parameters
    ----------
    result_or_S : result or array, shape (k,)
        A result of ``rnla.svd``, ``rnla.pca`` or ``rnla.eigh`` (of which the moduli of the eigenvalues are drawn), a
        fitted estimator of ``rnla.decomposition``, or singular values.
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
    S = _singular_values(result_or_S, "rnla.plotting.scree")
    ax = _axes(ax, "rnla.plotting.scree")
    return _decay(ax, np.arange(1, S.size + 1), S, "index", "singular value")


def cumulative_variance(result_or_ratio, ax=None):
    """Plot the share of the variance that the first components explain, against their number.

    Parameters
    ----------
    result_or_ratio : result or array, shape (k,)
        A result of ``rnla.pca``, a fitted estimator of ``rnla.decomposition`` (or of scikit-learn), or the share of
        every component.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure is made if missing.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on; what was drawn is its last line.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the shares are not one-dimensional.

    Examples
    --------
    >>> import rnla.plotting
    >>> from matplotlib.figure import Figure
    >>> ax = rnla.plotting.cumulative_variance([0.5, 0.25], Figure().subplots())
    >>> ax.get_lines()[-1].get_ydata().tolist()
    [0.5, 0.75]
    """
    caller = "rnla.plotting.cumulative_variance"
    names = ("explained_variance_ratio", "explained_variance_ratio_")
    share = np.cumsum(_vector(_attribute(result_or_ratio, names), "result_or_ratio", "shares of the variance", caller))
    ax = _axes(ax, caller)
    ax.plot(np.arange(1, share.size + 1), share, marker="o", markersize=3, linewidth=1)
    ax.set_ylim(0, 1.02)  # room for the marker of a full explanation
    ax.set_xlabel("number of components")
    ax.set_ylabel("explained share of the variance")
    return ax


def error_against_rank(result_or_S, ax=None, *, error=None):
    """Plot the relative error of the truncation to rank r, for every r up to the rank of the result.

    It is ``||A - A_r||_F / ||A||_F``, from the singular values that were cut off.

    Parameters
    ----------
    result_or_S : result or array, shape (k,)
        A result of ``rnla.svd``, ``rnla.pca`` (for which A is the centred matrix) or ``rnla.eigh``, a fitted estimator
        of ``rnla.decomposition``, or singular values.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure is made if missing.
    error : float, optional
        Relative error at full rank. By default ``result.info.error_estimate``; 0 where that is missing, as if the
        singular values were all there are.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on; what was drawn is its last line. Errors equal to zero are left out.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the singular values are not one-dimensional, or `error` is not in [0, 1).

    Examples
    --------
    >>> import rnla.plotting
    >>> from matplotlib.figure import Figure
    >>> ax = rnla.plotting.error_against_rank([4.0, 3.0], Figure().subplots())
    >>> ax.get_lines()[-1].get_xydata().tolist()
    [[0.0, 1.0], [1.0, 0.6]]
    """
    caller = "rnla.plotting.error_against_rank"
    S = _singular_values(result_or_S, caller)
    if error is None:
        error = getattr(_attribute(result_or_S, ("info", "info_")), "error_estimate", None) or 0.0
    if not 0 <= error < 1:
        raise ValueError(f"{caller}: error must be at least 0 and less than 1; got {error}.")
    S = S / max(S.max(initial=0.0), np.finfo(np.float64).tiny)  # squares neither overflow nor vanish
    squares = S[::-1] ** 2
    # ||A||^2 (1 - error^2) is the sum of the squares. Tails are added from the small end: differences would cancel.
    rest = squares.sum() * error**2 / (1 - error**2)
    tails = rest + np.concatenate([[0.0], np.cumsum(squares)])[::-1]
    errors = np.sqrt(tails / tails[0]) if tails[0] > 0 else tails
    ax = _axes(ax, caller)
    return _decay(ax, np.arange(errors.size), errors, "rank", "relative error")


def convergence(result_or_history, ax=None, *, tol=None, against="iteration"):
    """Plot the error of every iteration, on a logarithmic scale.

    Parameters
    ----------
    result_or_history : result or sequence
        Anything that has ``.history`` or ``.info.history``, such as the result of ``rnla.svd``, of a solver, or of
        ``rnla.trace`` (of whose rounds the standard errors are drawn); a sequence of records ``(iteration, error,
        seconds)``, as a callback collects them; or of plain errors.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure is made if missing.
    tol : float, optional
        Tolerance, drawn as a dashed line.
    against : {"iteration", "seconds"}
        What the horizontal axis shows; seconds need records.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on; what was drawn is its last line. Errors that are zero or not finite are left out.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there is no history, as after a direct method, or `against` is neither name.

    Examples
    --------
    >>> import rnla.plotting
    >>> from matplotlib.figure import Figure
    >>> ax = rnla.plotting.convergence([1.0, 0.1, 0.001], Figure().subplots(), tol=0.01)
    >>> ax.get_lines()[-1].get_xydata().tolist()
    [[1.0, 1.0], [2.0, 0.1], [3.0, 0.001]]
    """
    caller = "rnla.plotting.convergence"
    if against not in ("iteration", "seconds"):
        raise ValueError(f"{caller}: against must be one of 'iteration', 'seconds'; got {against!r}.")
    info = _attribute(result_or_history, ("info", "info_"))
    history = _records(getattr(info, "history", info))
    if not history:
        raise ValueError(f"{caller}: result_or_history must hold at least one iteration; it was a direct method.")
    if hasattr(history[0], "error"):
        errors = np.array([float(record.error) for record in history])
        places = np.array([float(getattr(record, against)) for record in history])
    elif against == "seconds":
        raise ValueError(f"{caller}: against='seconds' needs records (iteration, error, seconds); got plain errors.")
    else:
        errors = np.array([float(error[-1] if isinstance(error, tuple) else error) for error in history])
        places = np.arange(1.0, errors.size + 1)
    ax = _axes(ax, caller)
    if tol is not None:
        ax.axhline(tol, color="0.5", linestyle="--", linewidth=1)
    shown = np.isfinite(errors)
    return _decay(ax, places[shown], errors[shown], against, "error")


def background_sheet(frames, result, shape, ax=None, *, show=None):
    """Draw some frames of a video beside the background and the outliers that robust PCA found.

    Parameters
    ----------
    frames : array or dataset, shape (height * width, n_frames)
        The matrix that was decomposed: its columns are the frames.
    result : RobustPCAResult
        What `rnla.robust_pca` returned.
    shape : (int, int)
        ``(height, width)`` of a frame.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure is made if missing.
    show : sequence of int, optional
        Numbers of the frames, one for each row of the picture; the first and the middle one by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on: frame, background, and twice the modulus of the outliers, from left to right.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If shapes do not match, or there is no such frame.

    Examples
    --------
    >>> import rnla.plotting
    >>> from matplotlib.figure import Figure
    >>> video = rnla.datasets.moving_rectangles(40, 48, 64, n_rectangles=2, rng=0)
    >>> A = video.frames.reshape(40, -1).T
    >>> ax = rnla.plotting.background_sheet(A, rnla.robust_pca(A, 2, rng=0), (48, 64), Figure().subplots())
    >>> ax.get_images()[0].get_array().shape
    (98, 196)
    """
    caller = "rnla.plotting.background_sheet"
    sheet = video_sheet(frames, result, shape, show, caller)
    ax = _axes(ax, caller)
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_xticks([(j + 0.5) * sheet.shape[1] / 3 for j in range(3)], ["frame", "background", "outliers"])
    ax.set_yticks([])
    ax.tick_params(length=0)
    return ax


def outlier_map(result, A, ax=None):
    """Draw where the outliers of a matrix are, and mark rows and columns that are not explained.

    Parameters
    ----------
    result : RobustPCAResult
        What `rnla.robust_pca` returned.
    A : array, dask array, memory map or dataset, shape (m, n)
        The matrix that was decomposed; read once.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure is made if missing.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on: darker where more entries are outliers. Its first line marks the rows that are not
        explained, at the left edge, its second one the columns, at the upper edge.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If `A` has another shape than the result.

    Examples
    --------
    >>> import rnla.plotting
    >>> from matplotlib.figure import Figure
    >>> problem = rnla.datasets.robust_pca_problem(100, 80, 2, outliers=0.1, rng=0)
    >>> result = rnla.robust_pca(problem.A, 2, rng=0)
    >>> ax = rnla.plotting.outlier_map(result, problem.A, Figure().subplots())
    >>> bool((ax.get_images()[0].get_array() == problem.outliers).all())
    True
    """
    caller = "rnla.plotting.outlier_map"
    m, n = result.shape
    cells = [min(side, MAP_CELLS) for side in (m, n)]
    counts = np.zeros(cells)
    for rows, part in result.outlier_blocks(A):
        part = (part.get() if hasattr(part, "get") else part).tocoo()
        where = (part.row + rows.start) * cells[0] // m, part.col.astype(np.int64) * cells[1] // n
        np.add.at(counts, where, 1)
    for axis, side in enumerate((m, n)):  # cells differ in size by one row or column
        sizes = np.bincount(np.arange(side) * cells[axis] // side)
        counts /= sizes[:, None] if axis == 0 else sizes[None, :]
    ax = _axes(ax, caller)
    ax.imshow(counts, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=(0, n, m, 0))
    rows, cols = np.asarray(result.unresolved_rows), np.asarray(result.unresolved_cols)
    marks = {"linestyle": "none", "color": "tab:red", "clip_on": False, "markersize": 5}
    ax.plot(np.zeros(rows.size), rows + 0.5, marker=">", label="not explained", **marks)
    ax.plot(cols + 0.5, np.zeros(cols.size), marker="v", **marks)
    ax.set_xlabel("column")
    ax.set_ylabel("row")
    return ax


def phase_diagram(successes, x, y, ax=None, *, xlabel="", ylabel=""):
    """Draw how often problems of some difficulty were solved, as a map of grey levels.

    Parameters
    ----------
    successes : array, shape (len(y), len(x))
        Share of the problems that were solved, in [0, 1]: white is none, black all.
    x, y : sequence
        What the columns and the rows stand for: numbers or names.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure is made if missing.
    xlabel, ylabel : str
        Names of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the shapes do not fit, or a share is outside [0, 1].

    Examples
    --------
    >>> import rnla.plotting
    >>> from matplotlib.figure import Figure
    >>> ax = rnla.plotting.phase_diagram([[0.0, 0.5], [0.5, 1.0]], [2, 3], [10, 20], Figure().subplots())
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['2', '3']
    """
    caller = "rnla.plotting.phase_diagram"
    shares = np.asarray(successes, dtype=float)
    if shares.shape != (len(y), len(x)):
        raise ValueError(f"{caller}: successes must have shape {(len(y), len(x))}; got {shares.shape}.")
    if not np.all((shares >= 0) & (shares <= 1)):
        raise ValueError(f"{caller}: successes must be shares in [0, 1]; got {shares.min()} to {shares.max()}.")
    ax = _axes(ax, caller)
    ax.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="lower")
    for (i, j), share in np.ndenumerate(shares):
        ax.text(j, i, f"{share:.0%}", ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "black")
    ax.set_xticks(range(len(x)), [str(value) for value in x])
    ax.set_yticks(range(len(y)), [str(value) for value in y])
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return ax


def _records(history):
    """Return a list of records; a history that is kept as arrays has one array for each of their parts."""
    if not hasattr(history, "relative_change"):
        return list(history)
    both = enumerate(zip(history.relative_change, history.seconds, strict=True), start=1)
    return [Record(iteration, float(change), float(seconds)) for iteration, (change, seconds) in both]


def _singular_values(found, caller):
    S = _attribute(found, ("S", "singular_values", "singular_values_", "eigenvalues"))
    return np.abs(_vector(S, "result_or_S", "singular values", caller))


def _attribute(found, names):
    """Return the first of the attributes that `found` has, or itself."""
    for name in names:
        if hasattr(found, name):
            return getattr(found, name)
    return found


def _vector(values, name, what, caller):
    shape = tuple(values.shape) if hasattr(values, "shape") else np.shape(values)
    if len(shape) != 1:
        raise ValueError(f"{caller}: {name} must hold {what} of shape (k,); got {shape}.")
    return np.array([float(values[i]) for i in range(shape[0])])  # the one way from any library and device to the host


def _axes(ax, caller):
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"{caller}: plots need matplotlib: pip install 'rnla[viz]'") from error
    return pyplot.subplots(layout="constrained")[1]


def _decay(ax, places, values, xlabel, ylabel):
    """Draw positive values on a logarithmic scale."""
    ax.plot(places[values > 0], values[values > 0], marker="o", markersize=3, linewidth=1)
    ax.set_yscale("log")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return ax
