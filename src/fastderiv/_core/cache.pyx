"""What a forward pass keeps for its adjoint, out of Python's reach, and checksums."""
cimport cython
cimport numpy as cnp
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from .threads cimport Worker, ix, run

cnp.import_array()

cdef extern from "checksum.h" nogil:
    uint64_t checksum_of(const unsigned char *p, size_t n)

cdef enum:
    BLOCK = 1 << 20                     # bytes of a task


# no_gc: a cache cannot be part of a cycle, so the collector, and whoever asks it, need not see its
# arrays.
@cython.final
@cython.no_gc
cdef class Cache:
    """What a forward pass keeps for its adjoint.

    It is opaque and immutable, and can be used any number of times, in this process only.
    """
    cdef str function                   # the function that made it; None if none did
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


def keep(str function not None, tuple call not None, tuple operands not None,
         tuple arrays not None, /):
    """A cache of `function` that holds `arrays`.

    `call` is what the adjoint's call must agree in, `operands` the arrays that the forward pass
    was computed from.
    """
    cdef Cache cache = Cache.__new__(Cache)
    cache.function, cache.call = function, call
    cache.checksums, cache.arrays = checksums(operands), arrays
    return cache


def opened(cache, str function not None, /):
    """The call, checksums and arrays of a cache of `function`; a TypeError if it is none."""
    expected = f"expected what {function}(…, return_cache=True) returns"
    if type(cache) is not Cache:
        raise TypeError(f"cache is a {type(cache).__name__}; {expected}")
    cdef Cache c = <Cache>cache
    if c.function != function:
        raise TypeError(f"cache is one of {c.function}; {expected}")
    return c.call, c.checksums, c.arrays


def checksums(tuple arrays not None, /):
    """For each array, which must be contiguous, a number that tells its bytes from others.

    None stays None.
    """
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
