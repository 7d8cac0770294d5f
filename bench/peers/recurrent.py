"""The LSTM of bench_nn.py in PyTorch and in NumPy."""

import numpy as np

try:
    import torch
except ImportError:
    torch = None


def torch_lstm_calls(x, parameters, dh):
    """torch.nn.LSTM, or None."""
    if torch is None:
        return None
    layer = torch.nn.LSTM(x.shape[-1], dh.shape[-1], dtype=torch.from_numpy(x).dtype)
    with torch.no_grad():
        for own, given in zip(layer.parameters(), parameters, strict=True):
            own.copy_(torch.from_numpy(given))
    tx, tdh = torch.from_numpy(x.copy()).requires_grad_(), torch.from_numpy(dh)

    def forward():
        with torch.no_grad():
            return layer(tx)[0].numpy()

    def both():
        tx.grad = None
        layer.zero_grad()
        h = layer(tx)[0]
        h.backward(tdh)
        return h.detach().numpy(), [tx.grad.numpy(), *(p.grad.numpy() for p in layer.parameters())]

    return forward, both


def numpy_lstm(x, parameters):
    """A plain loop over steps: one product for all inputs, and one product for each step."""
    W, U, b1, b2 = parameters
    H = U.shape[1]
    z = x @ W.T + (b1 + b2)
    h = c = np.zeros((*x.shape[1:-1], H), x.dtype)
    out = []
    for zt in z:
        a = zt + h @ U.T
        i, f, o = (1 / (1 + np.exp(-a[..., k * H : (k + 1) * H])) for k in (0, 1, 3))
        c = f * c + i * np.tanh(a[..., 2 * H : 3 * H])
        h = o * np.tanh(c)
        out.append(h)
    return np.array(out)
