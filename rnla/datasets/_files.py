"""Open a matrix in a file of the user without ever unpickling and, where it is large, without reading it whole."""

import errno
import os
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

# Smaller files are read at once: a matrix in memory can be worked on by more methods than one on disk.
MEMORY_MAP_FROM = 2**30  # bytes


def load_matrix(path, *, key=None, map_from=None):
    """Open the matrix that a file holds; the kind of file is told by its ending.

    ==================================  ========================================================================
    ending                              result
    ==================================  ========================================================================
    .npy                                array; memory-mapped from `map_from` bytes on
    .npz                                sparse array (written by ``scipy.sparse.save_npz``), or the one array in it
    .mtx, .mtx.gz (Matrix Market)       sparse array or array
    .h5, .hdf5                          ``h5py.Dataset``, which is read in blocks (extra ``io``)
    .zarr (a folder)                    ``zarr.Array``, which is read in blocks (extra ``io``)
    .png, .jpg, .jpeg, .tif, .tiff,     array of grey values; colour is reduced to luma, transparency ignored
    .bmp, .gif, .webp                   (extra ``viz``)
    ==================================  ========================================================================

    Pickled objects are never loaded: a file of unknown origin cannot run code.

    HDF5 and Zarr are read from a URL, too, block by block as entries are needed: ``s3://bucket/A.zarr`` and whatever
    else fsspec has a package for.

    Parameters
    ----------
    path : str or path-like
        The file, or its URL.
    key : str, optional
        Name of the array in a .npz, .h5 or .zarr file; needed if there are several matrices in it.
    map_from : int, optional
        Bytes, 1 GiB by default, from which a .npy file is mapped and read in blocks: more methods work on a matrix in
        memory.

    Returns
    -------
    array, sparse array, h5py.Dataset or zarr.Array
        Two-dimensional and numeric; every function of rnla accepts it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of another kind than its ending says, or does not hold a numeric matrix.
    ImportError
        If a package that reads this kind of file, or this kind of URL, is not installed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "A.npy")
    ...     np.save(path, np.eye(3))
    ...     rnla.datasets.load_matrix(path).shape
    (3, 3)
    """
    caller = "rnla.datasets.load_matrix"
    path, remote = _place(path)
    name = PurePosixPath(path).name.lower()
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix
    if remote and suffix not in _REMOTE:
        raise ValueError(f"{caller}: path as a URL must end in one of {', '.join(_REMOTE)}; got {path}.")
    if suffix not in _READERS or (name.endswith(".gz") and suffix != ".mtx"):
        raise ValueError(f"{caller}: the ending of path must be one of {', '.join(_READERS)} or .mtx.gz; got {path}.")
    if key is not None and suffix not in (".npz", ".h5", ".hdf5", ".zarr"):
        raise ValueError(f"{caller}: key must be None for a {suffix} file, which holds one matrix; got {key!r}.")
    if not remote:
        os.stat(path)  # the same FileNotFoundError for every kind
    read = partial(_read_npy, map_from=map_from) if suffix == ".npy" else (_REMOTE if remote else _READERS)[suffix]
    try:
        A = read(path, key)
    except (ImportError, MemoryError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        if remote and isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        # Half a dozen parsers raise anything from EOFError to SyntaxError when they meet damaged bytes.
        raise ValueError(f"{caller}: cannot read a matrix from {path}: {str(error) or type(error).__name__}") from error
    if A.dtype.kind not in "biufc" or len(A.shape) != 2:
        raise ValueError(f"{caller}: {path} must hold a numeric matrix; it holds shape {A.shape}, dtype {A.dtype}.")
    return A


def _place(path):
    """Return a local path, or a URL and True."""
    text = os.fspath(path)
    if not isinstance(text, str) or "://" not in text:
        return Path(os.fsdecode(text)), False
    if text.startswith("file://"):
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        return Path(url2pathname(urlsplit(text).path)), False
    return text.rstrip("/"), True


def _read_npy(path, key, map_from):
    A = np.lib.format.open_memmap(path, mode="r")  # refuses object dtype, and a file shorter than its header says
    return A if A.nbytes >= (MEMORY_MAP_FROM if map_from is None else map_from) else np.array(A)


def _read_npz(path, key):
    import zipfile

    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a zip archive, or is cut off")
    with np.load(path, allow_pickle=False) as arrays:
        if "format" not in arrays.files:
            return arrays[_choose(arrays.files, key)]
    if key is not None:
        raise ValueError(f"key must be None for a sparse matrix; got {key!r}")
    from scipy import sparse

    A = sparse.load_npz(path)
    if A.format in ("csr", "csc", "bsr"):
        A.check_format(full_check=True)  # an index out of range would make compiled code read foreign memory
    return sparse.csr_array(A)


def _read_mtx(path, key):
    import gzip

    from scipy import io, sparse

    last = b""
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
        while block := file.read(2**20):
            last = block[-1:]
    # Cut off inside a number, 12.5 reads as 12 without complaint, and at "1e" SciPy's parser runs past the end.
    if last != b"\n":
        raise ValueError("it does not end with a line break, so its last number may be cut off")
    A = io.mmread(path)
    return sparse.csr_array(A) if sparse.issparse(A) else A


def _read_hdf5(source, key):
    try:
        import h5py
    except ImportError as error:
        raise ImportError("an HDF5 file needs h5py: pip install 'rnla[io]'") from error

    file = h5py.File(source, "r")  # stays open for as long as the dataset is referred to
    matrices = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and item.ndim == 2 and item.dtype.kind in "biufc":
            matrices.append(name)

    file.visititems(visit)
    return file[_choose(matrices, key)]


def _read_zarr(source, key):
    try:
        import zarr
    except ImportError as error:
        raise ImportError("a Zarr folder needs zarr: pip install 'rnla[io]'") from error

    A = zarr.open(source, mode="r")
    if isinstance(A, zarr.Group):
        arrays = dict(A.members(max_depth=None))
        matrices = [name for name, a in arrays.items() if isinstance(a, zarr.Array) and a.ndim == 2]
        A = arrays[_choose(matrices, key)]
    elif key is not None:
        raise ValueError(f"key must be None where the Zarr folder is one array; got {key!r}")
    facts = A.metadata.to_dict()
    codecs = str([facts.get(name) for name in ("filters", "compressor", "codecs")])
    if "pickle" in codecs.lower():  # numcodecs has a codec that unpickles each chunk
        raise ValueError("its chunks are pickled, and pickled objects are never loaded")
    return A


def _read_hdf5_url(url, key):
    return _read_hdf5(_remote(lambda fsspec: fsspec.open(url, "rb").open(), url), key)


def _read_zarr_url(url, key):
    def store(fsspec):
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(url, read_only=True)

    return _read_zarr(_remote(store, url), key)


def _remote(opened, url):
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"{url} needs fsspec: pip install 'rnla[io]'") from error
    try:
        return opened(fsspec)
    except ImportError as error:  # fsspec has a package for each protocol, and names it
        raise ImportError(f"{url} needs a package for its protocol, see fsspec: {error}") from error


def _read_image(path, key):
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("an image needs pillow: pip install 'rnla[viz]'") from error

    # The list keeps out the formats that Pillow hands to other programs.
    with Image.open(path, formats=("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")) as image:
        grey = image.mode in ("L", "F", "I", "I;16", "I;16B", "I;16L")
        return np.asarray(image if grey else image.convert("L"))


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".mtx": _read_mtx, ".h5": _read_hdf5, ".hdf5": _read_hdf5}
_READERS |= {".zarr": _read_zarr}
_REMOTE = {".zarr": _read_zarr_url, ".h5": _read_hdf5_url, ".hdf5": _read_hdf5_url}
_READERS |= dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"), _read_image)


def _choose(names, key):
    """Return the one matrix that is meant: `key`, or the only one there is."""
    if key is None and len(names) == 1:
        return names[0]
    if key in names:
        return key
    held = ", ".join(sorted(names)) or "none"
    raise ValueError(f"key must name one of the matrices in the file ({held}); got {key!r}")
