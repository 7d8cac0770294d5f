"""The grid RNN of bench_nn.py and its gradients in NumPy, cell by cell, and PyTorch, by diagonals.

A problem is (x, W_in, W_west, W_north, b); `forward(problem)` and `gradient(problem, dh)` return a
function of no arguments that computes h, or h and the gradients with respect to the five arguments.
"""

from collections.abc import Callable, Iterator

import numpy as np

Arrays = tuple[np.ndarray, ...]


def diagonals(G1: int, G2: int) -> Iterator[tuple[int, int]]:
    """The rows [first, last) of every anti-diagonal."""
    for d in range(G1 + G2 - 1):
        yield max(0, d - G2 + 1), min(G1, d + 1)


# ---- NumPy: a double loop over the cells of each sample ------------------------------------------


def numpy_forward(problem: Arrays) -> Callable[[], np.ndarray]:
    x, W_in, W_west, W_north, b = problem

    def call():
        Bt, G1, G2, _ = x.shape
        h = np.zeros((Bt, G1 + 1, G2 + 1, len(b)), x.dtype)
        for t in range(Bt):
            inputs, states = x[t] @ W_in.T + b, h[t]
            for i in range(G1):
                for j in range(G2):
                    a = inputs[i, j] + W_west @ states[i + 1, j] + W_north @ states[i, j + 1]
                    np.tanh(a, out=states[i + 1, j + 1])
        return h[:, 1:, 1:]

    return call


def numpy_gradient(problem: Arrays, dh: np.ndarray) -> Callable[[], Arrays]:
    """The formulas as a double loop: the weights' gradients are outer products, cell by cell."""
    x, W_in, W_west, W_north, b = problem
    forward = numpy_forward(problem)

    def call():
        h = forward()
        Bt, G1, G2, _ = x.shape
        dW_in, dW_west, dW_north, db = (np.zeros_like(a) for a in problem[1:])
        dx = np.empty_like(x)
        for t in range(Bt):
            da = np.zeros((G1 + 1, G2 + 1, len(b)), x.dtype)
            for i in reversed(range(G1)):
                for j in reversed(range(G2)):
                    back = dh[t, i, j] + da[i, j + 1] @ W_west + da[i + 1, j] @ W_north
                    a = da[i, j] = back * (1 - h[t, i, j] ** 2)
                    dx[t, i, j] = a @ W_in
                    dW_in += np.outer(a, x[t, i, j])
                    db += a
                    if j > 0:
                        dW_west += np.outer(a, h[t, i, j - 1])
                    if i > 0:
                        dW_north += np.outer(a, h[t, i - 1, j])
        return h, dx, dW_in, dW_west, dW_north, db

    return call


def numpy_gradient_by_sample(problem: Arrays, dh: np.ndarray) -> Callable[[], Arrays]:
    """A double loop for the adjoints; dx and the weights' gradients are one product per sample."""
    x, W_in, W_west, W_north, b = problem
    forward = numpy_forward(problem)

    def call():
        h = forward()
        Bt, G1, G2, D = x.shape
        dWs = [np.zeros_like(W) for W in (W_in, W_west, W_north)]
        dx, db = np.empty_like(x), np.zeros_like(b)
        for t in range(Bt):
            da = np.zeros((G1 + 1, G2 + 1, len(b)), x.dtype)
            for i in reversed(range(G1)):
                for j in reversed(range(G2)):
                    back = dh[t, i, j] + da[i, j + 1] @ W_west + da[i + 1, j] @ W_north
                    da[i, j] = back * (1 - h[t, i, j] ** 2)
            a = da[:G1, :G2]
            rows = a.reshape(-1, len(b))
            dx[t] = a @ W_in
            dWs[0] += rows.T @ x[t].reshape(-1, D)
            dWs[1] += a[:, 1:].reshape(-1, len(b)).T @ h[t][:, :-1].reshape(-1, len(b))
            dWs[2] += a[1:].reshape(-1, len(b)).T @ h[t][:-1].reshape(-1, len(b))
            db += rows.sum(0)
        return h, dx, *dWs, db

    return call


# ---- PyTorch: one diagonal of the whole batch at a time ------------------------------------------


def torch_wavefront(problem: Arrays) -> tuple[Callable, Callable] | None:
    """(without gradients, with gradients), functions of tensors; None without PyTorch.

    Cells lie in the order of their diagonals, (cells, batch, H), so that what a diagonal reads is
    contiguous; input projection and bias are one product before the sweep.
    """
    try:
        import torch
    except ImportError:
        return None
    Bt, G1, G2, D = problem[0].shape
    H = len(problem[4])
    spans = list(diagonals(G1, G2))
    order = torch.tensor(
        [i * G2 + d - i for d, (lo, hi) in enumerate(spans) for i in range(lo, hi)]
    )
    back = torch.argsort(order)
    starts = np.cumsum([0, *(hi - lo for lo, hi in spans)]).tolist()

    def neighbours():
        """What every diagonal but the first takes from the one before it.

        Its rows [lo, hi); the first row of the diagonal before it; and the ranges of its rows that
        have a western and a northern neighbour there.
        """
        for d in range(1, len(spans)):
            (lo, hi), (plo, phi) = spans[d], spans[d - 1]
            yield lo, hi, plo, (max(lo, plo), min(hi, phi)), (max(lo, plo + 1), min(hi, phi + 1))

    plan = list(neighbours())

    def project(x, W_in, b):
        cells = x.reshape(Bt, G1 * G2, D).transpose(0, 1).index_select(0, order)
        return torch.addmm(b, cells.reshape(-1, D), W_in.t()).reshape(G1 * G2, Bt, H)

    def restore(h):
        return h.index_select(0, back).transpose(0, 1).reshape(Bt, G1, G2, H)

    def in_place(x, W_in, W_west, W_north, b):
        h = project(x, W_in, b)
        west, north = W_west.t(), W_north.t()
        h[:1].tanh_()
        for d, (lo, _, plo, w, n) in enumerate(plan, start=1):
            a, prev = h[starts[d] : starts[d + 1]], h[starts[d - 1] : starts[d]]
            a[w[0] - lo : w[1] - lo].view(-1, H).addmm_(
                prev[w[0] - plo : w[1] - plo].view(-1, H), west
            )
            a[n[0] - lo : n[1] - lo].view(-1, H).addmm_(
                prev[n[0] - 1 - plo : n[1] - 1 - plo].view(-1, H), north
            )
            a.tanh_()
        return restore(h)

    def padded(prev, first, last, lo, hi, plo):
        part = prev[first - plo : last - plo]
        return (
            part
            if last - first == hi - lo
            else torch.nn.functional.pad(part, (0, 0, 0, 0, first - lo, hi - last))
        )

    def for_autograd(x, W_in, W_west, W_north, b):
        a = project(x, W_in, b).split([hi - lo for lo, hi in spans])
        west, north = W_west.t(), W_north.t()
        h = [torch.tanh(a[0])]
        for d, (lo, hi, plo, w, n) in enumerate(plan, start=1):
            from_west = padded(h[-1], *w, lo, hi, plo)
            from_north = padded(h[-1], n[0], n[1], lo, hi, plo + 1)
            z = torch.addmm(a[d].reshape(-1, H), from_west.reshape(-1, H), west)
            h.append(
                torch.tanh(torch.addmm(z, from_north.reshape(-1, H), north)).reshape(hi - lo, Bt, H)
            )
        return restore(torch.cat(h))

    return in_place, for_autograd


def torch_forward(problem: Arrays) -> Callable[[], np.ndarray]:
    import torch

    in_place, _ = torch_wavefront(problem)
    tensors = [torch.from_numpy(a) for a in problem]

    def call():
        with torch.no_grad():
            return in_place(*tensors).numpy()

    return call


def torch_gradient(problem: Arrays, dh: np.ndarray) -> Callable[[], Arrays]:
    import torch

    _, for_autograd = torch_wavefront(problem)
    tensors = [torch.from_numpy(a).requires_grad_() for a in problem]
    adjoint = torch.from_numpy(dh)

    def call():
        h = for_autograd(*tensors)
        return h.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(h, tensors, adjoint))

    return call
