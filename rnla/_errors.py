"""Warnings and errors that rnla raises beyond ``ValueError`` and ``TypeError``."""

from numpy.linalg import LinAlgError


class ConvergenceWarning(UserWarning):
    """An iteration ended before it met its tolerance; the result so far is returned.

    Examples
    --------
    >>> import warnings
    >>> warnings.simplefilter("error", rnla.ConvergenceWarning)  # to make it an error instead
    """


class AccuracyWarning(UserWarning):
    """A result is less accurate than was asked for, because of rounding or of too few passes over the data.

    Examples
    --------
    >>> issubclass(rnla.AccuracyWarning, UserWarning)
    True
    """


class NotPositiveDefiniteError(LinAlgError):
    """A matrix that must be positive definite is not.

    Attributes
    ----------
    gap : float or None
        Smallest eigenvalue of the matrix relative to the one it came from, where that is known: not positive.

    Examples
    --------
    >>> issubclass(rnla.NotPositiveDefiniteError, np.linalg.LinAlgError)
    True
    """

    def __init__(self, *args, gap=None):
        super().__init__(*args)
        self.gap = gap
