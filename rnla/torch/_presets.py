"""K-FAC with the settings under which its variants are known."""

from rnla.torch._kfac import KFAC


class RSKFAC(KFAC):
    """Randomised-SVD K-FAC (RS-KFAC) as published: rank 220, 9 products, nothing in the directions left out.

    Parameters
    ----------
    model, params, lr, **options : object
        As for `KFAC`; ``method="rsvd"``, ``products=9``, ``tail="zero"``, ``warm_start=False`` unless given.

    See Also
    --------
    NysKFAC : More accurate for less work.

    References
    ----------
    .. [1] Puiu, IDEAL 2022, arXiv 2206.15397.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import RSKFAC
    >>> RSKFAC(torch.nn.Linear(3, 2), lr=0.3, rank=100).unsupported
    []
    """

    def __init__(self, model, params=None, lr=0.1, **options):
        published = {"method": "rsvd", "products": 9, "tail": "zero", "warm_start": False}
        super().__init__(model, params, lr, **published | options)


class SREKFAC(KFAC):
    """Symmetric randomised eigenvalue K-FAC (SRE-KFAC) as published: rank 220, 4 products, Ritz pairs.

    Parameters
    ----------
    model, params, lr, **options : object
        As for `KFAC`; ``method="sre"``, ``products=4``, ``tail="zero"``, ``warm_start=False`` unless given.

    See Also
    --------
    NysKFAC : More accurate for less work.

    References
    ----------
    .. [1] Puiu, IDEAL 2022, arXiv 2206.15397.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import SREKFAC
    >>> SREKFAC(torch.nn.Linear(3, 2), lr=0.3, rank=100).unsupported
    []
    """

    def __init__(self, model, params=None, lr=0.1, **options):
        published = {"method": "sre", "products": 4, "tail": "zero", "warm_start": False}
        super().__init__(model, params, lr, **published | options)


class NysKFAC(KFAC):
    """K-FAC with Nystrom approximations of its factors, the recommended settings: start with this one.

    Rank 110, one product from a warm start, and for the directions left out the mean of their eigenvalues. Factors up
    to dimension 240 are inverted exactly.

    Parameters
    ----------
    model, params, lr, **options : object
        As for `KFAC`; ``method="auto"``, ``rank=110`` unless given.

    References
    ----------
    .. [1] Tropp, Yurtsever, Udell, Cevher, NeurIPS 2017 (Nystrom approximation).
    .. [2] Puiu, IDEAL 2022, arXiv 2206.15397.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import NysKFAC
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = NysKFAC(model, lr=0.1)
    >>> model(torch.ones(4, 3)).square().mean().backward()
    >>> optimizer.step()
    >>> optimizer.stats.steps
    1
    """

    def __init__(self, model, params=None, lr=0.1, **options):
        super().__init__(model, params, lr, **{"method": "auto", "rank": 110} | options)


class EKFAC(KFAC):
    """K-FAC in whose eigenbasis second moments of the gradients are kept (EKFAC).

    Parameters
    ----------
    model, params, lr, **options : object
        As for `KFAC`; ``ekfac=True``.

    References
    ----------
    .. [1] George et al., NeurIPS 2018, arXiv 1806.03884.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import EKFAC
    >>> EKFAC(torch.nn.Linear(3, 2), lr=0.1).unsupported
    []
    """

    def __init__(self, model, params=None, lr=0.1, **options):
        super().__init__(model, params, lr, **options | {"ekfac": True})


class BKFAC(KFAC):
    """K-FAC whose eigenpairs are updated online, without the matrices (Brand's algorithm).

    For linear layers that are used at one position, with batches that are small against the layers; other layers have
    the inverses of `NysKFAC`.

    Parameters
    ----------
    model, params, lr, **options : object
        As for `KFAC`; ``method="brand"``. With ``correction="refresh"`` (B-R) or ``"partial"`` (B-R-C) the matrices are
        kept, and every `correction_every` refreshed inverses, 5 by default, a decomposition of them takes over, or a
        fifth of the eigenvectors is corrected.

    References
    ----------
    .. [1] Puiu, arXiv 2210.08494.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import BKFAC
    >>> BKFAC(torch.nn.Linear(3, 2), lr=0.1, correction="refresh").unsupported
    []
    """

    def __init__(self, model, params=None, lr=0.1, **options):
        super().__init__(model, params, lr, **options | {"method": "brand"})


class SENG(KFAC):
    """Sketchy empirical natural gradient: solves with the gradients of the examples of a batch.

    Parameters
    ----------
    model, params, lr, **options : object
        As for `KFAC`; ``method="seng"``, and as published ``lr=0.05``, ``momentum=0.9``, ``weight_decay=1e-2``,
        ``damping=2``, ``factor_every=200``, no clipping, and products estimated from 256 entries (`sample`).

    Notes
    -----
    The gradients of the examples are kept as the inputs and derivatives that give them. In convolutions and sequences,
    where there are many of both, their best approximations of rank 16 are.

    References
    ----------
    .. [1] Yang et al., J. Sci. Comput. 2022, arXiv 2006.05924.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import SENG
    >>> SENG(torch.nn.Linear(3, 2)).unsupported
    []
    """

    def __init__(self, model, params=None, lr=0.05, **options):
        published = {
            "momentum": 0.9, "weight_decay": 1e-2, "damping": 2.0, "factor_every": 200, "inverse_every": 200,
            "rms_clip": None, "sample": 256,
        }  # fmt: skip
        super().__init__(model, params, lr, **published | options | {"method": "seng"})
