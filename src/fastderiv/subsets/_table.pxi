# The table of low sums and the high sums, of which every subset sum is made (derivations §1.3).
# A subset sum is low + high: the ascending sum of the chosen x[i], i < LOW_BITS, and that of the
# others.  The table stays in the first-level cache; every subset then costs one addition.
# needs: LOW_BITS, TASK_BITS (_kernels.pyx)

cdef extern from "lanes.h" nogil:
    enum: LOG_VL
    const real LANE[16]
    const real LANE_BIT[4][16]

cdef struct Scratch:                    # of one task
    char low[(8 << LOW_BITS) + 4096 + 128]              # room for the table wherever it is put
    real high[(1 << (TASK_BITS - LOW_BITS)) + 16]

cdef struct Table:                      # the sums low[j] + high[h], j < lows, h < highs
    real *low                           # (lows,), and room for a vector behind them
    real *high                          # (highs,), and room for a vector
    ix lows
    ix highs


cdef inline void plus(const real *t, real c, ix size, real *out) noexcept nogil:
    """IN t (size,); OUT out (size,) = t + c, which may be t itself."""
    cdef ix j = 0
    while j + VL <= size:
        vstore(out + j, vload(t + j) + vset1(c))
        j += VL
    while j < size:
        out[j] = t[j] + c
        j += 1


cdef inline vf first_sums(const real *x) noexcept nogil:
    """The ascending sums of x (LOG_VL,): lane j holds that of mask j.

    They are built in a register, so that rows of few entries need nothing else."""
    cdef vf sums = vset1(0)
    cdef int i
    for i in range(LOG_VL):
        sums = sums + vsel_lt(vset1(0), vload(&LANE_BIT[i][0]), vset1(x[i]), vset1(0))
    return sums


cdef inline void ascending(const real *x, int bits, uint64_t fixed, real *t) noexcept nogil:
    """IN x; OUT t (2**bits,), with room for VL numbers: t[j] is the ascending sum of the mask
    j | fixed.  `fixed` has no bit below 2**bits."""
    cdef int i = bits
    cdef ix size = max(<ix>VL, <ix>1 << bits)
    vstore(t, first_sums(x))
    for i in range(LOG_VL, bits):
        plus(t, x[i], <ix>1 << i, t + (<ix>1 << i))
    i = bits
    while fixed >> i:
        if fixed >> i & 1:
            plus(t, x[i], size, t)
        i += 1


cdef inline real *table_memory(Scratch *s, const char *out) noexcept nogil:
    """Where in the scratch the table goes.

    It is aligned to a cache line as `out` is, but half a page away from it: a load waits for an
    earlier store whose address has the same low bits."""
    cdef uintptr_t base = <uintptr_t>s.low
    return <real *>(base + ((<uintptr_t>out + 2048 - base) & 4095))


cdef inline Table table_for(int bits, Scratch *s, const char *out) noexcept nogil:
    """A table for 2**bits masks whose sums go to `out`, not filled yet."""
    cdef Table t
    cdef int low_bits = min(bits, <int>LOW_BITS)
    t.low, t.lows = table_memory(s, out), <ix>1 << low_bits
    t.high, t.highs = s.high, <ix>1 << (bits - low_bits)
    return t


cdef inline void fill(const Table *t, const real *x, int bits, uint64_t first) noexcept nogil:
    """IN x, padded with zeros; OUT the table's sums, those of the 2**bits masks from `first` on."""
    cdef int low_bits = min(bits, <int>LOW_BITS)
    cdef uint64_t low_mask = (<uint64_t>1 << LOW_BITS) - 1
    ascending(x, low_bits, first & low_mask, t.low)
    ascending(x + LOW_BITS, bits - low_bits, first >> LOW_BITS, t.high)
