# Momentum in fixed point, exactly reversible; included by _kernels.pyx.
#
# θ and p are int64 multiples of 2**-44 in [−2**62, 2**62), β = n/d with d = 2**16, i is the information buffer, and
# // and mod round towards −∞ (docs/derivations.md §4):
#
#     forwards    s = i mod n;  i = i // n                    k = round(α·2**44·g)
#     (step)      r = (p·n + s) mod d;  p = (p·n + s) // d
#                 i = i·d + r, or r to the words and i as it is
#                 p = p − k;  θ = θ + p
#
#     backwards   θ = θ − p;  p = p + k
#     (unstep)    r = i mod d;  i = i // d, or r from the words and i as it is
#                 s = (p·d + r) mod n;  p = (p·d + r) // n
#                 i = i·n + s
#
# i is kept below 2**50 as a float64: quotients by n are then one multiplication and two additions on any CPU, and exact (see
# `quotient`), where a 64-bit division takes 20 to 40 cycles.  Everything is exact, so that every CPU level, compiler and
# number of threads gives the same bits; only α·2**44·g is rounded, once.

cdef extern from "relaxed.h" nogil:
    ctypedef int relaxed
    bint get(const relaxed *number)
    void put(relaxed *number, bint to)

cdef extern from *:
    """
    /* Lanes of double and of uint64_t, whatever `real` is: vd, vu; LANES of them. */
    #if VB
    enum { LANES = VB / 8 };
    typedef double   vd __attribute__((vector_size(VB)));
    typedef uint64_t vu __attribute__((vector_size(VB)));
    typedef double   vd_memory __attribute__((vector_size(VB), aligned(8), may_alias));
    typedef uint64_t vu_memory __attribute__((vector_size(VB), aligned(8), may_alias));
    VINL vd   load_d(const double *p)       { return *(const vd_memory *)p; }
    VINL void store_d(double *p, vd v)      { *(vd_memory *)p = v; }
    VINL vu   load_u(const int64_t *p)      { return *(const vu_memory *)p; }
    VINL void store_u(int64_t *p, vu v)     { *(vu_memory *)p = v; }
    VINL vd   all_d(double x)               { return x - (vd){0}; }
    VINL vu   all_u(uint64_t x)             { return x - (vu){0}; }
    VINL vu   bits_of(vd x)                 { return (vu)x; }
    VINL vd   of_bits(vu x)                 { return (vd)x; }
    VINL vu   below(vd a, vd b)             { return (vu)(a < b); }
    VINL int  any_top(vu a)                 { uint64_t t = 0; int i; for (i = 0; i < LANES; i++) t |= a[i]; return (int)(t >> 63); }
    VINL uint64_t lane(vu a, int i)         { return a[i]; }
    # ifdef SIMD_F64
    VINL vd   load_real(const real *p)      { return load_d(p); }
    # else
    typedef float half_memory __attribute__((vector_size(VB / 2), aligned(4), may_alias));
    VINL vd   load_real(const real *p)      { return __builtin_convertvector(*(const half_memory *)p, vd); }
    # endif
    #else
    enum { LANES = 1 };
    typedef double vd; typedef uint64_t vu;
    VINL vd   load_d(const double *p)       { return *p; }
    VINL void store_d(double *p, vd v)      { *p = v; }
    VINL vu   load_u(const int64_t *p)      { return (uint64_t)*p; }
    VINL void store_u(int64_t *p, vu v)     { *p = (int64_t)v; }
    VINL vd   all_d(double x)               { return x; }
    VINL vu   all_u(uint64_t x)             { return x; }
    VINL vu   bits_of(vd x)                 { vu y; memcpy(&y, &x, sizeof y); return y; }
    VINL vd   of_bits(vu x)                 { vd y; memcpy(&y, &x, sizeof y); return y; }
    VINL vu   below(vd a, vd b)             { return (vu)-(uint64_t)(a < b); }
    VINL int  any_top(vu a)                 { return (int)(a >> 63); }
    VINL uint64_t lane(vu a, int i)         { (void)i; return a; }
    VINL vd   load_real(const real *p)      { return (double)*p; }
    #endif
    VINL vu low_product(vu a, vu b)                         /* of the low 32 bits of both, all 64 bits of it */
    {
    #if VB == 64
        return (vu)_mm512_mul_epu32((__m512i)a, (__m512i)b);
    #elif VB == 32
        return (vu)_mm256_mul_epu32((__m256i)a, (__m256i)b);
    #elif VB == 16 && defined(__SSE2__)
        return (vu)_mm_mul_epu32((__m128i)a, (__m128i)b);
    #else
        return (a & all_u(0xffffffff)) * (b & all_u(0xffffffff));
    #endif
    }

    #define ONES        6755399441055744.0                  /* 1.5·2**52: a double next to it has its integer in its low bits */
    #define WHOLE       4503599627370496.0                  /* 2**52: the same for what is not negative */
    #define WHOLE_BITS  0x4330000000000000u
    #define HALF_RANGE  ((uint64_t)1 << 62)

    VINL vd nearest(vd x)    { return (x + all_d(ONES)) - all_d(ONES); }                /* |x| < 2**51 */
    VINL vu integer(vd x)    { return bits_of(x + all_d(WHOLE)) - all_u(WHOLE_BITS); }  /* 0 <= x < 2**52, whole */
    VINL vd real_of(vu x)    { return of_bits(x | all_u(WHOLE_BITS)) - all_d(WHOLE); }  /* x < 2**52 */

    typedef struct { vd n, inverse, shift; vu count; } Divisor;
    VINL Divisor divisor(unsigned n)
    {
        Divisor v;
        v.n = all_d(n), v.inverse = all_d(1.0 / n), v.shift = all_d(0.5 * (1.0 / n) - 0.5), v.count = all_u(n);
        return v;
    }
    /* floor(x / n) = nearest((x + 1/2)/n − 1/2), x whole, 0 <= x < 2**50.4: what is rounded to the nearest is at least 1/(2n)
     * away from a tie, and the three roundings before are less than 1.5·2**-52·x/n + 2**-54. */
    VINL vd quotient(vd x, const Divisor *v) { return nearest(x * v->inverse + v->shift); }

    /* k = round(scale·g) as a 64-bit integer.  Bit 63 of `bad` is set in lanes where |scale·g| >= 2**62 or NaN; k is 0 there. */
    VINL vu increment(vd g, vd scale, vu *bad)
    {
        vd x = g * scale, h;
        const vu sign = all_u((uint64_t)1 << 63), inside = below(of_bits(bits_of(x) & ~sign), all_d(4611686018427387904.0));
        *bad |= ~inside;
        x = of_bits(bits_of(x) & inside);
        h = nearest(x * all_d(1.0 / 4294967296.0));         /* the rest is exact and at most 2**31 */
        x = x - h * all_d(4294967296.0);
        return ((bits_of(h + all_d(ONES)) - bits_of(all_d(ONES))) << 32) + (bits_of(x + all_d(ONES)) - bits_of(all_d(ONES)));
    }

    VINL void to_words(uint16_t *words, vu r) { int i; for (i = 0; i < LANES; i++) words[i] = (uint16_t)lane(r, i); }
    VINL vu of_words(const uint16_t *words)
    {
        int64_t r[LANES];
        int i;
        for (i = 0; i < LANES; i++) r[i] = words[i];
        return load_u(r);
    }

    /* LANES parameters forwards.  words: NULL, or where r goes.  Bit 63 of `bad`: the step leaves the range.  What the step
     * writes, `unstep_lanes` with the same g undoes even then. */
    VINL void step_lanes(int64_t *theta, int64_t *p, double *info, uint16_t *words, vd g, vd scale, const Divisor *v, vu *bad,
                         const int spill)
    {
        const vd i = load_d(info), q = quotient(i, v);
        const vu s = integer(i - q * v->n), u = load_u(p) + all_u(HALF_RANGE), n = v->count;
        const vu low = low_product(u & all_u(0xffff), n) + s, r = low & all_u(0xffff), high = u >> 16;
        const vu decayed = low_product(high, n) + (low_product(high >> 32, n) << 32) + (low >> 16) - (n << 46);
        const vu p1 = decayed - increment(g, scale, bad), t1 = load_u(theta) + p1;
        *bad |= (p1 + all_u(HALF_RANGE)) | (t1 + all_u(HALF_RANGE));
        store_u(p, p1);
        store_u(theta, t1);
        if (spill) {
            store_d(info, q);
            to_words(words, r);
        } else
            store_d(info, q * all_d(65536) + real_of(r));
    }

    /* The same backwards; p + k in [−n·2**46, n·2**46), as after any step. */
    VINL void unstep_lanes(int64_t *theta, int64_t *p, double *info, const uint16_t *words, vd g, vd scale, const Divisor *v,
                           const int spilled)
    {
        vu bad = all_u(0);
        const vu p1 = load_u(p), i = integer(load_d(info)), n = v->count;
        const vu r = spilled ? of_words(words) : i & all_u(0xffff);
        const vd above = real_of(spilled ? i : i >> 16);
        const vu u = p1 + increment(g, scale, &bad) + (n << 46);            /* >= 0, below n·2**47 */
        const vd high = real_of(u >> 13), q = quotient(high, v);            /* (u·2**16 + r) / n, 34 digits a time */
        const vu carry = integer(high - q * v->n);
        const vd rest = real_of((carry << 29) + ((u & all_u(0x1fff)) << 16) + r), e = quotient(rest, v);
        store_u(theta, load_u(theta) - p1);
        store_u(p, (integer(q) << 29) + integer(e) - all_u(HALF_RANGE));
        store_d(info, above * v->n + (rest - e * v->n));
    }

    /* Bit 63 of the result: p + k is not what a step can have left, or θ − p is outside the range. */
    VINL vu cannot_unstep(const int64_t *theta, const int64_t *p, vd g, vd scale, vu n)
    {
        vu bad = all_u(0);
        const vu p1 = load_u(p), u = p1 + increment(g, scale, &bad) + (n << 46);
        return bad | u | ((n << 47) - all_u(1) - u) | (load_u(theta) - p1 + all_u(HALF_RANGE));
    }

    /* The real number θ·2**-44, rounded once; with p, (θ − p)·2**-44. */
    VINL vd position(vu theta)
    {
        const vu u = theta + all_u(HALF_RANGE + HALF_RANGE);                /* not negative */
        const vd high = of_bits((u >> 32) | all_u(WHOLE_BITS)) - all_d(WHOLE + 2147483648.0);
        return (high * all_d(4294967296.0) + real_of(u & all_u(0xffffffff))) * all_d(1.0 / 17592186044416.0);
    }
    """
    enum: LANES
    ctypedef double vd
    ctypedef size_t vu
    ctypedef struct Divisor:
        vd n
        vu count
    vd load_d(const double *p) noexcept nogil
    void store_d(double *p, vd v) noexcept nogil
    vu load_u(const int64_t *p) noexcept nogil
    vd all_d(double x) noexcept nogil
    vu all_u(size_t x) noexcept nogil
    vd load_real(const real *p) noexcept nogil
    bint any_top(vu a) noexcept nogil
    Divisor divisor(unsigned n) noexcept nogil
    void step_lanes(int64_t *theta, int64_t *p, double *info, uint16_t *words, vd g, vd scale, const Divisor *v, vu *bad,
                    bint spill) noexcept nogil
    void unstep_lanes(int64_t *theta, int64_t *p, double *info, const uint16_t *words, vd g, vd scale, const Divisor *v,
                      bint spilled) noexcept nogil
    vu cannot_unstep(const int64_t *theta, const int64_t *p, vd g, vd scale, vu n) noexcept nogil
    vd position(vu theta) noexcept nogil

cdef double UNITS = 2.**44

cdef struct Fixed:                      # arrays of at least `size` elements, of whole vectors of the widest level
    int64_t *theta
    int64_t *p
    double *info
    uint16_t *words                     # NULL: none in this step
    const real *grad                    # (size,)
    double *out
    double alpha
    unsigned n
    ix size
    relaxed bad                         # set by whichever threads find one


cdef inline vd gradient(const Fixed *f, ix j) noexcept nogil:
    """The gradient of LANES parameters, 0 behind the last."""
    cdef real tail[LANES]
    cdef int i
    if j + LANES <= f.size:
        return load_real(f.grad + j)
    for i in range(LANES):
        tail[i] = f.grad[j + i] if j + i < f.size else 0
    return load_real(tail)


cdef inline void step_piece(Fixed *f, ix j, ix end, const bint spill) noexcept nogil:
    cdef vu bad = all_u(0)
    cdef vd scale = all_d(f.alpha * UNITS)
    cdef Divisor v = divisor(f.n)
    while j < end:
        step_lanes(f.theta + j, f.p + j, f.info + j, f.words + j if spill else NULL, gradient(f, j), scale, &v, &bad, spill)
        j += LANES
    if any_top(bad):
        put(&f.bad, True)


cdef inline void unstep_piece(Fixed *f, ix j, ix end, const bint spilled) noexcept nogil:
    cdef vd scale = all_d(f.alpha * UNITS)
    cdef Divisor v = divisor(f.n)
    while j < end:
        unstep_lanes(f.theta + j, f.p + j, f.info + j, f.words + j if spilled else NULL, gradient(f, j), scale, &v, spilled)
        j += LANES


cdef void step_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Fixed *f = <Fixed *>args
    cdef ix first = i * PIECE, end = min(f.size, first + PIECE)
    if f.words is NULL:
        step_piece(f, first, end, False)
    else:
        step_piece(f, first, end, True)


cdef void unstep_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Fixed *f = <Fixed *>args
    cdef ix first = i * PIECE, end = min(f.size, first + PIECE)
    if f.words is NULL:
        unstep_piece(f, first, end, False)
    else:
        unstep_piece(f, first, end, True)


cdef void check_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Fixed *f = <Fixed *>args
    cdef ix j = i * PIECE, end = min(f.size, j + PIECE)
    cdef vu bad = all_u(0)
    cdef vd scale = all_d(f.alpha * UNITS)
    cdef Divisor v = divisor(f.n)
    while j < end:
        bad |= cannot_unstep(f.theta + j, f.p + j, gradient(f, j), scale, v.count)
        j += LANES
    if any_top(bad):
        put(&f.bad, True)


cdef void positions_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Fixed *f = <Fixed *>args
    cdef ix j = i * PIECE, end = min(f.size, j + PIECE)
    while j < end:
        if f.p is NULL:
            store_d(f.out + j, position(load_u(f.theta + j)))
        else:
            store_d(f.out + j, position(load_u(f.theta + j) - load_u(f.p + j)))
        j += LANES


# Python's signal handlers run between bytecodes.  A function here is one: with the words and the count written inside of it,
# no KeyboardInterrupt can come between two halves of a step.

cdef int for_all(Fixed *f, void (*task)(void *, ix, Worker *) noexcept nogil, double seconds) except -1:
    run(task, f, (f.size + PIECE - 1) // PIECE, 0, seconds * f.size, False)
    return 0


cdef ix padded_size(cnp.ndarray state) except -1:
    """Of each of θ, p and i: whole vectors of the widest level."""
    expect(state is not None and cnp.PyArray_NDIM(state) == 2)
    cdef ix padded = cnp.PyArray_DIM(state, 1)
    expect(cnp.PyArray_DIM(state, 0) == 3 and padded % 8 == 0 and holds(state, cnp.NPY_INT64, 3 * padded))
    return padded


cdef uint16_t *words_of(cnp.ndarray words, cnp.ndarray state) except? NULL:
    expect(holds(words, cnp.NPY_UINT16, cnp.PyArray_DIM(state, 1)))
    return <uint16_t *>cnp.PyArray_DATA(words)


cdef int64_t *count_of(cnp.ndarray count) except NULL:
    expect(holds(count, cnp.NPY_INT64, 1) and cnp.PyArray_ISWRITEABLE(count))
    return <int64_t *>cnp.PyArray_DATA(count)


cdef int fixed_of(Fixed *f, cnp.ndarray state, cnp.ndarray grad, double alpha, unsigned n) except -1:
    cdef ix padded = padded_size(state)
    expect(0 < n < 65536 and grad is not None and holds(grad, of_real(), cnp.PyArray_SIZE(grad))
           and padded - 8 < cnp.PyArray_SIZE(grad) <= padded and cnp.PyArray_ISWRITEABLE(state))
    f.theta = <int64_t *>cnp.PyArray_DATA(state)
    f.p = f.theta + padded
    f.info = <double *>(f.theta + 2 * padded)
    f.grad, f.size = <const real *>cnp.PyArray_DATA(grad), cnp.PyArray_SIZE(grad)
    f.words, f.alpha, f.n = NULL, alpha, n
    put(&f.bad, False)
    return 0


def fixed_step(cnp.ndarray state, cnp.ndarray count, list stack, cnp.ndarray grad, double alpha, unsigned n, cnp.ndarray words):
    """IN OUT state (3, padded): θ, p, i.  IN grad (size,) contiguous.  words: None, or (padded,) where this step spills to.
    True: the step was taken, counted, and the words are on the stack.  False: it would leave the range; nothing has changed."""
    cdef Fixed f
    cdef int64_t *counted = count_of(count)
    fixed_of(&f, state, grad, alpha, n)
    expect(stack is not None)
    if words is not None:
        f.words = words_of(words, state)
        stack.append(words)
    for_all(&f, step_task, 1.5e-9)
    if get(&f.bad):                                         # a step that cannot be is undone by its own inverse
        for_all(&f, unstep_task, 2e-9)
        if words is not None:
            stack.pop()
        return False
    counted[0] += 1
    return True


def fixed_unstep(cnp.ndarray state, cnp.ndarray count, list stack, cnp.ndarray grad, double alpha, unsigned n, bint spilled):
    """The inverse; `spilled`: the step to be undone has put words on the stack.  False: no step with this gradient can have led
    here; nothing has changed."""
    cdef Fixed f
    cdef int64_t *counted = count_of(count)
    cdef cnp.ndarray words = None       # held: another thread may take them off the stack
    fixed_of(&f, state, grad, alpha, n)
    expect(stack is not None and (not spilled or len(stack) > 0))
    for_all(&f, check_task, 0.6e-9)
    if get(&f.bad):
        return False
    if spilled:
        expect(len(stack) > 0)
        words = stack[len(stack) - 1]
        f.words = words_of(words, state)
    for_all(&f, unstep_task, 2e-9)
    if spilled:
        stack.pop()
    counted[0] -= 1
    return True


def positions(cnp.ndarray state, int row, bint before, cnp.ndarray out):
    """OUT out (padded,) float64 = θ (row 0) or p (row 1); `before`: θ − p, where the last step began."""
    cdef Fixed f
    cdef ix padded = padded_size(state)
    expect(0 <= row <= (0 if before else 1) and holds(out, cnp.NPY_DOUBLE, padded) and cnp.PyArray_ISWRITEABLE(out))
    f.theta = <int64_t *>cnp.PyArray_DATA(state) + row * padded
    f.p = f.theta + padded if before else NULL
    f.out, f.size = <double *>cnp.PyArray_DATA(out), padded
    for_all(&f, positions_task, 1e-9)
