# Momentum in floating point, in place; included by _kernels.pyx.
#
#     forwards    p ← βp − αg         θ ← θ + p
#     backwards   θ ← θ − p           p ← (p + αg)/β         g at the θ of the line above
#
# One pass over θ, p and g.  Numbers that do not lie side by side go through tiles, so that every element meets the same
# vector operations whatever the strides.

cdef enum:
    TILE = 1024                         # elements of each array at a time, where they must be gathered
    PIECE = 16384                       # elements of a task

cdef enum:
    MAX_AXES = 64                       # of an array, NumPy's NPY_MAXDIMS

cdef struct Update:                     # θ, p, g (..., n), any strides
    char *theta
    char *p
    const char *grad
    int nd                              # leading axes
    cnp.npy_intp shape[MAX_AXES]        # our own: another thread may give the arrays another shape meanwhile
    cnp.npy_intp ts[MAX_AXES]
    cnp.npy_intp ps[MAX_AXES]
    cnp.npy_intp gs[MAX_AXES]
    ix n, rows, per, parts              # a task does `per` rows, or one of `parts` of a row
    double alpha, beta                  # rounded to `real` in the tasks, whose floating-point state is the default one
    bint back


cdef inline void update_vectors(real *theta, real *p, const real *g, ix n, real alpha, real beta, const bint back) noexcept nogil:
    """IN OUT theta, p (n,); IN g (n,); n a multiple of VL."""
    cdef vf a = vset1(alpha if back else -alpha), b = vset1(beta), q, t
    cdef ix i = 0
    while i < n:
        q, t = vload(p + i), vload(theta + i)
        if back:
            vstore(theta + i, t - q)
            vstore(p + i, vfma(a, vload(g + i), q) / b)
        else:
            q = vfma(b, q, a * vload(g + i))
            vstore(p + i, q)
            vstore(theta + i, t + q)
        i += VL


cdef inline void gather(const char *source, ix stride, ix n, real *tile) noexcept nogil:
    cdef ix i
    for i in range(n):
        tile[i] = (<const real *>(source + i * stride))[0]


cdef inline void scatter(const real *tile, ix stride, ix n, char *target) noexcept nogil:
    cdef ix i
    for i in range(n):
        (<real *>(target + i * stride))[0] = tile[i]


cdef inline void update_row(const Update *u, char *theta, char *p, const char *g, ix n, real *tiles, const bint back) noexcept nogil:
    """n elements of a row; tiles (3, TILE)."""
    cdef ix ts = u.ts[u.nd], ps = u.ps[u.nd], gs = u.gs[u.nd], done = 0, m, whole
    cdef real *t = tiles
    cdef real *q = tiles + TILE
    cdef real *d = tiles + 2 * TILE
    if ts == sizeof(real) and ps == sizeof(real) and gs == sizeof(real):
        done = n - n % VL
        update_vectors(<real *>theta, <real *>p, <const real *>g, done, <real>u.alpha, <real>u.beta, back)
    while done < n:
        m = min(<ix>TILE, n - done)
        whole = (m + VL - 1) // VL * VL
        memset(t + m, 0, (whole - m) * sizeof(real))        # lanes without an element are computed with
        memset(q + m, 0, (whole - m) * sizeof(real))
        memset(d + m, 0, (whole - m) * sizeof(real))
        gather(theta + done * ts, ts, m, t)
        gather(p + done * ps, ps, m, q)
        gather(g + done * gs, gs, m, d)
        update_vectors(t, q, d, whole, <real>u.alpha, <real>u.beta, back)
        scatter(t, ts, m, theta + done * ts)
        scatter(q, ps, m, p + done * ps)
        done += m


cdef inline ix offset(const Update *u, ix row, const cnp.npy_intp *strides) noexcept nogil:
    """Bytes from the first row to this one."""
    cdef ix bytes = 0
    cdef int axis = u.nd - 1
    while axis >= 0:
        bytes += row % u.shape[axis] * strides[axis]
        row //= u.shape[axis]
        axis -= 1
    return bytes


cdef void update_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Update *u = <Update *>args
    cdef real *tiles = <real *>worker.scratch
    cdef ix row = i // u.parts * u.per, first = i % u.parts * PIECE, end = min(u.rows, row + u.per)
    cdef ix n = min(u.n - first, <ix>PIECE) if u.parts > 1 else u.n
    cdef char *theta
    cdef char *p
    cdef const char *g
    for row in range(row, end):
        theta = u.theta + offset(u, row, u.ts) + first * u.ts[u.nd]
        p = u.p + offset(u, row, u.ps) + first * u.ps[u.nd]
        g = u.grad + offset(u, row, u.gs) + first * u.gs[u.nd]
        if u.back:
            update_row(u, theta, p, g, n, tiles, True)
        else:
            update_row(u, theta, p, g, n, tiles, False)


cdef bint alike(cnp.ndarray a, cnp.ndarray theta) noexcept:
    """Whether kernels can read `a`, which has theta's shape and is not empty."""
    cdef int axis
    if (a is None or cnp.PyArray_TYPE(a) != of_real() or not cnp.PyArray_ISBEHAVED_RO(a) or cnp.PyArray_SIZE(a) == 0
            or not 0 < cnp.PyArray_NDIM(a) <= MAX_AXES or cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(theta)):
        return False
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, axis) != cnp.PyArray_DIM(theta, axis):
            return False
    return True


def update(cnp.ndarray theta, cnp.ndarray p, cnp.ndarray grad, double alpha, double beta, bint back, tuple copies):
    """IN OUT theta, p (..., n); IN grad of the same shape; none of them empty.  OUT copies: pairs (to, from) of arrays, for
    what theta and p only stand in for.  Not interruptible, and one bytecode: nothing is ever half done."""
    cdef Update u
    cdef int axis
    expect(alike(theta, theta) and alike(p, theta) and alike(grad, theta) and cnp.PyArray_ISWRITEABLE(theta)
           and cnp.PyArray_ISWRITEABLE(p))
    u.theta, u.p, u.grad = <char *>cnp.PyArray_DATA(theta), <char *>cnp.PyArray_DATA(p), <const char *>cnp.PyArray_DATA(grad)
    u.nd = cnp.PyArray_NDIM(theta) - 1
    for axis in range(u.nd + 1):
        u.shape[axis], u.ts[axis] = cnp.PyArray_DIM(theta, axis), cnp.PyArray_STRIDE(theta, axis)
        u.ps[axis], u.gs[axis] = cnp.PyArray_STRIDE(p, axis), cnp.PyArray_STRIDE(grad, axis)
    u.n, u.rows = u.shape[u.nd], 1
    for axis in range(u.nd):
        u.rows *= u.shape[axis]
    u.parts = (u.n + PIECE - 1) // PIECE
    u.per = max(<ix>1, PIECE // u.n)
    u.alpha, u.beta, u.back = alpha, beta, back
    run(update_task, &u, (u.rows + u.per - 1) // u.per * u.parts, 3. * TILE * sizeof(real), 1.5e-10 * u.rows * u.n * sizeof(real), False)
    for target, source in copies:
        cnp.PyArray_CopyInto(target, source)
