"""Sums over the subsets of a row x (n,), and the log of the sum of their exponentials.

Bit i of a mask says whether x[i] is in the subset.  docs/derivations.md §1.3.

    _call.pxi          the arrays of a call, and the entries of a row
    lanes.h            constants of the lanes of a vector
    _table.pxi         the table of low sums, of which all sums are made
    _sums.pxi          all sums, written out
    _enumerate.pxi     log Σ exp by enumerating all subsets
    _closed.pxi        the same number as Σ softplus
    _door.pxi          the doors' checks of what Python hands over

The bits of a subset sum do not depend on blocks, CPU level or threads: it is low + high, where low
is the ascending sum of the chosen x[i], i < LOW_BITS, and high that of the others.
"""
from libc.math cimport log1p
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset
cimport numpy as cnp
from fastderiv._core.ints cimport ceil_div
from fastderiv._core.rows cimport Rows, Strided, gather, row_start, rows_of, strided_of, task_count
from fastderiv._core.simd cimport (
    EXP2_SAFE, GL, LOG2E, VL, gsum, ix, real, vexp2_neg, vexp2_safe, vf, vload, vsel_lt, vset1,
    vsoftplus, vstore, vstream, vstream_end,
)
from fastderiv._core.threads cimport Worker, run

cnp.import_array()

cdef enum:
    LOW_BITS = 10                       # of the table of low sums; the bits of results depend on it
    TASK_BITS = 18                      # a task enumerates up to 2**18 subsets, in about 0.1 ms
    MAX_N = 62                          # entries of a row that is enumerated: masks have 64 bits
    PADDED_ROW = MAX_N + LOW_BITS + 16  # such a row, and the zeros behind it that the table reads

include "_call.pxi"
include "_table.pxi"
include "_sums.pxi"
include "_enumerate.pxi"
include "_closed.pxi"
include "_door.pxi"

MASKS_PER_TASK = 1 << TASK_BITS         # for Python


def sums(cnp.ndarray x, cnp.ndarray out, uint64_t first, bint reused):
    """IN x (..., n); OUT out (..., 2**bits) = the sums of the masks from `first` on, a multiple of
    2**bits.

    `reused` says that the pages of `out` have been touched before.  Those of a new array pass
    through the caches anyway, as the system clears them, and bypassing the caches is then slower.
    """
    cdef Sums a
    cdef Rows *rows = &a.call.rows
    cdef ix m
    call_of(&a.call, x, out)
    expect_leading(x, out, rows.leading + 1)
    m = cnp.PyArray_DIM(out, rows.leading)
    a.first, a.bits = first, 0
    while a.bits < MAX_N and <ix>1 << a.bits < m:
        a.bits += 1
    if rows.entries > MAX_N or a.bits > rows.entries or m != <ix>1 << a.bits:
        refuse(x, out)
    a.part_bits = min(a.bits, <int>TASK_BITS)
    rows.parts = <ix>1 << (a.bits - a.part_bits)
    rows.per_task = 1 if rows.parts > 1 else max(<ix>1, (<ix>1 << TASK_BITS) // (m + 8))
    a.stream = reused and <double>m * rows.count * sizeof(real) >= STREAM_BYTES
    a.packed = (a.bits == rows.entries and rows.entries <= LOW_BITS
                and cnp.PyArray_IS_C_CONTIGUOUS(out))
    run(sums_task, &a, task_count(rows), sizeof(Scratch),
        rows.count * (m + 8.) * 5e-11 * sizeof(real))


def enumerate_rows(cnp.ndarray x, cnp.ndarray out):
    """IN x (..., n), n <= TASK_BITS; OUT out (...) = log Σ_S exp(Σ_{i∈S} x_i)."""
    cdef Enumerated a
    cdef Rows *rows = &a.call.rows
    call_of(&a.call, x, out)
    expect_leading(x, out, rows.leading)
    expect_short(&a.call, TASK_BITS)
    rows.per_task = max(<ix>1, (<ix>1 << TASK_BITS) // ((<ix>1 << rows.entries) + 32))
    run(rows_task, &a, task_count(rows), sizeof(Scratch),
        rows.count * (40.0 + (<ix>1 << rows.entries)) * 5e-11 * sizeof(real))


def enumerate_masks(cnp.ndarray x, uint64_t first, cnp.ndarray partial):
    """IN x (n,), its peak finite; OUT partial (p,) float64: partial[k] = Σ exp(sum − peak) over the
    2**TASK_BITS masks from first + k·2**TASK_BITS on, less 1 if the empty subset is one of them."""
    cdef Enumerated a
    cdef ix tasks = cnp.PyArray_SIZE(partial)
    call_of(&a.call, x, partial)
    expect_row(&a.call, MAX_N)
    expect_partial(partial, tasks)
    a.first, a.partial = first, <double *>cnp.PyArray_DATA(partial)
    run(masks_task, &a, tasks, sizeof(Scratch),
        <double>(<ix>1 << TASK_BITS) * tasks * 5e-11 * sizeof(real))


def peak(cnp.ndarray x):
    """The largest subset sum of x (n,)."""
    cdef Call call
    cdef real row[PADDED_ROW]
    call_of(&call, x, x)
    expect_row(&call, MAX_N)
    entries(&call, 0, row)
    return peak_of(row, call.rows.entries)


def closed_parts(ix n):
    """How many partial sums a row of n entries has."""
    return parts_of(n)


def closed(cnp.ndarray x, cnp.ndarray partial):
    """IN x (..., n); OUT partial (rows, closed_parts(n)) float64, contiguous: Σ softplus(x_i) over
    the parts of each row."""
    cdef Closed a
    cdef Rows *rows = &a.call.rows
    call_of(&a.call, x, partial)
    rows.parts = parts_of(rows.entries)
    rows.per_task = 1 if rows.entries > AT_ONCE else max(<ix>1, PIECE // (rows.entries + 8))
    a.partial = <double *>cnp.PyArray_DATA(partial)
    expect_partial(partial, rows.count * rows.parts)
    run(closed_task, &a, task_count(rows), AT_ONCE * sizeof(real) + 64,
        rows.count * (rows.entries + 8.) * 2.5e-10 * sizeof(real))
