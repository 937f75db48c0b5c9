"""Patches of signals and images: the inputs of a convolution seen as a linear layer used at every output position."""

import numbers

import numpy as np
from array_api_compat import array_namespace, device

from rnla._rangefinder import check_choice
from rnla.optim._checks import at_least_single, real_arrays
from rnla.optim._factors import APPROX
from rnla.optim._symmetric import symmetrised

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
PATCH_BYTES = 2**28


def unfold2d(x, kernel_size, *, stride=1, padding=0, dilation=1, padding_mode="zeros"):
    """Take the patches of images that a convolution multiplies by its weights.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Images.
    kernel_size : int or (int, int)
        Rows and columns of the kernel.
    stride : int or (int, int)
        Step between patches.
    padding : int, (int, int), "same" or "valid"
        Pixels added on each side.
    dilation : int or (int, int)
        Step between the pixels of a patch.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What they hold.

    Returns
    -------
    array, shape (N, T, C * kh * kw)
        T output positions, row by row; columns ordered by channel, kernel row, kernel column, as the weights of a
        convolution are.

    Raises
    ------
    ValueError
        If the images are smaller than the kernel, or an argument is not one of the above.

    Notes
    -----
    ``kh * kw`` copies of strided views.

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> rnla.optim.unfold2d(x, 2)[0].tolist()
    [[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0], [3.0, 4.0, 6.0, 7.0], [4.0, 5.0, 7.0, 8.0]]
    """
    caller = "rnla.optim.unfold2d"
    xp = real_arrays(caller, x=x)
    if x.ndim != 4:
        raise ValueError(f"{caller}: x must have shape (N, C, H, W); got {tuple(x.shape)}.")
    kernel, stride, dilation = (
        _pair(value, name, caller)
        for value, name in ((kernel_size, "kernel_size"), (stride, "stride"), (dilation, "dilation"))
    )
    x = _padded(x, kernel, stride, dilation, padding, padding_mode, caller)
    N, C = x.shape[:2]
    out = [(x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    if min(out) < 1:
        raise ValueError(
            f"{caller}: x must be at least as large as the kernel, after padding; got {tuple(x.shape[2:])} for a "
            f"kernel of {kernel} and dilation {dilation}."
        )
    views = [
        x[:, :, _every(i * dilation[0], stride[0], out[0]), _every(j * dilation[1], stride[1], out[1])]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    patches = xp.permute_dims(xp.stack(views, axis=2), (0, 3, 4, 1, 2))  # (N, H', W', C, kh * kw)
    return xp.reshape(patches, (N, out[0] * out[1], C * len(views)))


def unfold1d(x, kernel_size, *, stride=1, padding=0, dilation=1, padding_mode="zeros"):
    """Take the patches of signals that a convolution multiplies by its weights.

    Parameters
    ----------
    x : array, shape (N, C, L)
        Signals.
    kernel_size, stride : int
        Entries of the kernel, and step between patches.
    padding : int, "same" or "valid"
        Entries added on each side.
    dilation : int
        Step between the entries of a patch.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What they hold.

    Returns
    -------
    array, shape (N, T, C * k)
        T output positions; columns ordered by channel, kernel entry.

    Raises
    ------
    ValueError
        If the signals are shorter than the kernel, or an argument is not one of the above.

    Examples
    --------
    >>> rnla.optim.unfold1d(np.arange(4.0).reshape(1, 1, 4), 3)[0].tolist()
    [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]
    """
    caller = "rnla.optim.unfold1d"
    xp = real_arrays(caller, x=x)
    if x.ndim != 3:
        raise ValueError(f"{caller}: x must have shape (N, C, L); got {tuple(x.shape)}.")
    single = [value if isinstance(value, numbers.Integral) else value[0] for value in (kernel_size, stride, dilation)]
    if not isinstance(padding, str):
        padding = (0, padding if isinstance(padding, numbers.Integral) else padding[0])
    return unfold2d(
        xp.expand_dims(x, axis=2), (1, single[0]), stride=(1, single[1]), padding=padding, dilation=(1, single[2]),
        padding_mode=padding_mode,
    )  # fmt: skip


def conv_input_factor(x, kernel_size, *, stride=1, padding=0, dilation=1, padding_mode="zeros", groups=1, bias=False,
                      approx="expand", patch_bytes=None):  # fmt: skip
    """Compute the input factors of a convolution from its images, a few at a time.

    Parameters
    ----------
    x : array, shape (N, C, H, W) or (N, C, L)
        Inputs of the layer.
    kernel_size, stride, padding, dilation, padding_mode : int, tuple or str
        As for `unfold2d`, or `unfold1d` for signals.
    groups : int
        Groups of channels, each a layer of its own.
    bias : bool
        Whether the layer has a bias; its 1 comes last.
    approx : {"expand", "reduce"}
        As for `input_factor`.
    patch_bytes : int, optional
        The most memory that patches take at a time, 256 MiB by default, though at least those of one image.

    Returns
    -------
    list of array, shape (p, p)
        One factor for each group, ``p = C / groups * kernel entries + bias``.

    Raises
    ------
    ValueError
        If an argument is not one of the above, or `groups` does not divide the channels.

    Notes
    -----
    ``N T p**2`` multiplications for T output positions.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((4, 2, 6, 6))
    >>> (A,) = rnla.optim.conv_input_factor(x, 3)
    >>> np.allclose(A, rnla.optim.input_factor(rnla.optim.unfold2d(x, 3)))
    True
    """
    caller = "rnla.optim.conv_input_factor"
    xp = real_arrays(caller, x=x)
    check_choice(approx, "approx", APPROX, caller)
    if x.ndim not in (3, 4):
        raise ValueError(f"{caller}: x must have shape (N, C, H, W) or (N, C, L); got {tuple(x.shape)}.")
    N, C = x.shape[:2]
    if groups < 1 or C % groups:
        raise ValueError(f"{caller}: groups must divide the {C} channels; got {groups}.")
    unfold = unfold2d if x.ndim == 4 else unfold1d
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    step, start, sums = 1, 0, [0.0] * groups
    while start < N:
        # The first image alone tells how many of them fit.
        patches = at_least_single(unfold(x[start : start + step, ...], kernel_size, **options))
        per_image = patches.shape[1] * patches.shape[2] * xp.finfo(patches.dtype).bits // 8
        rows = xp.mean(patches, axis=1) if approx == "reduce" else xp.reshape(patches, (-1, patches.shape[2]))
        width = rows.shape[1] // groups
        for i in range(groups):
            part = rows[:, i * width : (i + 1) * width]
            if bias:
                part = xp.concat([part, xp.ones((part.shape[0], 1), dtype=part.dtype, device=device(part))], axis=1)
            sums[i] = sums[i] + part.T @ part
        start += step
        step = max((patch_bytes or PATCH_BYTES) // per_image, 1)
    count = N if approx == "reduce" else N * patches.shape[1]
    return [symmetrised(total) / count for total in sums]


def _pair(value, name, caller):
    pair = (value, value) if isinstance(value, numbers.Integral) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{caller}: {name} must be a positive int or two; got {value!r}.")
    return pair


def _every(start, step, count):
    return slice(start, start + step * (count - 1) + 1, step)


def _padded(x, kernel, stride, dilation, padding, mode, caller):
    """Return the images with the pixels added."""
    check_choice(mode, "padding_mode", PADDING_MODES, caller)
    if isinstance(padding, str):
        check_choice(padding, "padding", ("same", "valid"), caller)
        if padding == "same" and max(stride) > 1:
            raise ValueError(f"{caller}: padding must be a number where stride is above 1; got 'same'.")
        total = [dilation[i] * (kernel[i] - 1) if padding == "same" else 0 for i in range(2)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        pair = (padding, padding) if isinstance(padding, numbers.Integral) else tuple(padding)
        if len(pair) != 2 or min(pair) < 0:
            raise ValueError(f"{caller}: padding must be an int, two, 'same' or 'valid'; got {padding!r}.")
        sides = [(p, p) for p in pair]
    for axis, (before, after) in zip((2, 3), sides, strict=True):
        if before or after:
            x = _pad_axis(x, axis, before, after, mode)
    return x


def _pad_axis(x, axis, before, after, mode):
    xp, n = array_namespace(x), x.shape[axis]
    if mode == "zeros":
        shapes = [tuple(count if i == axis else s for i, s in enumerate(x.shape)) for count in (before, after)]
        first, last = (xp.zeros(shape, dtype=x.dtype, device=device(x)) for shape in shapes)
        return xp.concat([first, x, last], axis=axis)
    index = np.arange(-before, n + after)
    if mode == "replicate":
        index = np.clip(index, 0, n - 1)
    elif mode == "circular":
        index = index % n
    else:
        index = np.abs(index)
        index = np.where(index >= n, 2 * (n - 1) - index, index)
    return xp.take(x, xp.asarray(index, device=device(x)), axis=axis)
