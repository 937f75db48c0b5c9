"""Some frames of a video beside the background and the outliers that robust PCA found: one grey picture."""

import numpy as np

from rnla._backend import to_host

GAP = 2  # white pixels between pictures
GAIN = 2.0  # outliers are drawn brighter by this factor


def video_sheet(A, result, shape, frames=None, caller="rnla.video_sheet"):
    """Return a picture of ``frame | background | 2 |outliers|``, a row for each frame.

    Parameters
    ----------
    A : array or dataset, shape (height * width, n_frames)
        The matrix that was decomposed, a column for each frame.
    result : RobustPCAResult
        Its decomposition.
    shape : (int, int)
        ``(height, width)`` of a frame.
    frames : sequence of int, optional
        Which; the first and the middle one by default.
    caller : str
        Public function named in errors.

    Returns
    -------
    ndarray of uint8
        Values of 0..255 are grey levels; other data are scaled so that these frames go from black to white.
    """
    height, width = shape
    if tuple(A.shape) != tuple(result.shape) or height * width != A.shape[0]:
        raise ValueError(
            f"{caller}: frames must have the shape {result.shape} of the result, and height * width rows; got shape "
            f"{tuple(A.shape)} and frames of {height} x {width}."
        )
    n_frames = A.shape[1]
    if frames is None:
        frames = sorted({0, n_frames // 2})
    frames = [int(t) for t in frames]
    if not frames or not all(0 <= t < n_frames for t in frames):
        raise ValueError(f"{caller}: the frames to show must be numbers in 0..{n_frames - 1}; got {frames}.")
    z_row, z_col = (to_host(z) for z in result.threshold)
    images = np.stack([to_host(A[:, t]) for t in frames])
    backgrounds = to_host(result.low_rank(None, frames)).T
    residuals = np.abs(images - backgrounds)
    outliers = np.where(residuals > np.maximum(z_row, z_col[frames][:, None]), residuals, 0.0)

    seen = images[np.isfinite(images)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)
    if low >= 0 and 1 < high <= 255:
        low, high = 0.0, 255.0
    scale = 255 / (high - low) if high > low else 1.0
    sheet = np.full((len(frames) * (height + GAP) - GAP, 3 * (width + GAP) - GAP), 255, np.uint8)
    for i in range(len(frames)):
        parts = (scale * (images[i] - low), scale * (backgrounds[i] - low), GAIN * scale * outliers[i])
        for j, part in enumerate(parts):
            top, left = i * (height + GAP), j * (width + GAP)
            grey = np.clip(np.rint(np.nan_to_num(part, nan=0.0)), 0, 255)
            sheet[top : top + height, left : left + width] = grey.reshape(height, width)
    return sheet
