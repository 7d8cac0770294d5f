"""fastderiv.integrations.mamba_ssm: names, real packages, scripts, and the raw extensions."""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fastderiv

torch = pytest.importorskip("torch")
from fastderiv.integrations.mamba_ssm import _finder, _serving, install, uninstall
from fastderiv.integrations.torch import causal_conv1d, causal_conv1d_update, selective_scan

SCRIPTS = sorted(Path(__file__).with_name("gpu_scripts").glob("*.py"))
QUICK = {"speech_codes"}
SOURCE = Path(fastderiv.__file__).parents[1]  # the tree, or where it is installed
PACKAGES = SOURCE / "fastderiv" / "integrations" / "mamba_ssm" / "packages"


def ours(name):
    """Whether a name leads to our files."""
    spec = importlib.util.find_spec(name)
    return spec is not None and PACKAGES in Path(spec.origin).parents


# whether the originals are there, without their extensions
ORIGINALS = importlib.util.find_spec("mamba_ssm") is not None
absent = pytest.mark.skipif(ORIGINALS, reason="is about packages that are not installed")


@pytest.fixture(autouse=True)
def uninstalled_afterwards():
    """Also forgets what a test has imported; torch uses one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    uninstall()
    for name in _finder.NAMES:
        _finder.forget(name)


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


# ---- names -------------------------------------------------------------------------------------


@absent
def test_every_name_leads_to_a_file_of_ours_until_uninstalled():
    finders = list(sys.meta_path)
    install()
    for name in _finder.NAMES:
        spec = importlib.util.find_spec(name)
        assert ours(name) and spec.name == name and name not in sys.modules
        module = importlib.import_module(name)
        assert ours(name) and Path(module.__file__) == Path(module.__spec__.origin)
    uninstall()
    assert sys.meta_path == finders
    for name in _finder.NAMES:
        assert importlib.util.find_spec(name) is None and name not in sys.modules
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


@absent
@pytest.mark.parametrize(
    "name, least", [("mamba_ssm", "2.3"), ("mamba-ssm", "2.0.4"), ("causal_conv1d", "1.4")]
)
def test_metadata_and_version_say_the_same_and_are_new_enough(name, least):
    version = pytest.importorskip("packaging.version")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(name)
    install()
    module = importlib.import_module(name.replace("-", "_"))
    found = importlib.metadata.distribution(name)
    assert found.version == module.__version__ == importlib.metadata.version(name)
    assert version.parse(found.version) >= version.parse(least) and "fastderiv" in found.version
    assert found.metadata["Name"] == module.__name__
    assert module.__name__ in importlib.metadata.packages_distributions()
    assert found.locate_file(f"{module.__name__}/__init__.py") == Path(module.__file__)
    uninstall()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(name)


def test_metadata_of_a_given_folder_is_not_ours(tmp_path):
    install()
    assert not list(importlib.metadata.distributions(path=[str(tmp_path)]))


def test_installing_twice_or_at_once_is_installing_once():
    finders = len(sys.meta_path)
    threads = [threading.Thread(target=install) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    install()
    assert len(sys.meta_path) == finders + 1
    uninstall()
    uninstall()
    assert len(sys.meta_path) == finders


def test_what_was_imported_in_between_keeps_working(tmp_path, monkeypatch):
    write(tmp_path, {"users_model.py": "from mamba_ssm import Mamba\nimport mamba_ssm.ops\n"})
    monkeypatch.syspath_prepend(tmp_path)
    install()
    model = importlib.import_module("users_model")
    layer = model.Mamba(8, d_state=4)
    before = layer(torch.ones(1, 5, 8))
    uninstall()
    del sys.modules["users_model"]
    assert torch.equal(layer(torch.ones(1, 5, 8)), before)
    assert torch.equal(model.Mamba(8, d_state=4).D, layer.D)


def test_pickles_name_what_a_gpu_machine_has():
    install()
    from mamba_ssm import Mamba

    file = io.BytesIO()
    torch.save(Mamba(8, d_state=4), file)
    assert b"mamba_ssm.modules.mamba_simple" in file.getvalue()
    assert b"fastderiv" not in file.getvalue()
    assert pickle.loads(pickle.dumps(Mamba)) is Mamba


def test_a_mere_folder_of_that_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "mamba_ssm").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    install()
    assert ours("mamba_ssm")


# ---- real packages -----------------------------------------------------------------------------

# a function of a real package: it says that it was called, and on what
REAL = """
import sys
def {name}(*args, **kwargs):
    return "real", args[0].device.type
"""
EXTENSION = REAL.format(name="fwd") + REAL.format(name="bwd")
MAMBA = {
    "mamba_ssm/__init__.py": "__version__ = '1.2'\n"
    "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn\n",
    "mamba_ssm/ops/__init__.py": "",
    "mamba_ssm/ops/selective_scan_interface.py": "import selective_scan_cuda\n"
    + REAL.format(name="selective_scan_fn"),
    "mamba_ssm-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: mamba-ssm\nVersion: 1.2\n",
}
USER = "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as scan\n"


def scan_arguments(device="cpu"):
    u = torch.ones(1, 2, 3, device=device)
    one = torch.ones(2, 1, device=device)
    return u, u, -one, one, one


@pytest.mark.parametrize("imported_before", [False, True])
def test_a_real_package_is_served_on_the_cpu_only(imported_before, tmp_path, monkeypatch):
    write(tmp_path, MAMBA | {"selective_scan_cuda.py": EXTENSION, "users_model.py": USER})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_model", raising=False)
    if imported_before:
        importlib.import_module("users_model")
    install()
    user = importlib.import_module("users_model")
    real = importlib.import_module("mamba_ssm")
    assert Path(real.__file__).parent.parent == tmp_path
    assert importlib.metadata.version("mamba_ssm") == "1.2"
    for scan in (user.scan, real.selective_scan_fn):
        assert torch.equal(scan(*scan_arguments()), selective_scan(*scan_arguments()))
        assert scan(*scan_arguments("meta")) == ("real", "meta")
        assert scan(*scan_arguments(), newer=1) == ("real", "cpu")  # unknown to us
    extension = importlib.import_module("selective_scan_cuda")
    assert type(extension.__spec__.loader) is importlib.machinery.SourceFileLoader
    arguments = (None, None, None, False)
    assert len(extension.fwd(*scan_arguments(), *arguments)) == 2
    assert extension.fwd(*scan_arguments("meta"), *arguments) == ("real", "meta")
    uninstall()
    for scan in (user.scan, real.selective_scan_fn):
        assert scan(*scan_arguments()) == ("real", "cpu")
    assert extension.fwd(*scan_arguments()) == ("real", "cpu")
    assert importlib.import_module("mamba_ssm") is real


def test_arguments_of_an_older_version_are_matched_by_name(tmp_path, monkeypatch):
    of_1_0 = (
        "def causal_conv1d_fn(x, weight, bias=None, activation=None, older=None):\n    return 1\n"
    )
    interface = {
        "causal_conv1d/__init__.py": "from .causal_conv1d_interface import causal_conv1d_fn\n",
        "causal_conv1d/causal_conv1d_interface.py": of_1_0,
        "causal_conv1d_cuda.py": "",
    }
    write(tmp_path, interface)
    monkeypatch.syspath_prepend(tmp_path)
    install()
    convolve = importlib.import_module("causal_conv1d").causal_conv1d_fn
    x, weight, bias, _ = (t.detach() for t in conv_problem())
    expected = causal_conv1d(x, weight, bias, activation="silu")
    assert torch.equal(convolve(x, weight, bias, "silu"), expected)
    assert torch.equal(convolve(x, weight, bias=bias, activation="silu"), expected)
    assert convolve(x, weight, bias, "silu", 3) == 1  # unknown to us
    assert convolve(x.to("meta"), weight, bias, "silu") == 1


def test_a_served_function_compiles_without_a_graph_break(tmp_path, monkeypatch):
    write(tmp_path, MAMBA | {"selective_scan_cuda.py": EXTENSION})
    monkeypatch.syspath_prepend(tmp_path)
    install()
    scan = importlib.import_module("mamba_ssm").selective_scan_fn
    compiled = torch.compile(scan, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*scan_arguments()), selective_scan(*scan_arguments()))


def test_a_real_package_without_its_extension_counts_as_missing(tmp_path, monkeypatch):
    write(tmp_path, MAMBA)
    monkeypatch.syspath_prepend(tmp_path)
    install()
    assert ours("mamba_ssm") and ours("causal_conv1d")
    version = importlib.metadata.version("mamba_ssm")
    assert importlib.import_module("mamba_ssm").__version__ == version != "1.2"
    uninstall()
    assert importlib.metadata.version("mamba_ssm") == "1.2"
    with pytest.raises(ModuleNotFoundError, match="selective_scan_cuda"):
        importlib.import_module("mamba_ssm")


@pytest.mark.parametrize("error", ["import triton_of_which_there_is_none", "raise OSError('no')"])
def test_a_real_package_that_cannot_be_imported_is_replaced(error, tmp_path, monkeypatch):
    broken = {"mamba_ssm/ops/selective_scan_interface.py": error}
    write(tmp_path, MAMBA | {"selective_scan_cuda.py": EXTENSION} | broken)
    monkeypatch.syspath_prepend(tmp_path)
    install()
    with pytest.warns(RuntimeWarning, match="mamba_ssm that is installed cannot be imported"):
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    assert ours("mamba_ssm") and PACKAGES in Path(module.__file__).parents
    top = sys.modules["mamba_ssm"]
    assert top.__spec__.origin == top.__file__ and top.Mamba.__module__.startswith("mamba_ssm.")
    assert top.__version__ == importlib.metadata.version("mamba_ssm") != "1.2"
    uninstall()
    assert importlib.metadata.version("mamba_ssm") == "1.2"


def test_an_extension_that_does_not_load_is_replaced_with_its_package(tmp_path, monkeypatch):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    write(tmp_path, MAMBA | {f"selective_scan_cuda{suffix}": "built for another PyTorch"})
    monkeypatch.syspath_prepend(tmp_path)
    install()
    with pytest.warns(RuntimeWarning, match="the selective_scan_cuda that is installed"):
        module = importlib.import_module("mamba_ssm")
    assert ours("selective_scan_cuda") and ours("mamba_ssm") and "Mamba2" in vars(module)
    arguments = scan_arguments()
    assert torch.equal(module.selective_scan_fn(*arguments), selective_scan(*arguments))


def test_modules_of_other_kinds_are_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)  # a way to forbid an import
    install()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm")
    uninstall()
    assert sys.modules["mamba_ssm"] is None


def test_install_imports_no_torch():
    code = "import sys; from fastderiv.integrations.mamba_ssm import install; install()\n"
    assert run("-c", code + "assert 'torch' not in sys.modules") == (0, "", "")


@absent
def test_a_complete_mamba_ssm_gets_no_causal_conv1d_of_ours(tmp_path, monkeypatch):
    write(tmp_path, MAMBA | {"selective_scan_cuda.py": EXTENSION})
    monkeypatch.syspath_prepend(tmp_path)
    install()
    assert importlib.util.find_spec("causal_conv1d") is None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("causal_conv1d")


def test_every_function_that_is_served_has_a_counterpart():
    for module, names in _serving.SERVED.items():
        found = importlib.import_module(f"fastderiv.integrations.mamba_ssm.packages.{module}")
        for name in names:
            assert callable(getattr(found, name))


# ---- scripts -----------------------------------------------------------------------------------


def run(*arguments, cwd=None, **environment):
    paths = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


WITH = ("-m", "fastderiv.integrations.mamba_ssm")
PROGRAMS = {
    "arguments": "import sys; print(sys.argv[1:], __name__, __file__, __spec__, sys.path[0])",
    "exit code": "import sys; sys.exit(3)",
    "exit message": "import sys; sys.exit('so not')",
    "error": "def f():\n    raise ValueError('x')\nf()",
    "syntax error": "def f(:",
    "module is main": "import __main__, pickle\nclass A: pass\n"
    "assert __main__.A is A is pickle.loads(pickle.dumps(A))",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_script_runs_as_under_python_itself(program, tmp_path):
    write(tmp_path, {"deep/script.py": PROGRAMS[program]})
    script = tmp_path / "deep" / "script.py"
    assert run(*WITH, script, "a", "-m", "b") == run(script, "a", "-m", "b")


@pytest.mark.parametrize("what", ["a module", "no module", "a folder", "no file"])
def test_what_else_python_runs_runs_as_well(what, tmp_path):
    write(tmp_path, {"job.py": PROGRAMS["arguments"].replace("__spec__", "__spec__.name")})
    write(tmp_path, {"app/__main__.py": "import sys, beside; print(sys.argv, sys.path[0])"})
    write(tmp_path, {"app/beside.py": ""})
    named = {"a module": ["-m", "job", "-m"], "no module": ["-m", "job.none"]}
    named |= {"a folder": [tmp_path / "app"], "no file": ["none.py"]}
    arguments = [*named[what], "-x"]
    assert run(*WITH, *arguments, cwd=tmp_path) == run(*arguments, cwd=tmp_path)


def test_usage_is_said():
    code, out, err = run(*WITH)
    assert code == 2 and not out and "usage: python -m" in err
    assert run(*WITH, "--help")[:2] == (0, err)
    assert run(*WITH, "-q")[0] == 2


CHILDREN = """
import importlib.util, multiprocessing, subprocess, sys
assert "theirs" in sys.modules
def found(_):
    return importlib.util.find_spec("mamba_ssm") is not None
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(found, [0]) == [True]
    code = "import importlib.util; assert importlib.util.find_spec('mamba_ssm')"
    subprocess.run([sys.executable, "-c", code], check=True)
"""


def test_processes_that_a_script_starts_find_the_packages(tmp_path):
    site = {"sitecustomize.py": "import theirs", "theirs.py": ""}
    write(tmp_path, {"script.py": CHILDREN} | {f"site/{name}": text for name, text in site.items()})
    paths = os.pathsep.join([str(SOURCE), str(tmp_path / "site")])
    assert run(*WITH, tmp_path / "script.py", PYTHONPATH=paths) == (0, "", "")


def test_a_python_that_fastderiv_is_not_for_is_left_alone(tmp_path):
    startup = Path("fastderiv", "integrations", "mamba_ssm", "startup", "sitecustomize.py")
    source = (SOURCE / startup).read_text(encoding="utf-8")
    broken = "raise ImportError('built for another Python')"
    write(tmp_path, {startup: source, "fastderiv/__init__.py": broken})
    code = "import sys; print(*sys.path, sep='\\n')"
    done = subprocess.run(
        [sys._base_executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str((tmp_path / startup).parent)},
    )
    assert not any(path.startswith(str(tmp_path)) for path in done.stdout.splitlines())


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
        for path in SCRIPTS
    ],
)
def test_code_written_for_a_gpu_runs_and_checks_itself(script):
    code, out, err = run(*WITH, script, "--device", "cpu")
    assert code == 0 and out, err


TRANSFORMERS = """
import importlib, sys, torch, transformers
from fastderiv.integrations import transformers as fast
from fastderiv.integrations.mamba_ssm import install
transformers.logging.set_verbosity_error()
sizes = dict(vocab_size=37, hidden_size=32, num_hidden_layers=2, state_size=8)
ids = torch.arange(18).reshape(2, 9)

def results(family, **options):
    torch.manual_seed(0)
    name = f"transformers.models.{family.lower()}.modeling_{family.lower()}"
    config = getattr(transformers, f"{family}Config")(**sizes, **options)
    model = getattr(importlib.import_module(name), f"{family}ForCausalLM")(config)
    model(ids, labels=ids).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.eval()
    greedy = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    return gradients | {"tokens": model.generate(ids, **greedy).float()}

def same(found, expected):
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        assert (found[name] - t).abs().max() <= 1e-4 * t.abs().max(), name

families = {"Mamba": {}, "Mamba2": dict(num_heads=4, head_dim=16, n_groups=1)}
stock = {family: results(family, **options) for family, options in families.items()}
for name in [name for name in sys.modules if ".modeling_mamba" in name]:
    del sys.modules[name]
install()
for family, options in families.items():
    same(results(family, **options), stock[family])
assert ("mamba_ssm" in sys.modules) == (int(transformers.__version__.split(".")[0]) >= 5)
with fast.enabled():
    for family, options in families.items():
        same(results(family, **options), stock[family])
"""


@pytest.mark.slow
def test_models_of_transformers_work_with_it_alone_and_enabled():
    pytest.importorskip("transformers")
    code, _, err = run("-W", "ignore", "-c", TRANSFORMERS)
    assert code == 0, err


@pytest.mark.slow
@pytest.mark.skipif(not ORIGINALS, reason="needs the original packages")
@pytest.mark.parametrize("script", ["dna_bidirectional", "language_model"])
def test_the_original_packages_are_served(script, tmp_path):
    """With extensions that refuse tensors on the CPU, as those of CUDA do."""
    refuse = "def {0}(*args):\n    raise RuntimeError('Expected u.is_cuda() to be true')\n"
    of_conv = ("causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update")
    extensions = {"selective_scan_cuda": ("fwd", "bwd"), "causal_conv1d_cuda": of_conv}
    for name, functions in extensions.items():
        write(tmp_path, {f"{name}.py": "".join(map(refuse.format, functions))})
    path = next(path for path in SCRIPTS if path.stem == script)
    paths = os.pathsep.join([str(SOURCE), str(tmp_path)])
    code, out, err = run(*WITH, path, "--device", "cpu", PYTHONPATH=paths)
    assert code == 0 and out and "takes its place" not in err, err
    done = run(path, "--device", "cpu", PYTHONPATH=paths)
    assert done[0] == 1 and ("Expected u.is_cuda()" in done[2] or "triton" in done[2])


# ---- raw extensions ----------------------------------------------------------------------------


def scan_problem(length, dtype=torch.float32, states=3):
    generator = torch.Generator().manual_seed(0)
    b, d, groups = 2, 4, 2
    shapes = {
        "u": (b, d, length),
        "delta": (b, d, length),
        "A": (d, states),
        "B": (b, groups, states, length),
        "C": (b, groups, states, length),
        "D": (d,),
        "z": (b, d, length),
        "delta_bias": (d,),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].abs()
    for name in ("u", "delta", "B", "C", "z"):  # A, D and delta_bias are float32 in models
        tensors[name] = tensors[name].to(dtype)
    return {name: t.requires_grad_() for name, t in tensors.items()}


def close(found, expected, tolerance=2e-6):
    return (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("length", [7, 5000])
def test_the_extension_of_mamba_ssm_is_the_scan_and_its_gradients(length, gate):
    install()
    import selective_scan_cuda

    p = scan_problem(length)
    if not gate:
        p["z"] = None
    expected, last = selective_scan(**p, delta_softplus=True, return_last_state=True)
    dout = torch.randn_like(expected)
    expected.backward(dout)
    order = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    arguments = [p[name] for name in order]
    out, x, *gated = selective_scan_cuda.fwd(*arguments, True)
    assert x.shape == (2, 4, -(-length // 2048), 6) and close(x[:, :, -1, 1::2], last)
    _, middle = selective_scan(
        **{name: t[..., :2048] if t is not None and t.ndim > 2 else t for name, t in p.items()},
        delta_softplus=True,
        return_last_state=True,
    )
    assert close(x[:, :, 0, 1::2], middle) and not out.requires_grad and len(gated) == gate
    assert close(gated[0] if gate else out, expected)
    dz = torch.empty(2, 4, length) if gate else None
    grads = selective_scan_cuda.bwd(*arguments, dout, x, out, dz, True, gate)
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias", *(["z"] if gate else []))
    for name, gradient in zip(names, grads, strict=False):
        assert close(gradient, p[name].grad), name
    assert len(grads) == len(names) + gate
    if gate:
        assert grads[7] is dz and close(grads[8], expected)


@pytest.mark.parametrize("name", ["selective_scan_cuda_oflex", "selective_scan_cuda_core"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extensions_of_vmamba_have_its_dtypes(name, dtype):
    install()
    extension = importlib.import_module(name)
    p = {key: t for key, t in scan_problem(9, dtype).items() if key != "z"}
    wide = {key: t.detach().float().requires_grad_() for key, t in p.items()}
    expected = selective_scan(**wide, delta_softplus=True)
    dout = torch.randn_like(expected)
    expected.backward(dout)
    order = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    arguments = [p[key] for key in order]
    for oflex in (True, False) if name.endswith("oflex") else (None,):
        options = () if oflex is None else (oflex,)
        out, x = extension.fwd(*arguments, True, 1, *options)
        assert out.dtype == (torch.float32 if oflex else dtype) and x.dtype == torch.float32
        assert close(out.float(), expected, 2e-6 if oflex else 2 * torch.finfo(dtype).eps)
        grads = extension.bwd(*arguments, dout.to(out.dtype), x, True, 1)
        for key, gradient in zip(order, grads, strict=True):
            assert gradient.dtype == p[key].dtype, key
            assert close(gradient.float(), wide[key].grad, 4 * torch.finfo(dtype).eps), key


def test_channels_of_vmamba_may_share_their_step_sizes():
    install()
    import selective_scan_cuda_oflex

    p = {key: t.detach() for key, t in scan_problem(9).items() if key != "z"}
    delta, bias = p["delta"][:, ::2].clone(), p["delta_bias"][::2].clone()
    shared = [t.requires_grad_() for t in (delta, bias)]
    p["delta"], p["delta_bias"] = (t.repeat_interleave(2, t.ndim // 2) for t in shared)
    expected = selective_scan(**p, delta_softplus=True)
    dout = torch.randn_like(expected)
    expected.backward(dout)
    arguments = (p["u"], delta, p["A"], p["B"], p["C"], p["D"], bias)
    out, x = selective_scan_cuda_oflex.fwd(*arguments, True, 1, True)
    assert close(out, expected)
    _, ddelta, *_, dbias = selective_scan_cuda_oflex.bwd(*arguments, dout, x, True, 1)
    assert close(ddelta, delta.grad) and close(dbias, bias.grad)


def test_arguments_that_are_missing_have_no_gradient():
    install()
    import selective_scan_cuda_core

    arguments = (*scan_arguments(), None, None)
    out, x = selective_scan_cuda_core.fwd(*arguments, False, 1)
    *_, dD, ddelta_bias = selective_scan_cuda_core.bwd(*arguments, out, x, False, 1)
    assert dD is None and ddelta_bias is None


def conv_problem():
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 3, 9), (3, 4), (3,), (2, 3, 3))
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def test_the_convolution_in_the_signatures_of_all_versions():
    install()
    import causal_conv1d_cuda as conv

    x, weight, bias, first = conv_problem()
    last, out = torch.zeros(2, 3, 3), torch.zeros(2, 3, 9)
    alone = causal_conv1d(x, weight, bias, activation="silu")
    assert close(conv.causal_conv1d_fwd(x, weight, bias, True), alone)
    assert close(conv.causal_conv1d_fwd(x, weight, bias, None, True), alone)
    expected, state = causal_conv1d(
        x, weight, bias, None, first, return_final_states=True, activation="silu"
    )
    assert close(conv.causal_conv1d_fwd(x, weight, bias, None, first, last, True), expected)
    assert close(last, state)
    last.zero_()
    assert conv.causal_conv1d_fwd(x, weight, bias, None, first, out, last, True) is None
    assert close(out, expected) and close(last, state)


def test_the_gradients_of_the_convolution_in_the_signatures_of_all_versions():
    install()
    import causal_conv1d_cuda as conv

    x, weight, bias, first = conv_problem()
    dout, dlast = torch.randn(2, 3, 9), torch.randn(2, 3, 3)
    alone = torch.autograd.grad(
        causal_conv1d(x, weight, bias, activation="silu"), (x, weight, bias), dout
    )
    dx = torch.zeros(2, 3, 9)
    for options in ((dx, True), (None, dx, True), (None, None, None, dx, False, True)):
        found = conv.causal_conv1d_bwd(x, weight, bias, dout, *options)
        assert found[0] is dx and all(map(close, found, alone))
    results = causal_conv1d(
        x, weight, bias, None, first, return_final_states=True, activation="silu"
    )
    whole = torch.autograd.grad(results, (x, weight, bias, first), (dout, dlast))
    found = conv.causal_conv1d_bwd(x, weight, bias, dout, None, first, dlast, None, True, True)
    assert len(found) == 4 and all(map(close, found, whole))
    written = [torch.zeros(t.shape) for t in whole]
    options = (None, first, dlast, *written, True)
    assert conv.causal_conv1d_bwd(x, weight, bias, dout, *options) is None
    assert all(map(close, written, whole))


def test_steps_of_the_convolution_in_the_signatures_of_all_versions():
    install()
    import causal_conv1d_cuda as conv

    x, weight, bias, first = (t.detach() for t in conv_problem())
    x, indices = x[:, :, 0], torch.tensor([1, 0], dtype=torch.int32)
    state, out = first.clone(), torch.zeros(2, 3)
    expected = causal_conv1d_update(x, state, weight, bias, "silu")
    for options in ((True,), (True, None), (True, None, None), (out, True, None, None)):
        own = first.clone()
        found = conv.causal_conv1d_update(x, own, weight, bias, *options)
        assert close(out if found is None else found, expected) and torch.equal(own, state)
    own = first.flip(0)
    found = conv.causal_conv1d_update(x, own, weight, bias, True, None, indices)
    assert close(found, expected) and torch.equal(own, state.flip(0))
