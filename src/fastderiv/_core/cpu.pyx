"""What this CPU can run and what this build holds."""

cdef extern from "cpu.h":
    int cpu_level()
    const char *FASTDERIV_COMPILER
    const char *FASTDERIV_FLAGS
    const char *FASTDERIV_LEVELS

COMPILER = FASTDERIV_COMPILER.decode()
FLAGS = FASTDERIV_FLAGS.decode()
COMPILED = FASTDERIV_LEVELS.decode().split()        # tags in ascending order, or ["any"]
SUPPORTED = [tag for tag in COMPILED if tag == "any" or int(tag[1:]) <= cpu_level()]
