# From arrays to pointers, for every door of the room.  A mistake in Python must not become a read
# of foreign memory: an array that does not have the shape, type and alignment that a kernel counts
# on is a TypeError.  Included by _kernels.pyx.

cdef enum:
    ALONE = 1 << 30                     # bytes of scratch beyond which only one thread works


cdef int refuse(cnp.ndarray a, shape) except -1:
    raise TypeError(f"a kernel for {8 * sizeof(real)}-bit numbers was handed an array of shape "
                    f"{(<object>a).shape} and dtype {a.dtype}; expected an aligned one of shape "
                    f"{shape}")


cdef int expect_array(cnp.ndarray a, int axes, const ix *shape, bint written) except -1:
    """A TypeError unless `a` is None, or an array of this shape and the kernel's type that can be
    read, and be written if `written`."""
    cdef int i
    cdef bint good
    if a is None:
        return 0
    good = (cnp.PyArray_NDIM(a) == axes and cnp.PyArray_ISFLOAT(a)
            and cnp.PyArray_ITEMSIZE(a) == sizeof(real) and cnp.PyArray_ISBEHAVED_RO(a)
            and (not written or cnp.PyArray_ISWRITEABLE(a)))
    if good:
        for i in range(axes):
            good = good and cnp.PyArray_DIM(a, i) == shape[i]
    if not good:
        refuse(a, tuple([shape[i] for i in range(axes)]))
    return 0


cdef int expect_axes(cnp.ndarray a, int axes, shape) except -1:
    """A TypeError unless `a` has so many axes."""
    if cnp.PyArray_NDIM(a) != axes:
        refuse(a, shape)
    return 0


cdef int expect_integers(cnp.ndarray a) except -1:
    """A TypeError unless `a` is contiguous (k,) intp: what kernels index by."""
    if (cnp.PyArray_NDIM(a) != 1 or cnp.PyArray_TYPE(a) != cnp.NPY_INTP
            or not cnp.PyArray_ISCARRAY_RO(a)):
        raise TypeError(f"a kernel was handed {a.dtype} of shape {(<object>a).shape}; expected "
                        "contiguous (k,) intp")
    return 0


cdef inline bint nothing(cnp.ndarray a):
    """Whether there is nothing to write."""
    return a is None or cnp.PyArray_SIZE(a) == 0


cdef inline ix stride(cnp.ndarray a, int axis):
    return cnp.PyArray_STRIDE(a, axis) // <ix>sizeof(real)


cdef inline real *data(cnp.ndarray a):
    return <real *>cnp.PyArray_DATA(a)


# ---- running ----------------------------------------------------------------------------------

cdef ix counted(double n) except -1:
    """A number of tasks, as an integer."""
    if n > 2.**62:
        raise MemoryError(f"no memory for what {n:.0f} tasks would write")
    return <ix>n


cdef int run_with(task_t task, void *args, ix n, double scratch, double seconds) except -1:
    """`run` with scratch of any size: a MemoryError if the machine has not so much, and one thread
    alone if it is huge."""
    if scratch > ALONE:
        check_fits("scratch", int(scratch))
        seconds = 0
    return run(task, args, n, scratch, seconds)
