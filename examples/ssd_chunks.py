"""A long sequence scanned in chunks that could be on different machines.

Each machine holds one chunk.  It sums its chunk up as a map of the state (`ssd_chunk_summary`),
sends that to the others, and gets theirs; from those of the chunks before its own it knows the
state at its start (`combine_summaries`), and scans its chunk from there (`ssd_scan`).  What is sent
has the size of one state, whatever the length of a chunk.

    python examples/ssd_chunks.py [--steps L] [--machines K]
"""

import argparse
from functools import reduce

import numpy as np

import fastderiv as fd

HEADS, WIDTH, STATES = 8, 64, 128


class Machine:
    """One chunk of the sequence: x (steps, H, P), dt (steps, H), B and C (steps, 1, N)."""

    def __init__(self, x, dt, A, B, C):
        self.x, self.dt, self.A, self.B, self.C = x, dt, A, B, C

    def summary(self):
        """What this machine sends to the others."""
        return fd.ssd_chunk_summary(self.x, self.dt, self.A, self.B, dt_softplus=True)

    def scan(self, before):
        """Its part of the result, from the summaries of all chunks before its own, in order."""
        state = reduce(fd.combine_summaries, before).q if before else None  # from a state of zeros
        return fd.ssd_scan(
            self.x, self.dt, self.A, self.B, self.C, dt_softplus=True, initial_state=state
        )


def sequence(steps, seed=0):
    """x, dt, A, B and C in float32; heads forget within about 2 to 300 steps."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((steps, HEADS, WIDTH), np.float32)
    dt = rng.standard_normal((steps, HEADS), np.float32) - np.float32(3)
    A = -np.geomspace(0.05, 8, HEADS).astype(np.float32)
    B, C = rng.standard_normal((2, steps, 1, STATES), np.float32)
    return x, dt, A, B, C


def in_chunks(machines):
    """The scan of the whole sequence, and the bytes that one machine sends."""
    summaries = [machine.summary() for machine in machines]  # all at the same time
    parts = [machine.scan(summaries[:k]) for k, machine in enumerate(machines)]  # likewise
    return np.concatenate(parts), sum(a.nbytes for a in summaries[0])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8192, help="length (default: %(default)s)")
    parser.add_argument("--machines", type=int, default=4, help="chunks (default: %(default)s)")
    given = parser.parse_args()
    if given.steps < 1 or given.machines < 1:
        parser.error("expected positive numbers")
    x, dt, A, B, C = sequence(given.steps)
    cuts = np.array_split(np.arange(given.steps), given.machines)
    machines = [Machine(x[at], dt[at], A, B[at], C[at]) for at in cuts]
    y, sent = in_chunks(machines)
    whole = fd.ssd_scan(x, dt, A, B, C, dt_softplus=True)
    off = np.abs(y - whole).max() / np.abs(whole).max()
    print(f"{given.steps} steps in {given.machines} chunks; each machine sends {sent} bytes")
    print(f"largest difference from the scan of the whole, relatively: {off:.1e}")


if __name__ == "__main__":
    main()
