"""Open a matrix in a file of the user without ever unpickling and, where it is large, without reading it whole."""

import os
from pathlib import Path

import numpy as np

# Smaller files are read at once: a matrix in memory can be worked on by more methods than one on disk.
MEMORY_MAP_FROM = 2**30  # bytes


def load_matrix(path, *, key=None):
    """Open the matrix that a file holds; the kind of file is told by its ending.

    ==================================  ========================================================================
    ending                              result
    ==================================  ========================================================================
    .npy                                array; memory-mapped from 1 GiB on
    .npz                                sparse array (written by ``scipy.sparse.save_npz``), or the one array in it
    .mtx, .mtx.gz (Matrix Market)       sparse array or array
    .h5, .hdf5                          ``h5py.Dataset``, which is read in blocks (extra ``io``)
    .zarr (a folder)                    ``zarr.Array``, which is read in blocks (extra ``io``)
    .png, .jpg, .jpeg, .tif, .tiff,     array of grey values; colour is reduced to luma, transparency ignored
    .bmp, .gif, .webp                   (extra ``viz``)
    ==================================  ========================================================================

    Pickled objects are never loaded: a file of unknown origin cannot run code.

    Parameters
    ----------
    path : str or path-like
        The file.
    key : str, optional
        Name of the array in a .npz, .h5 or .zarr file; needed if there are several matrices in it.

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
        If a package that reads this kind of file is not installed.

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
    path = Path(path)
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix not in _READERS or (path.suffix.lower() == ".gz" and suffix != ".mtx"):
        raise ValueError(f"{caller}: the ending of path must be one of {', '.join(_READERS)} or .mtx.gz; got {path}.")
    if key is not None and suffix not in (".npz", ".h5", ".hdf5", ".zarr"):
        raise ValueError(f"{caller}: key must be None for a {suffix} file, which holds one matrix; got {key!r}.")
    os.stat(path)  # the same FileNotFoundError for every kind
    try:
        A = _READERS[suffix](path, key)
    except (ImportError, MemoryError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        # Half a dozen parsers raise anything from EOFError to SyntaxError when they meet damaged bytes.
        raise ValueError(f"{caller}: cannot read a matrix from {path}: {str(error) or type(error).__name__}") from error
    if A.dtype.kind not in "biufc" or len(A.shape) != 2:
        raise ValueError(f"{caller}: {path} must hold a numeric matrix; it holds shape {A.shape}, dtype {A.dtype}.")
    return A


def _read_npy(path, key):
    A = np.lib.format.open_memmap(path, mode="r")  # refuses object dtype, and a file shorter than its header says
    return A if A.nbytes >= MEMORY_MAP_FROM else np.array(A)


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


def _read_hdf5(path, key):
    try:
        import h5py
    except ImportError as error:
        raise ImportError("an HDF5 file needs h5py: pip install 'rnla[io]'") from error

    file = h5py.File(path, "r")  # stays open for as long as the dataset is referred to
    matrices = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and item.ndim == 2 and item.dtype.kind in "biufc":
            matrices.append(name)

    file.visititems(visit)
    return file[_choose(matrices, key)]


def _read_zarr(path, key):
    try:
        import zarr
    except ImportError as error:
        raise ImportError("a Zarr folder needs zarr: pip install 'rnla[io]'") from error

    A = zarr.open(path, mode="r")
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
_READERS |= dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"), _read_image)


def _choose(names, key):
    """Return the one matrix that is meant: `key`, or the only one there is."""
    if key is None and len(names) == 1:
        return names[0]
    if key in names:
        return key
    held = ", ".join(sorted(names)) or "none"
    raise ValueError(f"key must name one of the matrices in the file ({held}); got {key!r}")
