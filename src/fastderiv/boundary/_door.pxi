# What stands between Python and the kernels: memory, checks of arrays, packing of a network.
# needs: Batch, Layer, Net, padded (_net.pxi)

cdef real *aligned(cnp.ndarray store) noexcept:
    """The first cache line that begins in `store`."""
    return <real *>((<uintptr_t>cnp.PyArray_DATA(store) + 63) & ~<uintptr_t>63)


cdef cnp.ndarray reals(double n):
    """n zeros and what `aligned` may skip; sizes are doubles, as in `run`."""
    if not (n + 8) * sizeof(real) < 2.0**48:
        raise MemoryError(f"no memory for {(n + 8) * sizeof(real):.0f} bytes of a network")
    return np.zeros(<ix>n + 8, np.float64)


cdef int expect_reals(str name, cnp.ndarray a, int ndim, bint contiguous) except -1:
    """The kernels take pointers: native, aligned float64 of `ndim` axes, or an error."""
    if a is None:
        raise TypeError(f"{name} is None; expected an array")
    if cnp.PyArray_TYPE(a) != cnp.NPY_DOUBLE or not cnp.PyArray_ISBEHAVED_RO(a):
        raise TypeError(f"{name} has dtype {a.dtype}; expected native, aligned float64")
    if cnp.PyArray_NDIM(a) != ndim:
        raise ValueError(f"{name} has {cnp.PyArray_NDIM(a)} axes; expected {ndim}")
    if contiguous and not cnp.PyArray_IS_C_CONTIGUOUS(a):
        raise ValueError(f"{name} is not C-contiguous")
    return 0


cdef int expect_length(str name, ix given, ix wanted) except -1:
    if given != wanted:
        raise ValueError(f"{name} is {given}; expected {wanted}")
    return 0


cdef ix expect_index(str name, ix i, ix n) except -1:
    if not 0 <= i < n:
        raise IndexError(f"{name} is {i}; expected an index from 0 to {n - 1}")
    return i


cdef int take_rows(const Net *net, cnp.ndarray X, Batch *call) except -1:
    """OUT call: the rows X (m, n_in), float64 of any strides, and nothing else."""
    memset(call, 0, sizeof(Batch))
    expect_reals("X", X, 2, False)
    expect_length("X.shape[1]", X.shape[1], net.layers[0].n_in)
    call.net, call.X, call.m = net, <const real *>cnp.PyArray_DATA(X), X.shape[0]
    call.x_row = cnp.PyArray_STRIDE(X, 0) // <ix>sizeof(real)
    call.x_col = cnp.PyArray_STRIDE(X, 1) // <ix>sizeof(real)
    return 0


cdef int take_out(cnp.ndarray out, ix n, Batch *call) except -1:
    """OUT call.out: `out`, which must take n numbers for each of the rows."""
    expect_reals("out", out, cnp.PyArray_NDIM(out), True)
    if not cnp.PyArray_ISWRITEABLE(out):
        raise ValueError("out is read-only")
    if <double>cnp.PyArray_SIZE(out) != <double>call.m * n:
        raise ValueError(f"out has {cnp.PyArray_SIZE(out)} numbers; expected {call.m} rows of {n}")
    call.out = <real *>cnp.PyArray_DATA(out)
    return 0


cdef cnp.ndarray own_indices(str name, cnp.ndarray given, ix size, ix end):
    """A copy of `given` (size,), contiguous intp, whose numbers are from 0 to end − 1.

    Each number is read once, so that nobody can change it between the check and its use.
    """
    cdef cnp.ndarray own = np.empty(size, np.intp)
    cdef const ix *at = <const ix *>cnp.PyArray_DATA(given)
    cdef ix *to = <ix *>cnp.PyArray_DATA(own)
    cdef ix i, one
    if cnp.PyArray_TYPE(given) != cnp.NPY_INTP or not cnp.PyArray_ISCARRAY_RO(given):
        raise TypeError(f"{name} has dtype {given.dtype}; expected native, contiguous intp")
    expect_length(f"the size of {name}", cnp.PyArray_SIZE(given), size)
    for i in range(size):
        one = at[i]
        to[i] = expect_index(name, one, end)
    return own


cdef int describe_layer(ix i, cnp.ndarray weights, cnp.ndarray biases, Net *net) except -1:
    """OUT net: what layer i, weights (n_in, n_out) and biases (n_out,), adds to it."""
    cdef Layer *layer = &net.layers[i]
    expect_reals(f"weights[{i}]", weights, 2, True)
    expect_reals(f"biases[{i}]", biases, 1, True)
    layer.n_in, layer.n_out = weights.shape[0], weights.shape[1]
    expect_length(f"the size of biases[{i}]", biases.shape[0], layer.n_out)
    if i > 0:
        expect_length(f"weights[{i}].shape[0]", layer.n_in, net.outputs)
    if max(layer.n_in, layer.n_out) >= <ix>1 << 58:
        raise MemoryError(f"no memory for {8. * max(layer.n_in, layer.n_out):.0f} bytes of a layer")
    net.outputs = layer.n_out
    net.widest = max(net.widest, max(padded(layer.n_in), padded(layer.n_out)))
    net.macs += <double>layer.n_in * layer.n_out
    if i > 0:
        net.slopes += padded(layer.n_in)
        net.sigmoids += layer.n_in
    return 0


cdef real *pack_layer(cnp.ndarray weights, cnp.ndarray biases, Layer *layer,
                      real *at) except NULL:
    """OUT layer: its panels and biases, from `at` on; returns where the next layer's begin."""
    cdef const real *w = <const real *>cnp.PyArray_DATA(weights)
    cdef ix first, k, o
    layer.w = at
    for first in range(0, layer.n_out, GL):
        PyErr_CheckSignals()
        for k in range(layer.n_in):
            for o in range(min(<ix>GL, layer.n_out - first)):
                at[o] = w[k * layer.n_out + first + o]
            at += GL
    layer.b = at
    memcpy(at, cnp.PyArray_DATA(biases), layer.n_out * sizeof(real))
    return at + padded(layer.n_out)
