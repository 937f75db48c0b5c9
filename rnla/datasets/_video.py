"""A video whose background and moving objects are known."""

from typing import NamedTuple

import numpy as np

from rnla._backend import check_rng

PERIOD = 75  # frames in which the light brightens and fades once
CONTRASTS = (-60.0, -40.0, 40.0, 60.0)  # of rectangles against the background, in grey levels
DARKEST, BRIGHTEST = 75.0, 180.0  # of the background, so that contrasts seldom leave the 256 grey levels
HEIGHTS, WIDTHS = (8, 16), (6, 12)  # of rectangles, in pixels


class MovingRectangles(NamedTuple):
    """A video, and what it is made of.

    Examples
    --------
    >>> video = rnla.datasets.moving_rectangles(20, 40, 60, noise=0, brightening=0, rng=0)
    >>> still = ~video.foreground
    >>> bool((np.abs(video.frames - video.background)[still] <= 0.5).all())  # grey levels are whole numbers
    True
    """

    frames: np.ndarray  # (n_frames, height, width), float32, whole numbers in 0..255
    background: np.ndarray  # the same shape, float32: what is behind the rectangles, without noise
    foreground: np.ndarray  # the same shape, bool: where a rectangle is


def moving_rectangles(n_frames=150, height=152, width=232, *, n_rectangles=8, brightening=0.03, noise=2.0, rng=None):
    """Draw a video of rectangles that move in front of a textured background.

    The background is one picture times a number for each frame: as a matrix with a column for each frame it has rank
    one. Rectangles of 8-16 x 6-12 pixels cover it, 40 or 60 grey levels brighter or darker, at 1 to 3 pixels a frame;
    those that leave come back on the other side. Frames have Gaussian noise and are rounded to the grey levels 0..255.

    Parameters
    ----------
    n_frames, height, width : int
        Shape of the video.
    n_rectangles : int
        How many move at the same time.
    brightening : float
        The light is ``1 + brightening * sin(2 pi t / 75)`` in frame t; 0 for a background that does not change.
    noise : float
        Standard deviation of the noise, in grey levels.
    rng : None, int or numpy.random.Generator
        Source of randomness.

    Returns
    -------
    MovingRectangles
        ``frames, background, foreground``.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> video = rnla.datasets.moving_rectangles(30, 60, 80, rng=0)
    >>> A = video.frames.reshape(30, -1).T  # a column for each frame
    >>> A.shape, A.dtype, int(np.linalg.matrix_rank(video.background.reshape(30, -1), rtol=1e-5))
    ((4800, 30), dtype('float32'), 1)
    """
    caller = "rnla.datasets.moving_rectangles"
    sizes = {"n_frames": (n_frames, 1), "height": (height, 4), "width": (width, 4), "n_rectangles": (n_rectangles, 0)}
    for name, (value, least) in sizes.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{caller}: {name} must be an integer; got {type(value).__name__} {value!r}.")
        if value < least:
            raise ValueError(f"{caller}: {name} must be at least {least}; got {value}.")
    if not 0 <= noise < np.inf:
        raise ValueError(f"{caller}: noise must be a finite number >= 0; got {noise}.")
    if not 0 <= abs(brightening) < 1:
        raise ValueError(f"{caller}: brightening must be between -1 and 1; got {brightening}.")
    check_rng(rng, caller)
    random = np.random.default_rng(rng)
    light = 1 + brightening * np.sin(2 * np.pi * np.arange(n_frames) / PERIOD)
    background = (light[:, None, None] * _texture(height, width, random)).astype(np.float32)
    frames = background.copy()
    foreground = np.zeros(frames.shape, bool)
    for _ in range(n_rectangles):
        _draw_rectangle(frames, background, foreground, random)
    frames += np.float32(noise) * random.standard_normal(frames.shape, np.float32)
    return MovingRectangles(np.clip(np.rint(frames), 0, 255), background, foreground)


def _texture(height, width, random):
    """Return a picture with structure at every scale: noise whose spectrum falls like 1/f, as that of photographs."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    picture = np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) / frequency, s=(height, width))
    low, high = picture.min(), picture.max()
    return DARKEST + (BRIGHTEST - DARKEST) * (picture - low) / (high - low)


def _draw_rectangle(frames, background, foreground, random):
    """Let one rectangle move through the video, in front of those that were drawn before."""
    n_frames, *sides = frames.shape
    size = [int(random.integers(low, high + 1)) for low, high in (HEIGHTS, WIDTHS)]
    size = [min(length, side // 2) for length, side in zip(size, sides, strict=True)]
    contrast = random.choice(CONTRASTS)
    speed, angle = random.uniform(1, 3), random.uniform(0, 2 * np.pi)
    start = [random.uniform(0, side) for side in sides]
    step = speed * np.sin(angle), speed * np.cos(angle)
    for t in range(n_frames):
        # Wholly outside for a moment between leaving on one side and coming back on the other.
        corner = [int((start[i] + t * step[i]) % (sides[i] + size[i])) - size[i] for i in range(2)]
        area = (t, *(slice(max(corner[i], 0), max(corner[i] + size[i], 0)) for i in range(2)))
        frames[area] = background[area] + contrast
        foreground[area] = True
