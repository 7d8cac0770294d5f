"""The thread's floating-point control register as a context manager."""

from .fpstate cimport fp_change, fp_default, fp_get, fp_leave, fp_word


cdef class ieee:
    """``with ieee():`` puts this thread into round to nearest, gradual underflow and no traps.

    Afterwards the caller's state is back.  ``ieee.current()`` is a context manager of the state
    that is in force now, for callbacks: a user's function runs in the user's state.
    """
    cdef fp_word wanted, before

    def __cinit__(self):
        self.wanted = fp_default()

    @staticmethod
    def current():
        cdef ieee state = ieee()
        state.wanted = fp_get()
        return state

    def again(self):
        """Another one for the same state: one object cannot be entered inside itself."""
        cdef ieee state = ieee()
        state.wanted = self.wanted
        return state

    def __enter__(self):
        self.before = fp_change(self.wanted)
        return self

    def __exit__(self, kind, value, traceback):
        fp_leave(self.before)
