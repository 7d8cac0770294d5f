"""The thread's floating-point control register from Python: glibc's fenv, on x86-64 and AArch64."""

import ctypes
import platform
from contextlib import contextmanager

X86, ARM = platform.machine() in ("x86_64", "AMD64"), platform.machine() == "aarch64"
AVAILABLE = (X86 or ARM) and platform.libc_ver()[0] == "glibc"

ROUNDING = {
    "down": 0x400 if X86 else 0x800000,
    "up": 0x800 if X86 else 0x400000,
    "to zero": 0xC00 if X86 else 0xC00000,
}
STATES = [
    "nearest",
    "down",
    "up",
    "to zero",
    "flushed",
]  # flushed: subnormal results and, on x86-64, operands become zero
CONTROL = (
    0xFFC0 if X86 else 0xFFFFFFFF
)  # the six lowest bits of MXCSR are flags that operations leave
WORD = slice(28, 32) if X86 else slice(0, 4)  # MXCSR or FPCR in glibc's fenv_t
FLUSH = 0x8040 if X86 else 1 << 24

if AVAILABLE:
    libm = ctypes.CDLL("libm.so.6")


def environment():
    env = ctypes.create_string_buffer(64)
    libm.fegetenv(env)
    return env


def word():
    """The control bits in force."""
    return int.from_bytes(environment().raw[WORD], "little") & CONTROL


@contextmanager
def in_state(name):
    before = environment()
    try:
        if name == "flushed":
            env = bytearray(before.raw)
            env[WORD] = (int.from_bytes(env[WORD], "little") | FLUSH).to_bytes(4, "little")
            libm.fesetenv(ctypes.create_string_buffer(bytes(env), 64))
        elif name != "nearest":
            assert libm.fesetround(ROUNDING[name]) == 0
        yield
    finally:
        libm.fesetenv(before)
