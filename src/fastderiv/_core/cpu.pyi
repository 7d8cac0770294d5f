"""What this CPU can run and what this build holds."""

COMPILER: str
FLAGS: str
COMPILED: list[str]  # tags in ascending order, or ["any"]
SUPPORTED: list[str]
