# Bias and activation over the pre-activations of a layer, and the way back; included by _kernels.pyx.
#
# A task is a block of rows and columns: its size depends on the shape alone.  The bias is repeated past its end, so
# that rows too short for a vector are one flat stretch all the same.  Column sums are taken over groups of 64 rows in
# the working precision; the caller adds the groups up in float64.

cdef enum:
    COLUMNS = 256                       # of a task, where rows are longer
    SUM_ROWS = 64                       # of a group


cdef struct Layer:                      # all arrays (rows, columns), contiguous
    const real *x                       # IN pre-activations without their bias
    const real *dy                      # IN adjoint of the output, way back only
    real *out                           # OUT φ(x + bias), or dy ⊙ φ'(x + bias); may be x
    real *sums                          # OUT (groups, columns), column sums of out; or NULL
    const real *bias                    # (period + GL,), repeated
    ix rows, columns, period, blocks    # blocks of columns
    ix task_rows                        # a multiple of SUM_ROWS
    Curve curve


cdef inline vf span_value(const Layer *a, ix at, ix j, const Curve curve, const bint back) noexcept nogil:
    cdef vf x = vload(a.x + at) + vload(a.bias + j)
    return phi_vjp(x, vload(a.dy + at), curve) if back else phi(x, curve)


cdef inline void activation_vectors(const Layer *a, ix at, ix n, ix j, const Curve curve, const bint back) noexcept nogil:
    """n elements from `at` on, whole vectors, the first of them with bias[j]."""
    cdef ix step = VL % a.period, end = at + n
    while at < end:
        vstore(a.out + at, span_value(a, at, j, curve, back))
        at += VL
        j += step
        if j >= a.period:
            j -= a.period


cdef void vectors(const Layer *a, ix at, ix n, ix j) noexcept nogil:
    if a.curve == IDENTITY:
        activation_vectors(a, at, n, j, IDENTITY, False)
    elif a.curve == SIGMOID:
        activation_vectors(a, at, n, j, SIGMOID, False)
    elif a.curve == TANH:
        activation_vectors(a, at, n, j, TANH, False)
    elif a.curve == RELU:
        activation_vectors(a, at, n, j, RELU, False)
    elif a.curve == SOFTPLUS:
        activation_vectors(a, at, n, j, SOFTPLUS, False)
    elif a.curve == SILU:
        activation_vectors(a, at, n, j, SILU, False)
    else:
        activation_vectors(a, at, n, j, GELU, False)


cdef void vectors_vjp(const Layer *a, ix at, ix n, ix j) noexcept nogil:
    if a.curve == SIGMOID:
        activation_vectors(a, at, n, j, SIGMOID, True)
    elif a.curve == TANH:
        activation_vectors(a, at, n, j, TANH, True)
    elif a.curve == RELU:
        activation_vectors(a, at, n, j, RELU, True)
    elif a.curve == SOFTPLUS:
        activation_vectors(a, at, n, j, SOFTPLUS, True)
    elif a.curve == SILU:
        activation_vectors(a, at, n, j, SILU, True)
    else:
        activation_vectors(a, at, n, j, GELU, True)


cdef void span(const Layer *a, ix at, ix n, ix j) noexcept nogil:
    """n elements from `at` on; the last of them by way of a vector of their own, so that φ stands in the code once."""
    cdef ix tail = n % VL
    cdef Layer last
    cdef real pad[3][64]
    (vectors if a.dy is NULL else vectors_vjp)(a, at, n - tail, j)
    if tail:
        at += n - tail
        memset(pad, 0, sizeof(pad))
        memcpy(pad[0], a.x + at, tail * sizeof(real))
        if a.dy is not NULL:
            memcpy(pad[1], a.dy + at, tail * sizeof(real))
        last.x, last.dy, last.out, last.bias, last.period, last.curve = pad[0], pad[1], pad[2], a.bias, a.period, a.curve
        (vectors if a.dy is NULL else vectors_vjp)(&last, 0, VL, (j + n - tail) % a.period)
        memcpy(a.out + at, pad[2], tail * sizeof(real))


cdef void activation_rows(const Layer *a, ix row, ix rows, ix column, ix width) noexcept nogil:
    """Rows that are whole go as one."""
    cdef ix lines = rows, n = width, at = row * a.columns + column, j = column % a.period, r
    if width == a.columns:
        lines, n = 1, rows * width
    for r in range(lines):
        span(a, at, n, j)
        at += a.columns


cdef void column_sums(const real *x, ix stride, ix rows, ix width, real *sums) noexcept nogil:
    """OUT sums (width,) of x (rows, width), rows ascending."""
    cdef ix r, c
    memset(sums, 0, width * sizeof(real))
    for r in range(rows):
        c = 0
        while c + VL <= width:
            vstore(sums + c, vload(sums + c) + vload(x + c))
            c += VL
        while c < width:
            sums[c] += x[c]
            c += 1
        x += stride


cdef void layer_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef const Layer *a = <const Layer *>args
    cdef ix row = i // a.blocks * a.task_rows, last = min(a.rows, row + a.task_rows), rows
    cdef ix column = i % a.blocks * COLUMNS, width = min(<ix>COLUMNS, a.columns - column)
    while row < last and not interrupted(worker):
        rows = min(<ix>SUM_ROWS, last - row)
        if a.x is not NULL:
            activation_rows(a, row, rows, column, width)
        if a.sums is not NULL:
            column_sums(a.out + row * a.columns + column, a.columns, rows, width,
                        a.sums + row // SUM_ROWS * a.columns + column)
        row += rows


cdef cnp.ndarray set_bias(Layer *a, cnp.ndarray bias):
    """Repeated from its start for GL more; without a bias −0, which changes nothing.  Keep what is returned."""
    cdef const real *b = NULL
    cdef real *to
    cdef ix i
    a.period = 1
    if bias is not None:
        b, a.period = <real *>cnp.PyArray_DATA(bias), cnp.PyArray_DIM(bias, 0)
    cdef cnp.ndarray room = numbers(a.period + GL, False)
    to = <real *>cnp.PyArray_DATA(room)
    for i in range(a.period + GL):
        to[i] = -0.0 if b is NULL else b[i % a.period]
    a.bias = to
    return room


cdef cnp.ndarray set_sums(Layer *a, cnp.ndarray like):
    cdef ix groups = (cnp.PyArray_DIM(like, 0) + SUM_ROWS - 1) // SUM_ROWS
    cdef cnp.ndarray sums = np.empty((groups, cnp.PyArray_DIM(like, 1)), like.dtype)
    a.sums = <real *>cnp.PyArray_DATA(sums)
    return sums


cdef int run_layer(Layer *a, cnp.ndarray like) except -1:
    cdef double pass_over = 0.4e-9 * sizeof(real) / 4 * cnp.PyArray_SIZE(like)
    a.rows, a.columns = cnp.PyArray_DIM(like, 0), cnp.PyArray_DIM(like, 1)
    a.blocks = (a.columns + COLUMNS - 1) // COLUMNS
    a.task_rows = SUM_ROWS * max(<ix>1, COLUMNS // a.columns)
    return run(layer_task, a, (a.rows + a.task_rows - 1) // a.task_rows * a.blocks, 0, pass_over)


cdef int expect_layer(cnp.ndarray x, cnp.ndarray bias, cnp.ndarray out) except -1:
    expect(ranked(x, 2))
    expect(holds(x, cnp.PyArray_SIZE(x)) and holds(out, cnp.PyArray_SIZE(x)) and may_hold(bias, cnp.PyArray_DIM(x, 1)))
    return 0


def activate(cnp.ndarray x, cnp.ndarray bias, Curve curve, cnp.ndarray out, /):
    """OUT out (K, m) = φ(x + bias), which may be x; contiguous, as are bias (m,) or None."""
    cdef Layer a
    expect_layer(x, bias, out)
    if cnp.PyArray_SIZE(x) == 0:
        return
    room = set_bias(&a, bias)
    a.x, a.out = <real *>cnp.PyArray_DATA(x), <real *>cnp.PyArray_DATA(out)
    a.dy, a.sums, a.curve = NULL, NULL, curve
    run_layer(&a, x)


def activate_vjp(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray bias, Curve curve, cnp.ndarray out, /):
    """OUT out (K, m) = dy ⊙ φ'(x + bias), which may be x.  With a bias, what `column_groups` says of it; else None."""
    cdef Layer a
    cdef cnp.ndarray sums = None
    expect_layer(x, bias, out)
    expect(holds(dy, cnp.PyArray_SIZE(x)))
    a.sums = NULL
    if bias is not None:
        sums = set_sums(&a, x)
    if cnp.PyArray_SIZE(x) == 0:
        return sums
    room = set_bias(&a, bias)
    a.x, a.out = <real *>cnp.PyArray_DATA(x), <real *>cnp.PyArray_DATA(out)
    a.dy, a.curve = <real *>cnp.PyArray_DATA(dy), curve
    run_layer(&a, x)
    return sums


def column_groups(cnp.ndarray x, /):
    """The sums (groups, m) of x (K, m) over groups of rows."""
    cdef Layer a
    expect_layer(x, None, x)
    cdef cnp.ndarray sums = set_sums(&a, x)
    if cnp.PyArray_SIZE(x) == 0:
        return sums
    a.x, a.out = NULL, <real *>cnp.PyArray_DATA(x)
    run_layer(&a, x)
    return sums
