"""What a forward pass keeps for its adjoint, out of Python's reach, and the checksums that tell whose it is."""
cimport cython
cimport numpy as cnp
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from .threads cimport Worker, ix, run

cnp.import_array()

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #if defined(_MSC_VER) && !defined(__clang__)
    # include <intrin.h>
    #endif

    /* A 64-bit checksum at the speed of memory: four sums side by side, each of which takes two words a time by one
     * multiplication to 128 bits, whose halves are joined (the step of wyhash).  Contents that differ agree with a probability
     * of about 2**-64.  It is not made against those who look for two that agree.  (Products of 64 bits alone let changes of
     * two words cancel: small integers as float32 did so.) */
    #define PRIME UINT64_C(0x9E3779B185EBCA87)
    static uint64_t folded(uint64_t a, uint64_t b)
    {
    #if defined(__SIZEOF_INT128__)
        const unsigned __int128 p = (unsigned __int128)a * b;
        return (uint64_t)p ^ (uint64_t)(p >> 64);
    #elif defined(_M_X64)
        uint64_t high, low = _umul128(a, b, &high);
        return low ^ high;
    #elif defined(_M_ARM64)
        return a * b ^ __umulh(a, b);
    #else
        const uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
        const uint64_t m = ah * bl + (al * bl >> 32), k = al * bh + (uint32_t)m;
        return a * b ^ (ah * bh + (m >> 32) + (k >> 32));
    #endif
    }
    static uint64_t stir(uint64_t h, const unsigned char *p)
    {
        uint64_t word[2];
        memcpy(word, p, sizeof word);
        return folded(word[0] ^ UINT64_C(0xE7037ED1A0B428DB), word[1] ^ h);
    }
    static uint64_t checksum_of(const unsigned char *p, size_t n)
    {
        uint64_t h0 = PRIME, h1 = 3 * PRIME, h2 = 5 * PRIME, h3 = 7 * PRIME, all = n * PRIME, last[4];
        unsigned char rest[64] = {0};
        int i;
        for (; n >= 64; n -= 64, p += 64)
            h0 = stir(h0, p), h1 = stir(h1, p + 16), h2 = stir(h2, p + 32), h3 = stir(h3, p + 48);
        memcpy(rest, p, n);
        last[0] = stir(h0, rest), last[1] = stir(h1, rest + 16), last[2] = stir(h2, rest + 32), last[3] = stir(h3, rest + 48);
        for (i = 0; i < 4; i++) {
            all = folded(all ^ UINT64_C(0x8EBC6AF09C88C6E3), last[i] ^ PRIME);
        }
        return all;
    }
    """
    uint64_t checksum_of(const unsigned char *p, size_t n) nogil

cdef enum:
    BLOCK = 1 << 20                     # bytes of a task


@cython.final
@cython.no_gc                           # what cannot be part of a cycle needs not show its arrays to the collector, nor to others
cdef class Cache:
    """What a forward pass keeps for its adjoint: opaque, immutable, usable any number of times, in this process only."""
    cdef str function                   # whose; None if nobody made it
    cdef tuple call, checksums, arrays

    def __init__(self, *args, **kwargs):
        raise TypeError("caches are made by functions that take return_cache=True")

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise TypeError("cache cannot be pickled: its layout is that of this CPU level")

    def __repr__(self):
        return f"<cache of {self.function}>"


def keep(str function not None, tuple call not None, tuple operands not None, tuple arrays not None, /):
    """A cache: whose, what of the call its adjoint must agree in, the arrays it was computed from, and what it holds."""
    cdef Cache cache = Cache.__new__(Cache)
    cache.function, cache.call, cache.checksums, cache.arrays = function, call, checksums(operands), arrays
    return cache


def opened(cache, str function not None, /):
    """The call, the checksums and the arrays of a cache of `function`; a TypeError if it is none."""
    if type(cache) is not Cache:
        raise TypeError(f"cache is a {type(cache).__name__}; expected what {function}(…, return_cache=True) returns")
    cdef Cache c = <Cache>cache
    if c.function != function:
        raise TypeError(f"cache is one of {c.function}; expected what {function}(…, return_cache=True) returns")
    return c.call, c.checksums, c.arrays


def checksums(tuple arrays not None, /):
    """A number for each array, which must be contiguous, that tells its bytes from others; None for None."""
    return tuple([None if a is None else checksum(a) for a in arrays])


cdef checksum(cnp.ndarray a):
    cdef Blocks b
    cdef ix blocks
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        raise ValueError("a checksum is of contiguous arrays only")
    b.p, b.size = <const unsigned char *>cnp.PyArray_DATA(a), cnp.PyArray_NBYTES(a)
    if b.size <= BLOCK:
        return checksum_of(b.p, b.size)
    blocks = (b.size - 1) // BLOCK + 1
    b.sums = <uint64_t *>malloc(blocks * sizeof(uint64_t))
    if b.sums is NULL:
        raise MemoryError(f"no memory for {blocks * sizeof(uint64_t)} bytes of checksums")
    try:
        run(checksum_task, &b, blocks, 0, 1e-10 * b.size)
        return checksum_of(<const unsigned char *>b.sums, blocks * sizeof(uint64_t))
    finally:
        free(b.sums)


cdef struct Blocks:
    const unsigned char *p
    ix size
    uint64_t *sums                      # OUT, one a block


cdef void checksum_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Blocks *b = <Blocks *>args
    b.sums[i] = checksum_of(b.p + i * BLOCK, min(<ix>BLOCK, b.size - i * BLOCK))
