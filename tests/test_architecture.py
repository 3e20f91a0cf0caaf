"""Every file keeps the rules of architecture_rules.py, and every rule can fail.

Below the tests stand planted violations and innocent look-alikes: a rule that cannot fail is none.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture_rules import (
    CORE_EXCEPTIONS,
    HEAVY,
    PACKAGE,
    ROOT,
    SETTINGS,
    Rule,
    dangers,
    docstrings,
    environment,
    frozen,
    hygiene,
    keyword_catchalls,
    layers,
    lengths,
    light_imports,
    method_comparisons,
    module_names,
    one_class,
    public,
)


def sources(*folders: str) -> list[tuple[str, str]]:
    """(path below the folder's root, text) of Python files."""
    found = []
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            base = PACKAGE if folder == "src" else ROOT
            found.append((file.relative_to(base).as_posix(), file.read_text("utf-8")))
    return found


def repository_files() -> list[Path]:
    """What git would publish: tracked files, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:  # an unpacked archive, no checkout
        hidden = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
        return [p for p in ROOT.rglob("*") if p.is_file() and not hidden & set(p.parts)]
    return [ROOT / name for name in answer.stdout.split("\0") if name and (ROOT / name).is_file()]


PACKAGE_RULES: list[Rule] = [
    layers,
    method_comparisons,
    one_class,
    keyword_catchalls,
    environment,
    dangers,
    light_imports,
    docstrings,
    frozen,
]


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_package(rule: Rule) -> None:
    """The package keeps the rule."""
    violations = [line for path, text in sources("src") for line in rule(path, text)]
    assert not violations, "\n".join([str(rule.__doc__), *violations])


@pytest.mark.parametrize("rule", [lengths, module_names], ids=lambda rule: rule.__name__)
def test_all_python(rule: Rule) -> None:
    """Tests, scripts, benchmarks and examples keep the rule too."""
    files = sources("src", "tests", "benchmarks", "scripts", "examples")
    violations = [line for path, text in files for line in rule(path, text)]
    assert not violations, "\n".join([str(rule.__doc__), *violations])


def test_hygiene() -> None:
    """Every text file of the repository keeps the rule."""
    violations = []
    for file in repository_files():
        data = file.read_bytes()
        if b"\0" not in data[:8192]:
            text = data.decode("utf-8", errors="replace")
            violations += hygiene(file.relative_to(ROOT).as_posix(), text)
    assert not violations, "\n".join(violations)


def test_repository_is_small() -> None:
    """A clone takes seconds."""
    sizes = {file.relative_to(ROOT).as_posix(): file.stat().st_size for file in repository_files()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert sum(sizes.values()) < 45 * 2**20, f"the largest files: {largest}"


def test_exceptions_are_needed() -> None:
    """Every listed exception names a class of core that exists."""
    classes = {n for p, t in sources("src") if p[:5] == "core/" for n, _ in public(ast.parse(t))}
    assert set(CORE_EXCEPTIONS) <= classes


def test_importing_the_package_stays_light() -> None:
    """Not even indirectly does an early import load a heavy library."""
    early = ["anyorder"]
    for folder in ("core", "cli"):
        stems = [file.stem for file in sorted((PACKAGE / folder).glob("*.py"))]
        early += [f"anyorder.{folder}.{stem}" for stem in stems if not stem.startswith("__")]
    early += [
        f"anyorder.model.{stem}"
        for stem in ("catalog", "settings")
        if (PACKAGE / "model" / f"{stem}.py").exists()
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {early!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [library for library in {HEAVY!r} if library in sys.modules]\n"
        "    assert not heavy, f'importing {name} loads {heavy}'\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr.strip().splitlines()[-1]


# -------------------------------------------------------------------- every rule can fail, and pass
LONG = "def f():\n" + "    x = 1\n" * 80
HOST = "pypi" + ".org"
CAUGHT: list[tuple[Rule, str, str]] = [
    (layers, "core/a.py", "import anyorder.model.config"),
    (layers, "core/a.py", "import torch"),
    (layers, "core/a.py", "def f():\n    import numpy"),
    (layers, "core/a.py", "import anyorder"),
    (layers, "model/a.py", "from anyorder.cache.pool import Pool"),
    (layers, "model/architectures/a.py", "from ...sampling import sampler"),
    (layers, "cache/a.py", "if TYPE_CHECKING:\n    from anyorder.sampling import x"),
    (layers, "sampling/a.py", "from anyorder import model"),
    (layers, "methods/a.py", "from anyorder.engine import engine"),
    (layers, "methods/a.py", "from anyorder.methods.autoregressive import Autoregressive"),
    (layers, "methods/a.py", "from .autoregressive import Autoregressive"),
    (layers, "engine/a.py", "from anyorder.methods import methods"),
    (layers, "engine/a.py", "import importlib\nimportlib.import_module('anyorder.methods.x')"),
    (layers, "engine/a.py", "import importlib\nimportlib.import_module(f'anyorder.methods.{x}')"),
    (layers, "engine/a.py", "from anyorder.training import trainer"),
    (layers, "training/trainer.py", "from anyorder.training.objectives.diffusion import Diffusion"),
    (layers, "training/trainer.py", "from anyorder.engine import engine"),
    (layers, "training/objectives/a.py", "from anyorder.model import transformer"),
    (layers, "evaluation/a.py", "from anyorder.training.trainer import Trainer"),
    (layers, "evaluation/a.py", "from anyorder.model import config"),
    (layers, "server/a.py", "from anyorder.sampling import sampler"),
    (layers, "server/playground/a.py", "from anyorder.core import request"),
    (layers, "engine/a.py", "from anyorder.cli import main"),
    (layers, "__init__.py", "from anyorder.cli import main"),
    (lengths, "a.py", "\n" * 501),
    (lengths, "a.py", LONG),
    (lengths, "a.py", "class A:\n" + "".join(f"  {line}\n" for line in LONG.splitlines())),
    (module_names, "engine/utils.py", ""),
    (module_names, "engine/_helpers.py", ""),
    (module_names, "common/engine.py", ""),
    (module_names, "misc/__init__.py", ""),
    (method_comparisons, "engine/a.py", "if request.method == 'autoregressive': pass"),
    (method_comparisons, "core/a.py", "x = 'autoregressive' != name"),
    (method_comparisons, "server/a.py", "if name in ('autoregressive', 'other'): pass"),
    (method_comparisons, "engine/a.py", "if type(m).__name__ == 'Autoregressive': pass"),
    (method_comparisons, "engine/a.py", "match name:\n    case 'autoregressive': pass"),
    (one_class, "methods/beam_search.py", "class Beams: pass"),
    (one_class, "methods/beam_search.py", "class BeamSearch: pass\nclass Beam: pass"),
    (one_class, "methods/beam_search.py", "def decode(): pass"),
    (one_class, "training/objectives/a_b.py", "class _AB: pass"),
    (keyword_catchalls, "engine/a.py", "def f(**kwargs): pass"),
    (keyword_catchalls, "engine/a.py", "async def f(a, *, b, **rest): pass"),
    (keyword_catchalls, "engine/a.py", "class A:\n    def f(self, **kwargs): pass"),
    (keyword_catchalls, "engine/a.py", "class A:\n    def __init__(self, **kwargs): pass"),
    (environment, "engine/a.py", "import os\nos.environ['X']"),
    (environment, "engine/a.py", "def f():\n    return os.getenv('X')"),
    (environment, "cli/a.py", "from os import environ"),
    (dangers, "model/a.py", "import pickle"),
    (dangers, "model/a.py", "def f():\n    from cloudpickle import loads"),
    (dangers, "model/a.py", "eval(text)"),
    (dangers, "model/a.py", "exec(text)"),
    (dangers, "model/a.py", "weights = torch.load(path, weights_only=True)"),
    (dangers, "model/a.py", "from torch import load"),
    (dangers, "model/a.py", "yaml.load(text)"),
    (dangers, "model/a.py", "build(path, trust_remote_code=True)"),
    (dangers, "model/a.py", "build(path, **{'trust_remote_code': True})"),
    (dangers, "model/a.py", "np.load(path, allow_pickle=True)"),
    (dangers, "cli/a.py", "subprocess.run(command, shell=True)"),
    (light_imports, "cli/main.py", "import torch.nn"),
    (light_imports, "model/catalog.py", "from numpy import array"),
    (light_imports, "core/a.py", "class A:\n    import torch"),
    (docstrings, "engine/a.py", "x = 1"),
    (docstrings, "engine/a.py", "'''What.'''\nclass A: pass"),
    (docstrings, "engine/a.py", "'''What.'''\ndef f(): pass"),
    (frozen, "core/a.py", "class A: pass"),
    (frozen, "core/a.py", "@dataclass(frozen=True)\nclass A: pass"),
    (frozen, "core/a.py", "@dataclass(kw_only=True)\nclass A: pass"),
    (hygiene, "README.md", f"see https://{HOST}/project/x"),
    (hygiene, "README.md", "see https://huggingface" + ".co/x"),
    (hygiene, "tests/a.py", 'path = "/tmp/x"'),
    (hygiene, "docs/a.md", "run it in /home/me/anyorder"),
    (hygiene, "docs/a.md", "cd /work"),
    (hygiene, "docs/a.md", "as in ../shared/DESIGN.md"),
    (hygiene, "docs/a.md", "a helper agent wrote this"),
]
INNOCENT: list[tuple[Rule, str, str]] = [
    (layers, "core/a.py", "import json\nfrom anyorder.core import errors"),
    (layers, "core/a.py", "def f():\n    import torch\nif TYPE_CHECKING:\n    import torch"),
    (layers, "core/a.py", "from .errors import UserError"),
    (layers, "model/architectures/a.py", "from anyorder.model.config import Config"),
    (layers, "methods/a.py", "from anyorder.sampling.verify import verify"),
    (layers, "engine/a.py", "from ..cache import pool\nfrom .batch import pack\nimport torch"),
    (layers, "evaluation/a.py", "from anyorder.training.objectives.diffusion import Diffusion"),
    (layers, "cli/a.py", "from anyorder.server import app\nimport anyorder"),
    (lengths, "a.py", "\n" * 400 + LONG.rsplit("    ", 1)[0]),
    (module_names, "engine/toolbox.py", ""),
    (method_comparisons, "cli/a.py", "if name == 'autoregressive': pass"),
    (
        method_comparisons,
        "engine/a.py",
        "method: str = 'autoregressive'\nif kind == 'causal': pass",
    ),
    (one_class, "methods/beam_search.py", "class _Beam: pass\nclass BeamSearch: pass"),
    (one_class, "methods/__init__.py", "class MethodInfo: pass\nclass Other: pass"),
    (keyword_catchalls, "engine/a.py", "def _f(**kwargs): pass\nclass A:\n  def _f(s, **k): pass"),
    (environment, SETTINGS, "import os\nos.environ['X']"),
    (
        dangers,
        "model/a.py",
        "'''No pickle.'''\nmodel.eval()\nre.compile(x)\nnp.load(x)\njson.load(x)",
    ),
    (light_imports, "model/transformer.py", "import torch"),
    (light_imports, "cli/a.py", "def f():\n    import torch"),
    (docstrings, "engine/__init__.py", ""),
    (docstrings, "engine/a.py", "'''What.'''\ndef _f(): pass\nclass _A: pass"),
    (frozen, "core/a.py", "@dataclass(frozen=True, kw_only=True, eq=False)\nclass A: pass"),
    (frozen, "core/a.py", "class A(Protocol): pass\nclass Sequence: pass"),
    (hygiene, "a.md", "src/work/a /homely a/tmp/b /rooted https://x.y/home/ prompt/tmp in-work"),
]


def label(value: object) -> str | None:
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize(("rule", "path", "source"), CAUGHT, ids=label)
def test_violation_is_caught(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, source))


@pytest.mark.parametrize(("rule", "path", "source"), INNOCENT, ids=label)
def test_innocent_passes(rule: Rule, path: str, source: str) -> None:
    assert not list(rule(path, source))


def test_every_rule_is_shown_to_fail() -> None:
    """No rule of this file goes without planted violations."""
    assert {rule for rule, _, _ in CAUGHT} == {*PACKAGE_RULES, lengths, module_names, hygiene}
