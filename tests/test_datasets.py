import gzip
import json
import os
import pickle
import sys

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import io, sparse

import rnla
from rnla.datasets import _files

SEEDS = st.integers(0, 2**32 - 1)


class TouchesFile:
    """Would leave a trace if anybody unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# ---- generators


@given(st.integers(2, 400), st.integers(2, 300), st.floats(0.01, 0.5), SEEDS)
def test_document_term_has_about_nnz_entries_in_canonical_form(m, n, density, seed):
    nnz = max(1, int(density * m * n))
    A = rnla.datasets.document_term(m, n, nnz, rng=seed)
    # A sum of independent indicators with mean nnz: Bernstein gives 2 * exp(-t**2 / (2 * (nnz + t / 3))) <= 6e-9.
    assert abs(A.nnz - nnz) <= 7 * np.sqrt(nnz) + 15
    assert A.shape == (m, n)
    assert A.format == "csr"
    assert A.has_canonical_format
    A.check_format(full_check=True)
    assert (A.data >= 1).all()


def test_document_term_follows_zipf():
    A = rnla.datasets.document_term(4000, 500, 60_000, rng=3)
    words = np.sort(np.bincount(A.indices, weights=np.exp(A.data - 1)))[::-1]  # an entry is 1 + log(count)
    # The j-th most frequent term is drawn about words[0] / j times.
    for j in (2, 5, 20):
        expected = words.sum() / (np.sum(1 / np.arange(1, 501)) * j)
        assert abs(words[j - 1] - expected) < 6 * np.sqrt(expected)


def test_document_term_keeps_the_dtype_and_the_pattern():
    A = rnla.datasets.document_term(200, 100, 2000, rng=0, dtype=np.float32)
    B = rnla.datasets.document_term(200, 100, 2000, rng=0)
    assert A.dtype == np.float32
    assert (A.indices == B.indices).all()


@given(st.integers(4, 200), st.floats(0, 1), st.floats(2.05, 4), SEEDS)
def test_power_law_graph_is_a_simple_graph_with_the_stated_number_of_edges(n, share, exponent, seed):
    n_edges = max(1, int(share * (n * (n - 1) // 8)))
    A = rnla.datasets.power_law_graph(n, n_edges, exponent=exponent, rng=seed)
    assert A.shape == (n, n)
    assert A.nnz == 2 * n_edges
    assert (A.data == 1).all()
    assert (A != A.T).nnz == 0
    assert A.diagonal().sum() == 0


def test_power_law_graph_has_larger_hubs_for_smaller_exponents():
    hubs = [rnla.datasets.power_law_graph(2000, 8000, exponent=e, rng=0).sum(axis=0).max() for e in (2.2, 2.6, 3.5)]
    assert hubs[0] > 1.5 * hubs[1] > 2 * hubs[2]


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rnla.datasets.document_term(50, 40, 500, rng=rng).toarray(),
        lambda rng: rnla.datasets.power_law_graph(50, 100, rng=rng).toarray(),
    ],
)
def test_generators_repeat_for_a_seed_and_not_for_another(draw):
    np.testing.assert_array_equal(draw(7), draw(7))
    assert (draw(7) != draw(8)).any()
    generator = np.random.default_rng(0)
    assert (draw(generator) != draw(generator)).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.document_term(10, 10, 51), r"document_term: nnz must be an integer in 1\.\.50; got 51"),
        (lambda d: d.document_term(10, 2.5, 5), r"document_term: n must be an integer >= 1; got 2\.5"),
        (lambda d: d.document_term(10, 10, 5, dtype=int), r"document_term: dtype must be real floating; got int64"),
        (lambda d: d.power_law_graph(9, 10), r"power_law_graph: n_edges must be an integer in 1\.\.9; got 10"),
        (lambda d: d.power_law_graph(9, 5, exponent=2), r"power_law_graph: exponent must .* > 2; got 2"),
        (lambda d: d.power_law_graph(9, 5, rng=-1), r"power_law_graph: rng .* got -1"),
    ],
)
def test_generators_name_the_bad_argument(call, message):
    with pytest.raises(ValueError, match=r"^rnla\.datasets\." + message):
        call(rnla.datasets)


# ---- data that ships


def test_photograph_is_a_photograph():
    image = rnla.datasets.load_photograph()
    assert image.shape == (1411, 1411)
    assert image.dtype == np.uint8
    smooth = image.astype(float)
    # Neighbouring pixels of a photograph are alike; one wrong sum in the decoding would tear a row or a column.
    for axis in (0, 1):
        steps = np.abs(np.diff(smooth, axis=axis)).mean(axis=1 - axis)
        assert steps.max() < smooth.std() / 4
    assert (smooth[:50, :50] < 10).all()  # the black corner around the round picture


def test_road_network_is_a_connected_planar_sized_graph_on_the_map_of_minnesota():
    adjacency, xy = rnla.datasets.load_road_network()
    assert adjacency.shape == (2642, 2642)
    assert adjacency.nnz == 2 * 3304
    assert (adjacency.data == 1).all()
    assert (adjacency != adjacency.T).nnz == 0
    assert sparse.csgraph.connected_components(adjacency)[0] == 1
    assert xy.shape == (2642, 2)
    assert (xy.min(axis=0) > [-97.5, 43]).all()
    assert (xy.max(axis=0) < [-89, 49.5]).all()


def test_origin_and_licence_ship_with_the_data():
    from importlib import resources

    data = resources.files("rnla.datasets") / "data"
    readme = (data / "README.md").read_text(encoding="utf-8")
    for path in data.iterdir():
        assert path.name == "README.md" or path.name in readme
    assert "EPFL LTS2" in (data / "LICENSE-PyGSP.txt").read_text(encoding="utf-8")


# ---- files


@pytest.fixture
def A():
    return np.round(np.random.default_rng(0).standard_normal((30, 20)), 3) * (np.arange(20) % 3 > 0)


def write(folder, name, A):
    """Write `A` to a file of the kind that the name says; sparse kinds where the name says so."""
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, A)
    elif name == "sparse.npz":
        sparse.save_npz(path, sparse.csc_array(A))
    elif name.endswith(".npz"):
        np.savez(path, A=A)
    elif name == "dense.mtx":
        io.mmwrite(path, A)
    elif name.endswith(".mtx"):
        io.mmwrite(path, sparse.coo_array(A))
    elif name.endswith(".mtx.gz"):
        io.mmwrite(folder / "A.mtx", sparse.coo_array(A))
        path.write_bytes(gzip.compress((folder / "A.mtx").read_bytes()))
    elif name.endswith(".zarr"):
        zarr.create_array(path, data=A, chunks=(10, 20))
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("A", data=A, chunks=(10, 20), compression="gzip")
    return path


KINDS = ["A.npy", "A.npz", "sparse.npz", "A.mtx", "dense.mtx", "A.mtx.gz", "A.h5", "A.hdf5", "A.zarr"]


@pytest.mark.parametrize("name", KINDS)
def test_load_matrix_returns_what_was_written(tmp_path, name, A):
    loaded = rnla.datasets.load_matrix(write(tmp_path, name, A))
    assert loaded.shape == A.shape
    dense = loaded.toarray() if sparse.issparse(loaded) else loaded[...]
    np.testing.assert_array_equal(dense, A)


@pytest.mark.parametrize("name", ["sparse.npz", "A.mtx", "A.mtx.gz"])
def test_sparse_files_stay_sparse(tmp_path, name, A):
    assert sparse.issparse(rnla.datasets.load_matrix(write(tmp_path, name, A)))


def test_large_npy_is_mapped_and_a_small_one_is_read(tmp_path, A, monkeypatch):
    path = write(tmp_path, "A.npy", A)
    assert type(rnla.datasets.load_matrix(path)) is np.ndarray
    assert type(rnla.datasets.load_matrix(path, map_from=A.nbytes)) is np.memmap
    assert type(rnla.datasets.load_matrix(path, map_from=A.nbytes + 1)) is np.ndarray
    monkeypatch.setattr(_files, "MEMORY_MAP_FROM", A.nbytes)
    assert type(rnla.datasets.load_matrix(path)) is np.memmap


def test_chunked_files_are_not_read_whole(tmp_path, A):
    assert isinstance(rnla.datasets.load_matrix(write(tmp_path, "A.h5", A)), h5py.Dataset)
    assert isinstance(rnla.datasets.load_matrix(write(tmp_path, "A.zarr", A)), zarr.Array)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("I;16", "png"), ("1", "png"), ("F", "tif"), ("L", "bmp"), ("L", "gif")]
)
def test_grey_images_keep_their_values(tmp_path, mode, suffix):
    values = (np.arange(12).reshape(3, 4) * 20).astype({"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8))
    if mode == "I;16":
        values = values * np.uint16(200)
    if mode == "1":
        values = (values > 100).astype(np.uint8) * 255
    image = Image.fromarray(values)
    (image.convert("1") if mode == "1" else image).save(tmp_path / f"A.{suffix}")
    np.testing.assert_array_equal(rnla.datasets.load_matrix(tmp_path / f"A.{suffix}"), values)


def test_colour_is_reduced_to_luma_and_transparency_ignored(tmp_path):
    colours = np.array([[[255, 0, 0, 0], [0, 255, 0, 9], [0, 0, 255, 255]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "A.png")
    grey = rnla.datasets.load_matrix(tmp_path / "A.png")
    np.testing.assert_array_equal(grey, np.floor(np.array([[0.299, 0.587, 0.114]]) * 255 + 0.5))  # ITU-R BT.601


@pytest.mark.parametrize("name", ["A.npz", "A.h5", "A.zarr"])
def test_key_chooses_among_several_matrices(tmp_path, name):
    path = tmp_path / name
    first, second = np.eye(2), np.ones((2, 3))
    if name.endswith("npz"):
        np.savez(path, first=first, second=second)
    else:
        group = h5py.File(path, "w") if name.endswith("h5") else zarr.create_group(path)
        nested = group.create_group("nested")
        for where, key, value in ((group, "first", first), (nested, "second", second)):
            where.create_dataset(key, data=value) if name.endswith("h5") else where.create_array(key, data=value)
        if name.endswith("h5"):
            group.close()
    key = "second" if name.endswith("npz") else "nested/second"
    np.testing.assert_array_equal(rnla.datasets.load_matrix(path, key=key)[...], second)
    for wrong in (None, "third"):
        with pytest.raises(ValueError, match=rf"key must name one of the matrices in the file \(first, {key}\)"):
            rnla.datasets.load_matrix(path, key=wrong)


def test_key_is_refused_where_there_is_nothing_to_choose(tmp_path, A):
    for name in ("A.npy", "sparse.npz", "A.zarr"):
        with pytest.raises(ValueError, match="key must be None"):
            rnla.datasets.load_matrix(write(tmp_path, name, A), key="A")


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("name", ["A.npy", "A.npz", "sparse.npz", "A.mtx", "dense.mtx", "A.mtx.gz", "A.h5"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, name, keep, A):
    path = write(tmp_path, name, A)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match=r"^rnla\.datasets\.load_matrix: cannot read a matrix from "):
        rnla.datasets.load_matrix(path)


@pytest.mark.parametrize("end", ["5.2", "5.", "5.25e", "5.25e-"])
def test_matrix_market_cut_off_inside_a_number_is_refused(tmp_path, end):
    (tmp_path / "A.mtx").write_text(f"%%MatrixMarket matrix coordinate real general\n2 2 2\n1 1 1.0\n2 2 {end}")
    with pytest.raises(ValueError, match="last number may be cut off"):
        rnla.datasets.load_matrix(tmp_path / "A.mtx")


@pytest.mark.parametrize("suffix", ["npy", "npz", "mtx", "mtx.gz", "h5", "zarr", "png", "jpg", "tif", "webp"])
def test_bytes_of_another_kind_are_refused(tmp_path, suffix):
    path = tmp_path / f"A.{suffix}"
    path.write_bytes(b"\x80\x04 this is no matrix \xff" * 30)
    with pytest.raises(ValueError, match=r"^rnla\.datasets\.load_matrix: cannot read a matrix from "):
        rnla.datasets.load_matrix(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "h5", "zarr", "png"])
def test_a_missing_file_is_a_missing_file(tmp_path, suffix):
    with pytest.raises(FileNotFoundError):
        rnla.datasets.load_matrix(tmp_path / f"A.{suffix}")


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path):
    for name in ("A.csv", "A.npy.gz", "A"):
        with pytest.raises(ValueError, match=r"must be one of \.npy, \.npz, .* or \.mtx\.gz; got "):
            rnla.datasets.load_matrix(tmp_path / name)


def test_what_is_no_numeric_matrix_is_refused(tmp_path):
    np.save(tmp_path / "vector.npy", np.ones(3))
    np.save(tmp_path / "text.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "cube.npy", np.ones((2, 2, 2)))
    np.savez(tmp_path / "dates.npz", np.array([["2020-01-01"]], "datetime64[D]"))
    with h5py.File(tmp_path / "vector.h5", "w") as file:
        file["x"] = np.ones(3)
    zarr.create_array(tmp_path / "vector.zarr", data=np.ones(3))
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"numeric matrix|matrices in the file"):
            rnla.datasets.load_matrix(path)


# ---- files that attack


def test_pickled_files_are_never_loaded(tmp_path):
    trace = tmp_path / "trace"
    attack = TouchesFile(trace)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(attack))
    np.save(tmp_path / "object.npy", np.array([[attack]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", np.array([[attack]], dtype=object))
    np.savez(tmp_path / "sparse.npz", format=np.array([attack], dtype=object), shape=(1, 1))
    for name in ("raw.npy", "object.npy", "object.npz", "sparse.npz"):
        with pytest.raises(ValueError, match="cannot read a matrix from"):
            rnla.datasets.load_matrix(tmp_path / name)
    assert not trace.exists()
    pickle.loads(pickle.dumps(attack))
    assert trace.exists()  # the attack works where somebody unpickles


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_zarr_chunks_that_are_pickles_are_refused_before_any_is_read(tmp_path, place):
    trace = tmp_path / "trace"
    folder = tmp_path / "A.zarr"
    folder.mkdir()
    codec = {"id": "pickle", "protocol": 5}
    head = {"shape": [2, 2], "chunks": [2, 2], "dtype": "<f8", "fill_value": 0.0, "order": "C", "zarr_format": 2}
    codecs = {"filters": None, "compressor": None} | {place: [codec] if place == "filters" else codec}
    (folder / ".zarray").write_text(json.dumps(head | codecs))
    (folder / "0.0").write_bytes(pickle.dumps(TouchesFile(trace)))
    with pytest.raises(ValueError, match=r"cannot read a matrix from .*pickle"):
        rnla.datasets.load_matrix(folder)
    assert not trace.exists()


def test_sparse_npz_with_an_index_out_of_range_is_refused(tmp_path):
    A = sparse.csr_array(np.eye(3))
    A.indices[1] = 10**6
    sparse.save_npz(tmp_path / "A.npz", A)
    with pytest.raises(ValueError, match="cannot read a matrix from"):
        rnla.datasets.load_matrix(tmp_path / "A.npz")


@pytest.mark.parametrize(
    ("module", "suffix", "extra"), [("h5py", "h5", "io"), ("zarr", "zarr", "io"), ("PIL", "png", "viz")]
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, module, suffix, extra):
    (tmp_path / f"A.{suffix}").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'rnla\[{extra}\]'"):
        rnla.datasets.load_matrix(tmp_path / f"A.{suffix}")
