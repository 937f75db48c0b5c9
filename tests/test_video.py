"""The made-up video is what it says, its sheet shows it, and the PNG file is one that others read."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import rnla
from rnla._png import write_png
from rnla._video_sheet import GAP, video_sheet


@given(
    n_frames=st.integers(1, 12),
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    n_rectangles=st.integers(0, 4),
    noise=st.sampled_from([0.0, 2.0]),
    brightening=st.sampled_from([0.0, 0.03, -0.05]),
    seed=st.integers(0, 2**32 - 1),
)
def test_video_is_background_and_rectangles_and_noise(n_frames, height, width, n_rectangles, noise, brightening, seed):
    options = {"n_rectangles": n_rectangles, "noise": noise, "brightening": brightening}
    video = rnla.datasets.moving_rectangles(n_frames, height, width, rng=seed, **options)
    assert {x.shape for x in video} == {(n_frames, height, width)}
    assert (video.frames.dtype, video.background.dtype, video.foreground.dtype) == (np.float32, np.float32, bool)
    assert (video.frames == np.rint(video.frames)).all()
    assert 0 <= video.frames.min() <= video.frames.max() <= 255
    # Rounding, and noise of which 7 deviations are exceeded with probability 3e-12 for each of 2e4 pixels.
    difference = np.abs(video.frames - video.background)
    assert (difference[~video.foreground] <= 0.5 + 7 * noise).all()
    assert (difference[video.foreground] >= 39 - 7 * noise).all()
    S = np.linalg.svd(video.background.reshape(n_frames, -1), compute_uv=False)
    assert (S[1:] <= 100 * np.finfo(np.float32).eps * S[0]).all()
    again = rnla.datasets.moving_rectangles(n_frames, height, width, rng=seed, **options)
    assert all((x == y).all() for x, y in zip(video, again, strict=True))


def test_rectangles_move_and_cover_little():
    video = rnla.datasets.moving_rectangles(rng=0)
    assert 0.005 < video.foreground.mean() < 0.05
    moved = (video.foreground[1:] != video.foreground[:-1]).any(axis=(1, 2))
    assert moved.all()
    assert video.foreground.mean(axis=0).max() < 0.5  # no pixel is covered for long


def test_the_background_is_recovered():
    video = rnla.datasets.moving_rectangles(60, 60, 80, n_rectangles=3, rng=1)
    A = np.ascontiguousarray(video.frames.reshape(60, -1).T)
    result = rnla.robust_pca(A, 1, polish=1, rng=0)
    background = video.background.reshape(60, -1).T
    # An oracle's error is 2 * (1 / 60 + 1 / 4800)**0.5 = 0.26, as each pixel has 60 noisy values for one coefficient;
    # bounds that come from as few values leave some of the noise out.
    assert np.sqrt(np.mean((result.low_rank() - background) ** 2)) < 2 * 0.26
    found = result.sparse(A, threshold=20.0).toarray() != 0
    assert (found == video.foreground.reshape(60, -1).T).mean() > 0.9999


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_frames": 0}, ValueError, "n_frames must be at least 1"),
        ({"height": 3}, ValueError, "height must be at least 4"),
        ({"width": 10.0}, TypeError, "width must be an integer"),
        ({"n_rectangles": -1}, ValueError, "n_rectangles must be at least 0"),
        ({"noise": -1.0}, ValueError, "noise must be a finite number >= 0"),
        ({"brightening": 1.0}, ValueError, "brightening must be between -1 and 1"),
    ],
)
def test_what_the_generator_refuses(options, error, message):
    with pytest.raises(error, match=rf"^rnla\.datasets\.moving_rectangles: {message}"):
        rnla.datasets.moving_rectangles(**options)


# ---- the sheet


@pytest.fixture(scope="module")
def still():
    """Return a video whose background is one number, with one bright pixel in frame 1."""
    A = np.full((6, 4), 100.0)
    A[5, 1] = 160.0
    result = rnla.RobustPCAResult(
        np.full((6, 1), 6**-0.5), np.array([100 * 24**0.5]), np.full((1, 4), 0.5), True, 1, (), "", "converged",
        (np.ones(6), np.ones(4)), 1.0, 1.0, np.arange(0), np.arange(0), [],
    )  # fmt: skip
    return A, result


def test_sheet_shows_frame_background_and_outliers(still):
    A, result = still
    sheet = video_sheet(A, result, (2, 3), [1])
    assert sheet.shape == (2, 3 * 3 + 2 * GAP)
    frame, background, outliers = (sheet[:, j * (3 + GAP) : j * (3 + GAP) + 3] for j in range(3))
    assert frame.tolist() == [[100, 100, 100], [100, 100, 160]]
    assert background.tolist() == [[100] * 3] * 2
    assert outliers.tolist() == [[0, 0, 0], [0, 0, 120]]
    assert (sheet[:, 3:5] == 255).all()
    assert video_sheet(A, result, (2, 3)).shape == (2 * 2 + GAP, 13)


def test_sheet_scales_other_data(still):
    A, result = still
    sheet = video_sheet(A * 1000, result, (2, 3), [1])
    assert (sheet[:, :3].min(), sheet[:, :3].max()) == (0, 255)


@pytest.mark.parametrize("frames", [[4], [-1], []])
def test_sheet_refuses_frames_that_are_not_there(still, frames):
    with pytest.raises(ValueError, match=r"frames to show must be numbers in 0\.\.3"):
        video_sheet(*still, (2, 3), frames)


def test_sheet_refuses_other_shapes(still):
    with pytest.raises(ValueError, match="frames of 2 x 4"):
        video_sheet(*still, (2, 4))


# ---- the PNG file


@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_png_is_read_back_bit_for_bit(height, width, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    file = io.BytesIO()
    write_png(file, picture)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        image.verify()
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_png_has_the_chunks_of_the_standard():
    file = io.BytesIO()
    write_png(file, np.zeros((2, 3), np.uint8))
    content = file.getvalue()
    assert content[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    assert content[8:33] == bytes.fromhex("0000000d 49484452 00000003 00000002 08 00 00 00 00") + zlib.crc32(
        content[12:29]
    ).to_bytes(4, "big")
    assert content[-12:] == bytes.fromhex("00000000 49454e44 ae426082")


def test_what_png_refuses():
    with pytest.raises(TypeError, match="picture must be of uint8; got float64"):
        write_png(io.BytesIO(), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="not empty"):
        write_png(io.BytesIO(), np.zeros((0, 2), np.uint8))
