"""What every room stands on: argument checks, the thread pool, the choice of CPU level, vector maths."""
