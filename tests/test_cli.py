"""``python -m fastderiv``: what it prints, and when it fails."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fastderiv as fd
from fastderiv.__main__ import main
from fastderiv._cli import bench, demo


def run(*arguments, **environment):
    """The command in a process of its own, and what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "fastderiv", *arguments],
        env=os.environ | environment,
        check=False,
        capture_output=True,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
        timeout=120,
    )


def test_demo_is_the_default_passes_and_shows_every_section_in_ascii():
    done = run(PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for title in ("(a) Where", "(b) A selective scan", "(c) One product", "(d) How much faster"):
        assert title in done.stdout
    assert "FAILED" not in done.stdout
    assert "All checks passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "name", ["find_x1", "selective_scan", "subset_logsumexp", "transition_product"]
)
def test_demo_fails_when_a_kernel_is_wrong(name, monkeypatch, capsys):
    right = getattr(fd, name)

    def wrong(*arguments, **options):
        result = right(*arguments, **options)
        if name == "find_x1":
            result.x[3] += 1e-3
            return result
        # both methods of one identity must not be wrong alike
        return result * (1 + 1e-3 * (options.get("method") != "closed"))

    monkeypatch.setattr(fd, name, wrong)
    monkeypatch.setattr(demo, "SECTIONS", demo.SECTIONS[:3])
    assert main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED")


@pytest.mark.parametrize("value", [np.nan, 1.001])
def test_bench_fails_when_a_kernel_is_wrong(value, monkeypatch, capsys):
    right = fd.subset_sums
    monkeypatch.setattr(fd, "subset_sums", lambda x, out: right(x, out=out) * value)
    assert main(["bench", "--quick"]) == 1
    assert capsys.readouterr().out.count("FAILED") == 1


def test_bench_prints_json_only(capsys):
    before = fd.get_num_threads()
    assert main(["bench", "--quick", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {r["kernel"] for r in printed["results"]} >= {
        "selective_scan",
        "subset_logsumexp",
        "SigmoidMLP.margin",
    }
    assert all(
        r["ratio"] > 0 and r["seconds"] > 0 and r["ns_per_unit"] > 0 and r["agrees"]
        for r in printed["results"]
    )
    assert printed["config"]["fastderiv"] == fd.__version__
    assert fd.get_num_threads() == before


def test_bench_table_has_a_line_per_case(capsys):
    assert main(["bench", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(" instead of " in line for line in lines) == len(list(bench.cases(quick=True)))


def test_info_prints_the_configuration(capsys):
    assert main(["info"]) == 0
    assert capsys.readouterr().out == f"{fd.show_config()}\n"


def test_version():
    done = run("--version")
    assert done.returncode == 0 and done.stdout == f"fastderiv {fd.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["unheard-of"],
        ["bench", "--threads", "0"],
        ["bench", "--threads", "many"],
        ["--plot", "x.png", "info"],
        ["demo", "--plot"],
    ],
)
def test_wrong_calls_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("before", [[], ["demo"]])
def test_plot_writes_a_picture(before, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "SECTIONS", demo.SECTIONS[:2])
    picture = tmp_path / "demo.png"
    assert main([*before, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert capsys.readouterr().out.endswith(f"Wrote {picture}\n")


def test_plot_without_an_ending_says_what_is_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "SECTIONS", demo.SECTIONS[:2])
    assert main(["--plot", str(tmp_path / "demo")]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["demo.png"]
    assert capsys.readouterr().out.endswith(f"Wrote {tmp_path / 'demo.png'}\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no such folder/demo.png", "there is no folder"),
        ("", "is a folder; expected a file"),
        ("taken.png", "is a folder; expected a file"),
        ("taken", "is a folder; expected a file"),  # to which matplotlib would append .png
        ("demo.unheard", "ends in .unheard; expected one of"),
        ("demo.docx.gz", "ends in .gz; expected one of"),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused_before_any_work(
    name, said, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    (tmp_path / "taken.png").mkdir()
    monkeypatch.setattr(demo, "run", lambda: pytest.fail("it worked first"))
    for arguments in (["--plot", str(tmp_path / name)], ["demo", "--plot", str(tmp_path / name)]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["taken.png"]


def test_a_disk_that_fills_up_meanwhile_is_reported(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    from fastderiv._cli import plot

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(demo, "SECTIONS", demo.SECTIONS[:2])
    monkeypatch.setattr(plot, "draw", full)
    assert main(["--plot", str(tmp_path / "demo.png")]) == 2
    printed = capsys.readouterr()
    assert "no space left" in printed.err
    assert "Wrote" not in printed.out


def test_plot_without_matplotlib_says_how_to_get_it_first(monkeypatch, capsys):
    monkeypatch.setattr(demo, "run", lambda: pytest.fail("it worked first"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as ended:
        main(["--plot", "never-written.png"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "pip install 'fastderiv[demo]'" in printed.err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_the_terminal_cannot_show_are_escaped(encoding, tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "weiß ∂"
    for name in ("no such/∂.png", "∂.unheard"):
        done = run("--plot", str(folder / name), PYTHONIOENCODING=encoding)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "\\u2202" in done.stderr
