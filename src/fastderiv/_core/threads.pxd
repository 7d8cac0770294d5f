"""The thread pool as kernels use it: fill a struct with arguments, then `run(task, &args, …)`."""

ctypedef Py_ssize_t ix

cdef struct Job

cdef struct Worker:                     # one thread's view of the call it works on
    void *scratch                       # 64-byte aligned, of the size asked for; not cleared
    Job *job
    bint caller                         # the thread that called, which alone may see signals
    double checked                      # when it last looked for one

ctypedef void (*task_t)(void *args, ix i, Worker *worker) noexcept nogil

# Runs task(args, i) for i in [0, n), each exactly once, on as many threads as `seconds` of
# estimated work deserve.  Tasks must not depend on which thread runs them or in what order.  They
# run in the default floating-point state on every thread.
#
# `scratch` is the bytes that each thread needs.  It is a double, and so must be everything that it
# is computed from: it is exact as far as memory reaches, and beyond that `run` raises a
# MemoryError, where integers would overflow to a small number.
#
# Returns -1 with KeyboardInterrupt or MemoryError set, or what a signal handler raised.
cdef int run(task_t task, void *args, ix n, double scratch, double seconds,
             bint interruptible=*) except -1

# A task calls this every millisecond or so.  True: the call was interrupted and the task must
# return.
cdef bint interrupted(Worker *worker) noexcept nogil
