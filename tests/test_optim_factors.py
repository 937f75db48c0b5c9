"""Kronecker factors are the exact blocks where the theory says so, and averages follow their recursion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnla.optim as optim
from rnla.optim import mlp

EPS = np.finfo(float).eps


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def exact_block(params, acts, x, layer, loss, pool=None):
    """Gauss-Newton block of one layer by one tangent pass for each weight, columns of the weights stacked."""
    W = params[layer]
    columns = []
    cache = mlp.forward(params, x, acts)[1]
    for j in range(W.shape[1]):
        for i in range(W.shape[0]):
            direction = [np.zeros_like(V) for V in params]
            direction[layer][i, j] = 1.0
            change = mlp.jvp(params, cache, direction)
            columns.append(change if pool is None else pool(change))
    J = np.stack(columns, axis=-1)  # (N, ..., c, weights)
    z = cache.outputs[-1] if pool is None else pool(cache.outputs[-1])
    terms = z.size // z.shape[-1]
    F = np.stack([loss.fisher_matmul(z, J[..., k]) for k in range(J.shape[-1])], axis=-1)
    return J.reshape(-1, J.shape[-1]).T @ F.reshape(-1, F.shape[-1]) / terms


def kfac_block(params, acts, x, layer, loss, *, terms, approx="expand", spread=None):
    """Return ``A kron G``, exactly: one backward pass for each column of the root of the output's Fisher matrix."""
    z, cache = mlp.forward(params, x, acts)
    pooled = z if spread is None else z.sum(axis=1)
    G = 0.0
    for column in loss.fisher_columns(pooled):
        dz = column / terms
        hs = mlp.backward(params, cache, dz if spread is None else np.repeat(dz[:, None, :], spread, axis=1))[1]
        G = G + optim.output_factor(hs[layer], terms=terms, approx=approx)
    return np.kron(optim.input_factor(cache.inputs[layer], approx=approx), G)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("R", [None, 4])
def test_expand_is_exact_for_a_deep_linear_net_with_a_loss_at_every_position(layer, R):
    params, acts, loss = [normal(0, 3, 5), normal(1, 2, 4)], ("linear",) * 2, optim.likelihood("squared")
    x = normal(2, 6, 4) if R is None else normal(2, 6, R, 4)
    F = kfac_block(params, acts, x, layer, loss, terms=6 * (R or 1))
    exact = exact_block(params, acts, x, layer, loss)
    assert np.abs(F - exact).max() <= 1e-12 * np.abs(exact).max()


@pytest.mark.parametrize("layer", [0, 1])
def test_reduce_is_exact_and_expand_is_not_where_positions_are_summed(layer):
    R = 5
    params, acts, loss = [normal(3, 3, 4), normal(4, 2, 3)], ("linear",) * 2, optim.likelihood("squared")
    x = normal(5, 6, R, 4)
    exact = exact_block(params, acts, x, layer, loss, pool=lambda z: z.sum(axis=1))
    # The mean of the inputs and the sum of the gradients: with summed outputs both carry the number of positions.
    reduced = kfac_block(params, acts, x, layer, loss, terms=6, approx="reduce", spread=R)
    expanded = kfac_block(params, acts, x, layer, loss, terms=6, spread=R)
    assert np.abs(reduced - exact).max() <= 1e-12 * np.abs(exact).max()
    assert np.linalg.norm(expanded - exact) > 0.1 * np.linalg.norm(exact)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["tanh", "relu", "logistic"]))
def test_one_example_and_one_output_make_the_block_exact(seed, act):
    params, acts, loss = mlp.init([4, 3, 1], seed), (act, "linear"), optim.likelihood("logistic")
    x = normal(seed, 1, 4)
    for layer in (0, 1):
        F = kfac_block(params, acts, x, layer, loss, terms=1)
        exact = exact_block(params, acts, x, layer, loss)
        assert np.abs(F - exact).max() <= 1e-12 * (1 + np.abs(exact).max())


def test_a_bias_appends_the_one_last():
    a = normal(0, 7, 3, 4)
    for approx in ("expand", "reduce"):
        whole = optim.input_factor(np.concatenate([a, np.ones((7, 3, 1))], axis=-1), approx=approx)
        assert np.abs(optim.input_factor(a, bias=True, approx=approx) - whole).max() <= 50 * EPS


@given(st.floats(0.01, 100.0))
def test_a_scaled_loss_scales_the_output_factor_by_its_square(c):
    h = normal(1, 5, 3)
    G = optim.output_factor(h, terms=5)
    assert np.abs(optim.output_factor(c * h, terms=5) - c**2 * G).max() <= 20 * EPS * c**2 * np.abs(G).max()


def test_sampled_fisher_tends_to_the_exact_one():
    z, draws = normal(0, 4, 3), 2000
    loss = optim.likelihood("softmax")
    exact = sum(optim.output_factor(c / 4, terms=4) for c in loss.fisher_columns(z))
    many = np.repeat(z, draws, axis=0)
    h = loss.dz(many, loss.sample(many, 0))
    sampled = optim.output_factor(h, terms=len(many))
    # A mean of 8000 bounded terms: the relative standard error is about 1 / sqrt(8000) = 0.011.
    assert np.linalg.norm(sampled - exact) < 0.1 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", ["softmax", "logistic", "squared"])
def test_losses_agree_with_their_derivatives(name):
    loss, z = optim.likelihood(name), normal(0, 5, 3)
    y = loss.sample(z, 1)
    step = 1e-6 * normal(1, 5, 3)
    change = (loss.value(z + step, y) - loss.value(z - step, y)) / 2
    assert abs(change - np.sum(loss.dz(z, y) * step)) <= 1e-9 * np.linalg.norm(step)
    v = normal(2, 5, 3)
    root = sum(c * np.sum(c * v, axis=-1, keepdims=True) for c in loss.fisher_columns(z))
    assert np.abs(loss.fisher_matmul(z, v) - root).max() <= 100 * EPS


def test_network_gradients_and_tangents_agree_with_differences():
    params, acts = mlp.init([4, 6, 5, 3], 0, "sparse"), ("tanh", "logistic", "linear")
    x, direction = normal(1, 8, 4), [1e-6 * normal(i, *W.shape) for i, W in enumerate(params)]
    z, cache = mlp.forward(params, x, acts)
    ahead = mlp.forward([W + D for W, D in zip(params, direction, strict=True)], x, acts)[0]
    behind = mlp.forward([W - D for W, D in zip(params, direction, strict=True)], x, acts)[0]
    change = mlp.jvp(params, cache, direction)
    assert np.abs((ahead - behind) / 2 - change).max() <= 1e-8 * np.abs(change).max() + 10 * EPS
    dz = normal(2, *z.shape)
    grads, _ = mlp.backward(params, cache, dz)
    along = sum(np.sum(g * D) for g, D in zip(grads, direction, strict=True))
    assert abs(along - np.sum(dz * change)) <= 1e3 * EPS * np.abs(change).max() * np.abs(dz).sum()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups", "mode"),
    [
        ((3, 2), 2, 1, 1, 1, "zeros"),
        (3, (2, 1), (2, 1), 2, 2, "reflect"),
        ((2, 3), 1, "same", 2, 1, "replicate"),
        (2, 1, "valid", 1, 2, "circular"),
        ((1, 3), 1, (0, 2), 1, 1, "circular"),
    ],
)
def test_weight_gradient_of_a_convolution_is_that_of_its_patches(kernel, stride, padding, dilation, groups, mode):
    import torch

    N, C, q = 3, 4, 6
    layer = torch.nn.Conv2d(
        C, q, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=mode, bias=False
    ).double()
    x = normal(0, N, C, 7, 6)
    out = layer(torch.from_numpy(x))
    h = torch.from_numpy(normal(1, *out.shape))
    (out * h).sum().backward()
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": mode}
    patches = optim.unfold2d(x, kernel, **options)
    H = h.numpy().reshape(N, q, -1).transpose(0, 2, 1)
    gradient = layer.weight.grad.numpy().reshape(q, -1)
    width, rows = patches.shape[2] // groups, q // groups
    factors = optim.conv_input_factor(x, kernel, groups=groups, bias=True, patch_bytes=patches[:2].nbytes, **options)
    for i in range(groups):
        own, columns = slice(i * rows, (i + 1) * rows), slice(i * width, (i + 1) * width)
        found = np.einsum("ntq,ntp->qp", H[:, :, own], patches[:, :, columns])
        assert np.abs(found - gradient[own]).max() <= 1e-10
        assert np.abs(factors[i] - optim.input_factor(patches[:, :, columns], bias=True)).max() <= 1e-12


def test_signals_unfold_like_images_of_one_row():
    x = normal(0, 2, 3, 9)
    found = optim.unfold1d(x, 3, stride=2, padding=1, dilation=2)
    assert np.array_equal(found, optim.unfold2d(x[:, :, None], (1, 3), stride=2, padding=(0, 1), dilation=(1, 2)))
    (A,) = optim.conv_input_factor(x, 3, approx="reduce", patch_bytes=1)
    assert np.allclose(A, optim.input_factor(optim.unfold1d(x, 3), approx="reduce"))


def test_embedding_frequencies_are_the_diagonal_of_the_factor_of_one_hot_inputs():
    tokens = np.random.default_rng(0).integers(0, 6, (5, 4))
    A = optim.input_factor(np.eye(6)[tokens])
    assert np.abs(np.diag(optim.token_frequencies(tokens, 6, dtype=np.float64)) - A).max() <= 10 * EPS
    assert optim.token_frequencies(tokens, 6, padding=int(tokens[0, 0]))[tokens[0, 0]] == 0


def test_norm_blocks_are_outer_products_and_are_inverted_in_closed_form():
    x, h = normal(0, 5, 3, 2), normal(1, 5, 3, 2)
    blocks = optim.norm_factor(x, h, terms=5)
    g = np.stack([(x * h).sum(axis=1), h.sum(axis=1)], axis=-1)
    assert np.allclose(blocks, 5 * np.einsum("nci,ncj->cij", g, g))
    V = normal(2, 2, 2)
    for B, v in ((blocks, V), (blocks[:, :1, :1], V[:, :1])):
        found = optim.norm_solve(B, v, 0.1)
        assert np.allclose(found, np.linalg.solve(B + 0.1 * np.eye(B.shape[1]), v[..., None])[..., 0])


@given(st.floats(0.0, 0.99), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_average_has_the_weights_of_its_recursion(rho, count, seed):
    terms = [X @ X.T for X in normal(seed, count, 3, 2)]
    stats, identity = optim.FactorStats(), optim.FactorStats(identity=1.0)
    for term in terms:
        stats, identity = stats.update(term, rho), identity.update(term, rho)
    weights = [(1 - rho if i else 1.0) * rho ** (count - 1 - i) for i in range(count)]
    scale = max(np.abs(term).max() for term in terms)
    mean = sum(w * term for w, term in zip(weights, terms, strict=True))
    assert np.abs(stats.matrix - mean).max() <= 50 * EPS * scale
    assert abs(float(identity.identity) - rho**count) <= 50 * EPS
    whole = np.eye(3)
    for term in terms:
        whole = rho * whole + (1 - rho) * term
    assert np.abs(identity.matrix + float(identity.identity) * np.eye(3) - whole).max() <= 50 * EPS * (1 + scale)


def test_warmup_starts_with_the_plain_mean():
    stats = optim.FactorStats()
    for value in (1.0, 2.0, 6.0):
        stats = stats.update(value * np.eye(2), 0.99, mode="warmup")
    assert np.allclose(stats.matrix, 3 * np.eye(2))


@pytest.mark.parametrize("place", ["numpy", "strict", "torch"], indirect=True)
def test_a_term_that_is_not_finite_is_dropped_and_counted(place):
    xp, device = place
    good, bad = (xp.asarray(np.full((2, 2), value), device=device) for value in (1.0, np.nan))
    stats = optim.FactorStats().update(bad, 0.9).update(good, 0.9).update(bad, 0.9).update(3 * good, 0.9)
    assert (int(stats.count), int(stats.skipped)) == (2, 2)
    assert abs(float(stats.matrix[0, 0]) - 1.2) <= 10 * EPS


def test_half_precision_is_accumulated_in_single():
    import torch

    a = torch.full((5000, 1), 0.1, dtype=torch.bfloat16)
    A = optim.input_factor(a, bias=True)
    assert A.dtype == torch.float32
    assert optim.FactorStats().update(A.to(torch.bfloat16), 0.9).matrix.dtype == torch.float32


def test_statistics_read_no_value(place):
    xp, device = place
    a, h = (xp.asarray(normal(i, 6, 2, 3), device=device) for i in (0, 1))
    A, G = optim.input_factor(a, bias=True), optim.output_factor(h, terms=6)
    stats = optim.FactorStats().update(A, 0.9).update(A, 0.9, mode="warmup")
    assert (stats.matrix.shape, G.shape) == ((4, 4), (3, 3))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"rnla\.optim\.input_factor: approx must be one of 'expand', 'reduce'"):
        optim.input_factor(np.eye(2), approx="mean")
    with pytest.raises(ValueError, match="a must be real floating"):
        optim.input_factor(np.eye(2) * 1j)
    with pytest.raises(TypeError, match="h must be an array"):
        optim.output_factor([[1.0]], terms=1)
    with pytest.raises(TypeError, match="a must be an array"):
        optim.input_factor(np.ma.ones((2, 2)))
    with pytest.raises(ValueError, match="terms must be positive"):
        optim.output_factor(np.eye(2), terms=0)
    with pytest.raises(ValueError, match=r"rho must be in \[0, 1\)"):
        optim.ema_update(np.eye(2), np.eye(2), 1.0, 1)
    with pytest.raises(ValueError, match=r"new must have shape \(2, 2\)"):
        optim.ema_update(np.eye(2), np.eye(3), 0.9, 1)
    with pytest.raises(ValueError, match="groups must divide"):
        optim.conv_input_factor(np.ones((1, 3, 4, 4)), 2, groups=2)
    with pytest.raises(ValueError, match="padding must be a number where stride is above 1"):
        optim.unfold2d(np.ones((1, 1, 4, 4)), 2, stride=2, padding="same")
    with pytest.raises(ValueError, match="x must be at least as large as the kernel"):
        optim.unfold2d(np.ones((1, 1, 2, 2)), 3)
