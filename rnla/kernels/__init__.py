"""Hot loops, each behind one name; a kernel and its compiler are loaded when the name is first used."""

from importlib import import_module

_MODULE_OF = {
    "adjoint_panels": "_csr",
    "csr_matmat": "_csr",
    "csr_rmatmat": "_csr",
    "fill_normal": "_philox",
    "fwht": "_fwht",
    "hankel_sampled_product": "_hankel",
    "hankel_scatter": "_hankel",
    "keep_within": "_trimmed",
    "map_blocks": "_threads",
    "num_threads": "_threads",
    "random_words": "_philox",
    "row_sums": "_row_sums",
    "sampled_product": "_sampled_product",
    "sampled_product_panels": "_sampled_product",
    "sampled_residuals": "_trimmed",
    "scatter_signs": "_scatter",
    "sqrt_sweep_gram": "_sqrt_sweep",
    "sqrt_sweep_product": "_sqrt_sweep",
    "threshold_pass": "_threshold_pass",
    "trimmed_fit": "_trimmed",
}

__all__ = [
    "adjoint_panels",
    "csr_matmat",
    "csr_rmatmat",
    "fill_normal",
    "fwht",
    "hankel_sampled_product",
    "hankel_scatter",
    "keep_within",
    "map_blocks",
    "num_threads",
    "random_words",
    "row_sums",
    "sampled_product",
    "sampled_product_panels",
    "sampled_residuals",
    "scatter_signs",
    "sqrt_sweep_gram",
    "sqrt_sweep_product",
    "threshold_pass",
    "trimmed_fit",
]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rnla.kernels' has no attribute {name!r}")
    value = getattr(import_module(f"rnla.kernels.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__():
    return sorted(__all__)
