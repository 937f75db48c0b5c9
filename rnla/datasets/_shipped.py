"""Data that ships with rnla; origin and licences are in ``data/README.md``."""

import numpy as np


def load_photograph():
    """Load a grey photograph: the retina of a healthy left eye.

    Returns
    -------
    numpy.ndarray, shape (1411, 1411), dtype uint8
        Grey values, 0 (black) to 255.

    Notes
    -----
    "Fundus photograph of normal left eye" by Mikael Häggström [1]_, from Wikimedia Commons by way of scikit-image
    (``skimage.data.retina``), reduced to grey. Public domain (CC0 1.0).

    References
    ----------
    .. [1] Häggström, "Medical gallery of Mikael Häggström 2014", WikiJournal of Medicine 1 (2), 2014.

    Examples
    --------
    >>> image = rnla.datasets.load_photograph()
    >>> image.shape, image.dtype
    ((1411, 1411), dtype('uint8'))
    """
    differences = _read("retina.npz")["differences"]
    # The file holds differences along both axes modulo 256; the sums wrap around in the same way, so this is exact.
    return np.cumsum(np.cumsum(differences, axis=0, dtype=np.uint8), axis=1, dtype=np.uint8)


def load_road_network():
    """Load the road network of Minnesota as a sparse adjacency matrix.

    Returns
    -------
    adjacency : scipy.sparse.csr_array, shape (2642, 2642), dtype float64
        Symmetric; 1 where a road joins two junctions. The graph is connected and has 3304 edges.
    xy : numpy.ndarray, shape (2642, 2), dtype float64
        Longitude and latitude of each junction, in degrees.

    Notes
    -----
    From the MatlabBGL collection (David Gleich), as shipped in PyGSP 0.6.1 (BSD-3-Clause, Copyright (c) 2014, EPFL
    LTS2; the licence text lies beside the data). As in PyGSP, weights are 1 and one edge was added to connect the
    graph.

    Examples
    --------
    >>> adjacency, xy = rnla.datasets.load_road_network()
    >>> adjacency.shape, adjacency.nnz, xy.shape
    ((2642, 2642), 6608, (2642, 2))
    """
    from scipy import sparse

    file = _read("minnesota.npz")
    xy = file["xy"].astype(np.float64)
    row, col = file["row"].astype(np.int32), file["col"].astype(np.int32)
    both = np.concatenate([row, col]), np.concatenate([col, row])
    ones = np.ones(2 * row.size)
    return sparse.coo_array((ones, both), shape=(len(xy), len(xy))).tocsr(), xy


def _read(name):
    """Read all arrays of a file in the folder ``data`` of this package."""
    from importlib import resources

    path = resources.files("rnla.datasets") / "data" / name
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
