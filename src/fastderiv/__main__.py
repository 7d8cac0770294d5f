"""``python -m fastderiv [demo | info | bench]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import __version__
from ._cli.output import count, fit_terminal, picture


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastderiv",
        description="Compiled kernels and their derivatives on plain NumPy arrays.",
    )
    parser.add_argument("--version", action="version", version=f"fastderiv {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    demo = commands.add_parser("demo", help="check and time the kernels on real data (the default)")
    # both before and after "demo", so that `python -m fastderiv --plot FILE` works as well
    for place, default in ((parser, None), (demo, argparse.SUPPRESS)):
        place.add_argument(
            "--plot",
            metavar="FILE",
            type=picture,
            default=default,
            help="also draw what the demo computes (needs matplotlib)",
        )
    commands.add_parser("info", help="what this installation is: compiler, CPU level, threads")
    bench = commands.add_parser("bench", help="microbenchmarks against NumPy")
    bench.add_argument("--json", action="store_true", help="machine-readable output only")
    bench.add_argument("--quick", action="store_true", help="small sizes and few rounds")
    bench.add_argument(
        "--threads", type=count, default=1, metavar="N", help="threads for fastderiv (default: 1)"
    )
    return parser


def _demo(plot: Path | None) -> int:
    from ._cli import demo

    if plot is None:
        return demo.run().status
    from ._cli.plot import draw

    result = demo.run()
    try:
        draw(result, plot)
    except OSError as error:  # a full disk, a folder that went away
        print(f"--plot {plot}: {error}", file=sys.stderr)
        return 2
    print(f"\nWrote {plot}")
    return result.status


def _bench(as_json: bool, quick: bool, threads: int) -> int:
    from . import show_config
    from ._cli import bench

    results = bench.run(quick=quick, threads=threads)
    if as_json:
        print(
            json.dumps(
                {
                    "config": show_config(),
                    "threads": threads,
                    "results": [r.as_dict() for r in results],
                },
                indent=1,
            )
        )
    else:
        print(bench.table(results, threads))
    return 0 if all(r.agrees for r in results) else 1


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status: 0, 1 if a check failed, 2 if it was called wrongly."""
    fit_terminal()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.plot is not None and options.command in ("info", "bench"):
        parser.error("--plot belongs to the demo")
    try:
        if options.command == "info":
            from . import show_config

            print(show_config())
            return 0
        if options.command == "bench":
            return _bench(options.json, options.quick, options.threads)
        return _demo(options.plot)
    except BrokenPipeError:  # `python -m fastderiv | head`: whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
