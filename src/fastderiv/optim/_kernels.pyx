"""The arithmetic of momentum as a reversible map (docs/derivations.md §4).

    _momentum.pxi     the step in floating point and its inverse, arrays of any strides
    fixed.h           a vector of parameters in 64-bit fixed point, forwards and backwards
    _fixed.pxi        all parameters in fixed point, with information buffers: exactly reversible
    _door.pxi         the doors' checks of what Python hands over

In fixed point `real` is the type of the gradient alone; everything else is the same integers in
both modules and on every CPU level.
"""
from libc.stdint cimport int64_t, uint16_t
from libc.string cimport memset
cimport numpy as cnp
from fastderiv._core.ints cimport ceil_div, round_up
from fastderiv._core.rows cimport (
    MAX_AXES, Rows, Strided, gather, row_start, rows_of, scatter, strided_of, task_count,
)
from fastderiv._core.simd cimport VL, ix, real, vf, vfma, vload, vset1, vstore
from fastderiv._core.threads cimport Worker, run, task_t

cnp.import_array()

cdef enum:
    PIECE = 16384                       # parameters of one task
    WIDEST = 8                          # 64-bit numbers in a vector of the widest level

include "_momentum.pxi"
include "_fixed.pxi"
include "_door.pxi"

# Python runs signal handlers between bytecodes, and a call of a function here is one bytecode.  As
# it writes the words and the count too, no KeyboardInterrupt can come between two halves of a step.
# Nor can one stop the tasks: `run` is told not to look for it.


def update(cnp.ndarray theta, cnp.ndarray p, cnp.ndarray grad, double alpha, double beta, bint back,
           tuple copies):
    """IN OUT theta, p (..., n); IN grad of the same shape; none of them is empty.

    OUT copies: pairs (target, source) of arrays; the sources, theta and p themselves, are copied to
    the arrays that they stand in for.
    """
    cdef Update u
    update_of(&u, theta, p, grad)
    u.alpha, u.beta, u.back = alpha, beta, back
    run(update_task, &u, task_count(&u.rows), 3. * AT_ONCE * sizeof(real),
        1.5e-10 * u.rows.count * u.rows.entries * sizeof(real), False)
    for target, source in copies:
        cnp.PyArray_CopyInto(target, source)


def fixed_step(cnp.ndarray state, cnp.ndarray count, list stack, cnp.ndarray grad, double alpha,
               unsigned n, cnp.ndarray words):
    """IN OUT state (3, padded): θ, p, i; count (1,).  IN grad (size,), contiguous.

    `words` is (padded,) in a step that spills, else None.  True says that the step was taken and
    counted, and that the words are on the stack.  False says that it would leave the range; then
    nothing has changed.
    """
    cdef Fixed f
    cdef int64_t *counted = count_of(count)
    fixed_of(&f, state, grad, alpha, n)
    expect(stack is not None)
    if words is not None:
        f.first.words = words_of(words, state)
        stack.append(words)
    for_all(&f, step_task, 1.5e-9)
    if get(&f.bad):                     # the inverse takes back a step that left the range, too
        for_all(&f, unstep_task, 2e-9)
        if words is not None:
            stack.pop()
        return False
    counted[0] += 1
    return True


def fixed_unstep(cnp.ndarray state, cnp.ndarray count, list stack, cnp.ndarray grad, double alpha,
                 unsigned n, bint spilled):
    """The inverse of `fixed_step`.

    `spilled` says that the step has put words on the stack.  False as the result says that no step
    with this gradient can have led here; then nothing has changed.
    """
    cdef Fixed f
    cdef int64_t *counted = count_of(count)
    cdef cnp.ndarray words = None       # a reference of our own: another thread may pop the stack
    fixed_of(&f, state, grad, alpha, n)
    expect(stack is not None and (not spilled or len(stack) > 0))
    for_all(&f, check_task, 0.6e-9)
    if get(&f.bad):
        return False
    if spilled:
        expect(len(stack) > 0)
        words = stack[len(stack) - 1]
        f.first.words = words_of(words, state)
    for_all(&f, unstep_task, 2e-9)
    if spilled:
        stack.pop()
    counted[0] -= 1
    return True


def positions(cnp.ndarray state, int row, bint before, cnp.ndarray out):
    """IN state (3, padded); OUT out (padded,) float64 = θ (row 0) or p (row 1).

    `before` asks for θ − p instead of θ: where the last step began.
    """
    cdef Fixed f
    cdef ix padded = padded_size(state)
    expect(0 <= row <= (0 if before else 1) and holds(out, cnp.NPY_DOUBLE, padded)
           and cnp.PyArray_ISWRITEABLE(out))
    f.first.theta = <int64_t *>cnp.PyArray_DATA(state) + row * padded
    f.first.p = f.first.theta + padded if before else NULL
    f.out, f.size = <double *>cnp.PyArray_DATA(out), padded
    for_all(&f, positions_task, 1e-9)
