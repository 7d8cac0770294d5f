"""One small pool of threads for every kernel.

Workers are plain C threads that never touch Python; each sleeps on a lock of its own.  A call cuts
its work into tasks by the size of the problem, never by the number of threads, so that every result
has the same bits for 1 thread or 64.  The calling thread works too.  If it is Python's main thread,
the only one that sees signals, it looks for them every 20 ms.  (Another thread must not ask for the
GIL during a job: an interpreter that shuts down ends daemon threads that do, while workers still
use the job.)  If the pool is busy with another Python thread's call, the caller works alone.
After a fork the child starts a pool of its own.
"""
import os
import sys
import threading

from cpython.pythread cimport (NOWAIT_LOCK, PY_LOCK_ACQUIRED, WAIT_LOCK, PyThread_acquire_lock,
                               PyThread_allocate_lock, PyThread_free_lock,
                               PyThread_get_thread_ident, PyThread_release_lock,
                               PyThread_start_new_thread, PyThread_type_lock)
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free
from .checks cimport affirm
from .fpstate cimport fp_enter, fp_get, fp_leave, fp_word

cdef extern from "clock.h" nogil:
    double now()                        # seconds

cdef extern from "scratch.h" nogil:
    void *scratch_memory(size_t size)   # to be freed

cdef extern from "thread_count.h" nogil:
    ctypedef int relaxed
    int get(relaxed *number)
    void put(relaxed *number, int to)
    enum: BY_DEFAULT, BY_CALL, BY_ENVIRONMENT
    relaxed num_threads, chosen
    void fastderiv_set_num_threads(int n)

cdef extern from "pythread.h":
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds,
                                    bint intr_flag) nogil

cdef extern from "Python.h":
    # Leaves the exception set; `run` returns -1 later.
    int check_signals "PyErr_CheckSignals"() nogil

cdef struct Job:
    task_t task
    void *args
    ix n, next                          # tasks, and the first not yet taken
    size_t scratch
    relaxed stop
    bint interruptible, closed
    int active                          # workers inside

cdef enum:
    MAX_WORKERS = 255                   # threads beside the caller

cdef struct Seat:
    PyThread_type_lock wake
    Job *job                            # what to work on once awake; NULL if nothing is left
    bint posted                         # wake was released, and must not be again until it is taken

cdef struct Pool:
    PyThread_type_lock mutex            # guards everything in the pool and in jobs
    PyThread_type_lock busy             # held by the call that owns the workers
    PyThread_type_lock done             # released by the last worker to leave a closed job
    Seat seats[MAX_WORKERS]
    int seated
    int generation                      # how many forks ago the first pool was made

cdef Pool pool
cdef unsigned long main_thread = threading.main_thread().ident
cdef double WORTH_A_THREAD = 250e-6     # seconds of work; waking a thread costs 20 to 30 µs
# No address space is larger, and below this all products of sizes are exact.
cdef double MOST_BYTES = 2.**(8 * sizeof(size_t) - 16)


cdef bint interrupted(Worker *w) noexcept nogil:
    cdef double t
    cdef fp_word state
    if get(&w.job.stop):
        return True
    if w.caller and w.job.interruptible:
        t = now()
        if not (0 <= t - w.checked < 0.02):
            w.checked = t
            with gil:
                state = fp_get()        # a signal handler may leave another one behind
                if check_signals():
                    put(&w.job.stop, True)
                fp_leave(state)
    return get(&w.job.stop)


cdef ix take(Job *job) noexcept nogil:
    """The next task, or -1."""
    cdef ix i = -1
    PyThread_acquire_lock(pool.mutex, WAIT_LOCK)
    if job.next < job.n and not get(&job.stop):
        i = job.next
        job.next += 1
    PyThread_release_lock(pool.mutex)
    return i


cdef bint work(Job *job, bint caller, bint alone) noexcept nogil:
    """Take tasks until none is left, in the default floating-point state.

    False if there was no memory for the scratch.
    """
    cdef Worker w
    cdef ix i
    cdef fp_word state
    cdef void *raw = scratch_memory(job.scratch + 64)
    if raw is NULL:
        return False
    w.scratch = <void *>((<uintptr_t>raw + 63) & ~<uintptr_t>63)
    w.job = job
    w.caller = caller
    w.checked = now() if caller else 0
    state = fp_enter()
    while not interrupted(&w):
        if alone:
            i = job.next
            job.next += 1
            if i >= job.n:
                break
        else:
            i = take(job)
            if i < 0:
                break
        job.task(job.args, i, &w)
    fp_leave(state)
    free(raw)
    return True


cdef void worker(void *arg) noexcept nogil:
    cdef Seat *seat = <Seat *>arg
    cdef Job *job
    cdef bint last
    while True:
        PyThread_acquire_lock(seat.wake, WAIT_LOCK)
        PyThread_acquire_lock(pool.mutex, WAIT_LOCK)
        job = seat.job
        seat.job, seat.posted = NULL, False
        if job is not NULL:
            job.active += 1
        PyThread_release_lock(pool.mutex)
        if job is NULL:                 # the call ended before this thread woke
            continue
        work(job, False, False)
        PyThread_acquire_lock(pool.mutex, WAIT_LOCK)
        job.active -= 1
        affirm(job.active >= 0)
        last = job.closed and job.active == 0
        PyThread_release_lock(pool.mutex)
        if last:
            PyThread_release_lock(pool.done)


cdef int seat_workers(int wanted) except -1:
    """Start threads up to `wanted`, if so many are allowed; how many there are."""
    if pool.seated < wanted:
        obey_loader()
        wanted = min(wanted, get(&num_threads) - 1)
        while pool.seated < wanted and seat_worker(&pool.seats[pool.seated]):
            pool.seated += 1
    return min(wanted, pool.seated)


cdef bint seat_worker(Seat *seat) noexcept:
    seat.job, seat.posted = NULL, False
    seat.wake = PyThread_allocate_lock()
    if seat.wake is NULL:
        return False
    PyThread_acquire_lock(seat.wake, WAIT_LOCK)
    if <long>PyThread_start_new_thread(<void (*)(void *) noexcept>worker, seat) == -1:
        PyThread_free_lock(seat.wake)
        return False
    return True


cdef void wake(Job *job, int helpers) noexcept nogil:
    """Have so many workers of the pool work on `job`."""
    cdef int k
    cdef Seat *seat
    affirm(helpers <= pool.seated)
    PyThread_acquire_lock(pool.mutex, WAIT_LOCK)
    for k in range(helpers):
        seat = &pool.seats[k]
        seat.job = job
        if not seat.posted:
            seat.posted = True
            PyThread_release_lock(seat.wake)
    PyThread_release_lock(pool.mutex)


cdef bint dismiss(Job *job, int helpers, int generation) noexcept nogil:
    """Wait until no worker is inside `job`.

    False in a child that a signal handler forked: there, the job has no helpers.
    """
    cdef int k
    cdef bint wait
    if pool.generation != generation:
        return False
    PyThread_acquire_lock(pool.mutex, WAIT_LOCK)
    for k in range(helpers):
        pool.seats[k].job = NULL
    job.closed = True
    wait = job.active > 0
    PyThread_release_lock(pool.mutex)
    while wait:
        if not job.interruptible or get(&job.stop):
            PyThread_acquire_lock(pool.done, WAIT_LOCK)
            wait = False
        elif PyThread_acquire_lock_timed(pool.done, 20000, False) == PY_LOCK_ACQUIRED:
            # ThreadSanitizer does not see timed waits: this lock shows it the order
            PyThread_acquire_lock(pool.mutex, WAIT_LOCK)
            PyThread_release_lock(pool.mutex)
            wait = False
        else:                           # the workers' last tasks take long: let Ctrl-C stop them
            with gil:
                if check_signals():
                    put(&job.stop, True)
            if pool.generation != generation:
                return False
    return True


cdef int run(task_t task, void *args, ix n, double scratch, double seconds,
             bint interruptible=True) except -1:
    cdef Job job
    cdef double worth = min(1 + seconds / WORTH_A_THREAD, <double>n)
    cdef double allowed = min(<double>get(&num_threads), <double>MAX_WORKERS + 1)
    cdef int helpers = <int>min(worth, allowed) - 1
    cdef int generation = pool.generation
    cdef bint ok, forked
    affirm(n >= 0 and scratch >= 0)
    if not scratch < MOST_BYTES:
        raise MemoryError(f"no memory for {scratch:.0f} bytes of scratch")
    job.task, job.args, job.n, job.next, job.scratch = task, args, n, 0, <size_t>scratch
    job.closed, job.active = False, 0
    put(&job.stop, False)
    job.interruptible = interruptible and PyThread_get_thread_ident() == main_thread
    if helpers > 0 and PyThread_acquire_lock(pool.busy, NOWAIT_LOCK):
        try:
            helpers = seat_workers(helpers)
        except BaseException:           # Ctrl-C, while PyTorch was asked
            PyThread_release_lock(pool.busy)
            raise
        with nogil:
            wake(&job, helpers)
            ok = work(&job, True, False)
            forked = not dismiss(&job, helpers, generation)
        if forked:
            raise RuntimeError("a signal handler forked the process during this call; "
                               "in the child its result is incomplete")
        PyThread_release_lock(pool.busy)
    else:
        with nogil:
            ok = work(&job, True, True)
    if get(&job.stop):
        return -1                       # the signal handler's exception is set
    if not ok:
        raise MemoryError(f"no memory for {scratch:.0f} bytes of scratch")
    return 0


def set_default(int n, bint by_environment):
    """Set the number of threads that holds unless a call of this process sets another."""
    put(&num_threads, n)
    put(&chosen, BY_ENVIRONMENT if by_environment else BY_DEFAULT)


def set_count(int n):
    """`set_num_threads` without its checks."""
    fastderiv_set_num_threads(n)


def count():
    obey_loader()
    return get(&num_threads)


cdef int obey_loader() except -1:
    """One thread by default in a worker process of PyTorch's DataLoader, where PyTorch has one too.

    This is asked when threads are about to be started, because the process is forked, or has
    imported this module, before it is told that it is such a worker.
    """
    if get(&chosen) != BY_DEFAULT:
        return 0
    loading = sys.modules.get("torch.utils.data")
    if loading is None:
        return 0
    try:
        if loading.get_worker_info() is not None:
            put(&num_threads, 1)
    except Exception:                   # a module still being imported, or another of that name
        pass
    return 0


def _new_pool():
    """Make the pool, at import and in the child after a fork, which lacks the parent's threads."""
    pool.mutex = PyThread_allocate_lock()
    pool.busy = PyThread_allocate_lock()
    pool.done = PyThread_allocate_lock()
    pool.seated = 0
    if pool.mutex is NULL or pool.busy is NULL or pool.done is NULL:
        raise MemoryError("no memory for a lock")
    PyThread_acquire_lock(pool.done, WAIT_LOCK)


def _after_fork():
    global main_thread
    main_thread = PyThread_get_thread_ident()
    if get(&chosen) == BY_CALL:
        put(&chosen, BY_DEFAULT)        # the call was another process's
    pool.generation += 1
    _new_pool()


_new_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
