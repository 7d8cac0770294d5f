# Momentum in floating point, in place (derivations §4.5):
#
#     forwards    p ← βp − αg         θ ← θ + p
#     backwards   θ ← θ − p           p ← (p + αg)/β
#
# Backwards, g is evaluated at the θ that the first assignment restores.
#
# This is one pass over θ, p and g.  Numbers that do not lie side by side are gathered first, so
# that every element meets the same vector operations whatever the strides.
# needs: PIECE (_kernels.pyx)

cdef enum:
    AT_ONCE = 1024                      # numbers of each array gathered at a time

# alpha and beta are rounded to `real` inside the tasks, where the rounding mode is to nearest.
cdef struct Update:                     # θ, p, g (..., n)
    Rows rows
    Strided theta
    Strided p
    Strided grad
    double alpha, beta
    bint back

cdef struct Piece:                      # a piece of one row: where it starts in each array
    char *theta
    char *p
    const char *grad
    ix size


cdef inline void update_vectors(real *theta, real *p, const real *g, ix n, const Update *u,
                                const bint back) noexcept nogil:
    """IN OUT theta, p (n,); IN g (n,); n a multiple of VL."""
    cdef real alpha = <real>u.alpha
    cdef vf a = vset1(alpha if back else -alpha), b = vset1(<real>u.beta), q, t
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


cdef inline void pad(real *y, ix n) noexcept nogil:
    """OUT zeros behind y (n,), up to a whole vector, since arithmetic uses all its lanes."""
    memset(y + n, 0, (round_up(n, VL) - n) * sizeof(real))


cdef inline void update_piece(const Update *u, const Piece *piece, real *scratch,
                              const bint back) noexcept nogil:
    """IN OUT theta, p; IN grad; scratch (3, AT_ONCE)."""
    cdef int last = u.rows.leading
    cdef ix ts = u.theta.strides[last], ps = u.p.strides[last], gs = u.grad.strides[last]
    cdef ix done = 0, m
    cdef real *theta = scratch
    cdef real *p = scratch + AT_ONCE
    cdef real *g = scratch + 2 * AT_ONCE
    if ts == sizeof(real) and ps == sizeof(real) and gs == sizeof(real):
        done = piece.size - piece.size % VL
        update_vectors(<real *>piece.theta, <real *>piece.p, <const real *>piece.grad, done, u,
                       back)
    while done < piece.size:
        m = min(<ix>AT_ONCE, piece.size - done)
        pad(theta, m)
        pad(p, m)
        pad(g, m)
        gather(piece.theta + done * ts, ts, m, theta)
        gather(piece.p + done * ps, ps, m, p)
        gather(piece.grad + done * gs, gs, m, g)
        update_vectors(theta, p, g, round_up(m, VL), u, back)
        scatter(theta, ts, m, piece.theta + done * ts)
        scatter(p, ps, m, piece.p + done * ps)
        done += m


cdef inline Piece piece_of(const Update *u, ix row, ix part) noexcept nogil:
    """Piece number `part` of a row; the whole row if it is not divided."""
    cdef const Rows *rows = &u.rows
    cdef ix first = part * PIECE
    cdef int last = rows.leading
    cdef Piece piece
    piece.theta = row_start(rows, &u.theta, row) + first * u.theta.strides[last]
    piece.p = row_start(rows, &u.p, row) + first * u.p.strides[last]
    piece.grad = row_start(rows, &u.grad, row) + first * u.grad.strides[last]
    piece.size = min(rows.entries - first, <ix>PIECE) if rows.parts > 1 else rows.entries
    return piece


cdef void update_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef const Update *u = <const Update *>args
    cdef const Rows *rows = &u.rows
    cdef ix row = i // rows.parts * rows.per_task, part = i % rows.parts
    cdef ix end = min(rows.count, row + rows.per_task)
    cdef Piece piece
    for row in range(row, end):
        piece = piece_of(u, row, part)
        if u.back:
            update_piece(u, &piece, <real *>worker.scratch, True)
        else:
            update_piece(u, &piece, <real *>worker.scratch, False)
