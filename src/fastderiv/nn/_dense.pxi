# Bias and activation over the pre-activations of a fully connected layer, and their adjoint:
# docs/derivations.md §3.2 and §5.1.
#
# A task works on a block of rows and columns, whose size depends on the shape alone.  The bias is
# repeated past its end, so that vectors may run from one row into the next.  Column sums
# are taken over groups of SUM_ROWS rows in the working precision; the caller adds the groups up in
# float64.
#
# needs: expect, holds, may_hold, new_array, ranked, reals_of (_arrays.pxi)
# needs: Curve, GELU, IDENTITY, phi, phi_vjp, RELU, SIGMOID, SILU, SOFTPLUS, TANH (_activations.pxi)

cdef enum:
    TASK_COLUMNS = 256                  # of one task, where rows are longer
    SUM_ROWS = 64                       # of one group of column sums


cdef struct Layer:                      # all arrays (rows, columns), contiguous
    const real *x                       # IN pre-activations without their bias; NULL: sums only
    const real *dy                      # IN adjoint of the output; NULL: the forward pass
    real *out                           # OUT φ(x + bias) or dy ⊙ φ'(x + bias); may be x
    real *sums                          # OUT (groups, columns), column sums of out; or NULL
    const real *bias                    # (period + GL,), repeated
    ix rows, columns, period
    ix column_blocks                    # of TASK_COLUMNS each
    ix task_rows                        # a multiple of SUM_ROWS
    Curve curve


# ---- φ over a stretch of consecutive elements ----------------------------------------------------

cdef inline vf one_vector(const Layer *a, ix i, ix j, const Curve curve,
                          const bint adjoint) noexcept nogil:
    cdef vf x = vload(a.x + i) + vload(a.bias + j)
    return phi_vjp(x, vload(a.dy + i), curve) if adjoint else phi(x, curve)


cdef inline void whole_vectors(const Layer *a, ix i, ix n, ix j, const Curve curve,
                               const bint adjoint) noexcept nogil:
    """n elements from the i-th on, whole vectors; bias[j] belongs to the first element."""
    cdef ix step = VL % a.period, end = i + n
    while i < end:
        vstore(a.out + i, one_vector(a, i, j, curve, adjoint))
        i += VL
        j += step
        if j >= a.period:
            j -= a.period


cdef inline void with_curve(const Layer *a, ix i, ix n, ix j, const bint adjoint) noexcept nogil:
    if a.curve == IDENTITY:
        whole_vectors(a, i, n, j, IDENTITY, adjoint)
    elif a.curve == SIGMOID:
        whole_vectors(a, i, n, j, SIGMOID, adjoint)
    elif a.curve == TANH:
        whole_vectors(a, i, n, j, TANH, adjoint)
    elif a.curve == RELU:
        whole_vectors(a, i, n, j, RELU, adjoint)
    elif a.curve == SOFTPLUS:
        whole_vectors(a, i, n, j, SOFTPLUS, adjoint)
    elif a.curve == SILU:
        whole_vectors(a, i, n, j, SILU, adjoint)
    else:
        whole_vectors(a, i, n, j, GELU, adjoint)


# Two functions of seven loops: in one of fourteen, GCC made some loops 4 to 8 % slower.

cdef void forward_vectors(const Layer *a, ix i, ix n, ix j) noexcept nogil:
    with_curve(a, i, n, j, False)


cdef void adjoint_vectors(const Layer *a, ix i, ix n, ix j) noexcept nogil:
    with_curve(a, i, n, j, True)


cdef inline void with_direction(const Layer *a, ix i, ix n, ix j) noexcept nogil:
    if a.dy is NULL:
        forward_vectors(a, i, n, j)
    else:
        adjoint_vectors(a, i, n, j)


cdef void stretch(const Layer *a, ix i, ix n, ix j) noexcept nogil:
    """n elements from the i-th on; bias[j] belongs to the first element.

    The last elements are too few for a vector.  They are copied into one, so that the code holds
    each φ once.
    """
    cdef ix tail = n % VL
    cdef Layer last
    cdef real x[GL]
    cdef real dy[GL]
    cdef real out[GL]
    with_direction(a, i, n - tail, j)
    if tail == 0:
        return
    i += n - tail
    memset(x, 0, sizeof(x))
    memset(dy, 0, sizeof(dy))
    memcpy(x, a.x + i, tail * sizeof(real))
    if a.dy is not NULL:
        memcpy(dy, a.dy + i, tail * sizeof(real))
    last = a[0]
    last.x, last.out = x, out
    last.dy = NULL if a.dy is NULL else dy
    with_direction(&last, 0, VL, (j + n - tail) % a.period)
    memcpy(a.out + i, out, tail * sizeof(real))


# ---- tasks ---------------------------------------------------------------------------------------

cdef void activate_rows(const Layer *a, ix row, ix rows, ix column, ix width) noexcept nogil:
    """A block of the layer.  If it has all columns, its rows are one stretch of memory."""
    cdef ix stretches = rows, n = width, i = row * a.columns + column, j = column % a.period, r
    if width == a.columns:
        stretches, n = 1, rows * width
    for r in range(stretches):
        stretch(a, i, n, j)
        i += a.columns


cdef void sum_columns(const real *x, ix stride, ix rows, ix width, real *sums) noexcept nogil:
    """OUT sums (width,) of x (rows, width), over ascending rows."""
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
    cdef ix row = i // a.column_blocks * a.task_rows, last = min(a.rows, row + a.task_rows), rows
    cdef ix column = i % a.column_blocks * TASK_COLUMNS
    cdef ix width = min(<ix>TASK_COLUMNS, a.columns - column)
    while row < last and not interrupted(worker):
        rows = min(<ix>SUM_ROWS, last - row)
        if a.x is not NULL:
            activate_rows(a, row, rows, column, width)
        if a.sums is not NULL:
            sum_columns(a.out + row * a.columns + column, a.columns, rows, width,
                        a.sums + row // SUM_ROWS * a.columns + column)
        row += rows


# ---- what the door calls -------------------------------------------------------------------------

cdef int expect_layer(cnp.ndarray x, cnp.ndarray bias, cnp.ndarray out) except -1:
    expect(ranked(x, 2))
    expect(holds(x, cnp.PyArray_SIZE(x)) and holds(out, cnp.PyArray_SIZE(x)))
    return expect(may_hold(bias, cnp.PyArray_DIM(x, 1)))


cdef cnp.ndarray set_bias(Layer *a, cnp.ndarray bias):
    """The bias, repeated up to period + GL numbers; without a bias −0, which changes no sum.

    The layer points into the array that is returned.
    """
    cdef const real *b = reals_of(bias)
    cdef real *repeated
    cdef ix i
    a.period = 1 if bias is None else cnp.PyArray_DIM(bias, 0)
    cdef cnp.ndarray owner = new_array(a.period + GL, False)
    repeated = reals_of(owner)
    for i in range(a.period + GL):
        repeated[i] = -0.0 if b is NULL else b[i % a.period]
    a.bias = repeated
    return owner


cdef cnp.ndarray set_sums(Layer *a, cnp.ndarray x):
    """An array for the column sums of all groups of the rows of x."""
    cdef ix groups = ceil_div(cnp.PyArray_DIM(x, 0), SUM_ROWS)
    cdef cnp.ndarray sums = np.empty((groups, cnp.PyArray_DIM(x, 1)), x.dtype)
    a.sums = reals_of(sums)
    return sums


cdef int run_layer(Layer *a, cnp.ndarray x) except -1:
    cdef double seconds = 0.4e-9 * sizeof(real) / 4 * cnp.PyArray_SIZE(x)     # a pass over memory
    a.rows, a.columns = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
    a.column_blocks = ceil_div(a.columns, TASK_COLUMNS)
    a.task_rows = SUM_ROWS * max(<ix>1, TASK_COLUMNS // a.columns)
    return run(layer_task, a, ceil_div(a.rows, a.task_rows) * a.column_blocks, 0, seconds)
