# Momentum in fixed point, exactly reversible (derivations §4.6 to §4.8); fixed.h has the
# arithmetic of a vector of parameters.
#
# θ and p are int64 multiples of 2**-44 in [−2**62, 2**62), β = n/d with d = 2**16, i is the
# information buffer, and // and mod round towards −∞:
#
#     forwards    s = i mod n;  i = i // n                    k = round(α·2**44·g)
#     (step)      r = (p·n + s) mod d;  p = (p·n + s) // d
#                 i = i·d + r; where the step spills, r is appended to the words and i stays
#                 p = p − k;  θ = θ + p
#
#     backwards   θ = θ − p;  p = p + k
#     (unstep)    r = i mod d;  i = i // d; where the step has spilled, r is taken from the words
#                 s = (p·d + r) mod n;  p = (p·d + r) // n
#                 i = i·n + s
# needs: PIECE (_kernels.pyx)

cdef extern from "relaxed.h" nogil:
    ctypedef int relaxed
    bint get(const relaxed *number)
    void put(relaxed *number, bint to)

cdef extern from "fixed.h" nogil:
    enum: LANES
    ctypedef double vd
    ctypedef size_t vu
    ctypedef struct Parameters:
        int64_t *theta
        int64_t *p
        double *buffer
        uint16_t *words
    ctypedef struct Rates:
        pass
    vd load_d(const double *p)
    void store_d(double *p, vd v)
    vu load_u(const int64_t *p)
    vu all_u(size_t x)
    vd load_real(const real *p)
    bint any_top(vu a)
    Rates rates_of(double alpha, unsigned n)
    void step_lanes(Parameters at, vd g, const Rates *rates, vu *bad, bint spill)
    void unstep_lanes(Parameters at, vd g, const Rates *rates, bint spilled)
    vu cannot_unstep(Parameters at, vd g, const Rates *rates)
    vd position(vu x)

cdef struct Fixed:                      # θ, p and i have whole vectors of the widest level
    Parameters first                    # words: NULL in a step that does not spill
    const real *grad                    # (size,)
    double *out                         # only `positions` has it
    double alpha
    unsigned n
    ix size
    relaxed bad                         # set by any thread that finds a reason to refuse


cdef inline void advance(Parameters *at, ix by) noexcept nogil:
    """IN OUT at: so many parameters further on."""
    at.theta += by
    at.p += by
    at.buffer += by
    if at.words is not NULL:
        at.words += by


cdef inline Parameters parameters(const Fixed *f, ix j) noexcept nogil:
    """The LANES parameters from j on."""
    cdef Parameters at = f.first
    advance(&at, j)
    return at


cdef inline vd gradient(const Fixed *f, ix j) noexcept nogil:
    """The gradient of the LANES parameters from j on, 0 behind the last."""
    cdef real tail[LANES]
    cdef int i
    if j + LANES <= f.size:
        return load_real(f.grad + j)
    for i in range(LANES):
        tail[i] = f.grad[j + i] if j + i < f.size else 0
    return load_real(tail)


cdef inline void step_piece(Fixed *f, ix j, ix end, const bint spill) noexcept nogil:
    cdef vu bad = all_u(0)
    cdef Rates rates = rates_of(f.alpha, f.n)
    cdef Parameters at = parameters(f, j)
    while j < end:
        step_lanes(at, gradient(f, j), &rates, &bad, spill)
        advance(&at, LANES)
        j += LANES
    if any_top(bad):
        put(&f.bad, True)


cdef inline void unstep_piece(Fixed *f, ix j, ix end, const bint spilled) noexcept nogil:
    cdef Rates rates = rates_of(f.alpha, f.n)
    cdef Parameters at = parameters(f, j)
    while j < end:
        unstep_lanes(at, gradient(f, j), &rates, spilled)
        advance(&at, LANES)
        j += LANES


cdef void step_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Fixed *f = <Fixed *>args
    cdef ix first = i * PIECE, end = min(f.size, first + PIECE)
    if f.first.words is NULL:
        step_piece(f, first, end, False)
    else:
        step_piece(f, first, end, True)


cdef void unstep_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Fixed *f = <Fixed *>args
    cdef ix first = i * PIECE, end = min(f.size, first + PIECE)
    if f.first.words is NULL:
        unstep_piece(f, first, end, False)
    else:
        unstep_piece(f, first, end, True)


cdef void check_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Sets `bad` unless every parameter can take the step back."""
    cdef Fixed *f = <Fixed *>args
    cdef ix j = i * PIECE, end = min(f.size, j + PIECE)
    cdef vu bad = all_u(0)
    cdef Rates rates = rates_of(f.alpha, f.n)
    cdef Parameters at = parameters(f, j)
    while j < end:
        bad |= cannot_unstep(at, gradient(f, j), &rates)
        advance(&at, LANES)
        j += LANES
    if any_top(bad):
        put(&f.bad, True)


cdef void positions_task(void *args, ix i, Worker *worker) noexcept nogil:
    """OUT out: θ if p is NULL, else θ − p, the position before the last step."""
    cdef Fixed *f = <Fixed *>args
    cdef ix j = i * PIECE, end = min(f.size, j + PIECE)
    while j < end:
        if f.first.p is NULL:
            store_d(f.out + j, position(load_u(f.first.theta + j)))
        else:
            store_d(f.out + j, position(load_u(f.first.theta + j) - load_u(f.first.p + j)))
        j += LANES


cdef int for_all(Fixed *f, task_t task, double seconds) except -1:
    """Run the task over all parameters, `seconds` estimated for each; Ctrl-C does not stop it."""
    run(task, f, ceil_div(f.size, PIECE), 0, seconds * f.size, False)
    return 0
