"""The rules of the code base as functions; test_architecture.py runs them.

A rule takes a file's path and source text and yields the violations in it. Paths are relative to
the package (`engine/batch.py`), for hygiene to the repository. A rule sees the syntax tree alone
and imports nothing of what it judges. CONTRIBUTING.md gives the reasons.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "anyorder"

# Folder -> what it may import, besides itself. The longest matching folder counts. "" is the
# package's own __init__; it hands out names of these lazily.
LAYERS: dict[str, set[str]] = {
    "": {"core", "engine", "methods"},
    "core": set(),
    "model": {"core"},
    "cache": {"core"},
    "sampling": {"core"},
    "methods": {"core", "sampling"},
    "drafters": {"core", "sampling"},
    "training/objectives": {"core", "sampling"},
    "engine": {"core", "model", "cache", "sampling"},
    "training": {"core", "model", "sampling"},
    "training/networks": {"core", "model", "sampling", "training"},
    "evaluation": {"core", "engine", "training/objectives"},
    "server": {"core", "engine"},
    "server/playground": set(),
    "cli": {"*"},
}
# A file of these folders imports none of its neighbours: each is complete by itself.
NO_NEIGHBOURS = ("methods", "drafters", "training/objectives", "training/networks")
SETTINGS = "model/settings.py"
HEAVY = ("torch", "transformers", "llguidance", "numpy")
CORE_EXCEPTIONS = {
    "Sequence": "a handle with identity and changing state",
    "Range": "written inside annotations, where positions read better: Range(1, 64)",
    "Part": "written inside annotations too",
}
CATCHALL_EXCEPTIONS = {
    "model/template_sandbox.py: Sandbox.call": "overrides a function of jinja2, which calls it",
    "model/template_sandbox.py: SandboxNamespace.__init__": "a template's namespace(a=1) calls it",
}

Rule = Callable[[str, str], Iterator[str]]


# ------------------------------------------------------------------------------------------- rules
def folder_of(path: str) -> str:
    """The layer that a file of the package (`engine/batch.py`) belongs to."""
    parents = ["" if str(parent) == "." else str(parent) for parent in PurePosixPath(path).parents]
    return next((parent for parent in parents if parent in LAYERS), "")


def layer_of(module: str) -> str:
    """The layer of a dotted module name below the package (`engine.batch`)."""
    return folder_of(module.replace(".", "/") + "/x")


def imports(path: str, source: str) -> Iterator[tuple[str, bool]]:
    """(dotted module, is it run when the file is imported?) of every import in a file."""
    tree = ast.parse(source)
    deferred: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            deferred.update(ast.walk(node))
    for node in ast.walk(tree):
        now = node not in deferred
        if isinstance(node, ast.Import):
            yield from ((alias.name, now) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ("anyorder", *PurePosixPath(path).parts[:-1])
                base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])])
            # `from anyorder.engine import engine` may name a module: the longer name is tried too.
            yield from ((f"{base}.{alias.name}", now) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            known = isinstance(name, ast.Constant)
            yield str(name.value) if known else "anyorder.(a name made at run time)", now


def layers(path: str, source: str) -> Iterator[str]:
    """Imports go down the layer table only; core needs the standard library alone."""
    folder = folder_of(path)
    allowed = LAYERS[folder]
    for module, now in imports(path, source):
        top, _, below = module.partition(".")
        if top != "anyorder":
            standard = top in sys.stdlib_module_names
            if folder == "core" and not standard and (now or top != "torch"):
                yield f"{path} imports {module}"
            continue
        if "*" in allowed or (path in ("core/lookup.py", "__init__.py") and "run time" in below):
            continue
        target = layer_of(below)
        neighbour = folder in NO_NEIGHBOURS and not path.endswith("__init__.py")
        if target not in allowed and (target != folder or neighbour):
            yield f"{path} imports {module}"


def lengths(path: str, source: str) -> Iterator[str]:
    """No file over 500 lines, no function over 80."""
    num_lines = len(source.splitlines())
    if num_lines > 500:
        yield f"{path} has {num_lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines > 80:
                yield f"{path}: {node.name} has {num_lines} lines"


def module_names(path: str, source: str) -> Iterator[str]:
    """No drawer for odds and ends."""
    for part in (*PurePosixPath(path).parts[:-1], PurePosixPath(path).stem):
        if re.fullmatch(r"_*(utils?|helpers?|common|misc|tools)", part):
            yield f"{path} says nothing about what is in it"


def method_comparisons(path: str, source: str) -> Iterator[str]:
    """Nothing but the command line compares anything with a method's name."""
    if folder_of(path) == "cli":
        return
    methods = {name for name in METHODS if name != "__init__"}
    methods |= {class_name(name) for name in methods}
    for node in ast.walk(ast.parse(source)):
        sides: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        for side in sides:
            for leaf in ast.walk(side):
                if isinstance(leaf, ast.Constant) and leaf.value in methods:
                    yield f"{path}:{leaf.lineno} compares with {leaf.value!r}"


def one_class(path: str, source: str) -> Iterator[str]:
    """A method's or objective's file holds one public class, named like the file."""
    if folder_of(path) not in NO_NEIGHBOURS or path.endswith("__init__.py"):
        return
    found = [name for name, _ in public(ast.parse(source)) if name[0].isupper()]
    expected = class_name(PurePosixPath(path).stem)
    if found != [expected]:
        yield f"{path} defines {', '.join(found) or 'no class'}, not just {expected}"


def keyword_catchalls(path: str, source: str) -> Iterator[str]:
    """No public function takes **kwargs: its options would be unknown to checker and reader."""
    for name, node in public(ast.parse(source), methods=True):
        if f"{path}: {name}" in CATCHALL_EXCEPTIONS:
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg:
            yield f"{path}: {name} takes **{node.args.kwarg.arg}"


def environment(path: str, source: str) -> Iterator[str]:
    """Environment variables are read in one place."""
    if path == SETTINGS:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            yield f"{path}:{node.lineno} uses {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name in ("environ", "environb", "getenv", "getenvb"):
                    yield f"{path}:{node.lineno} imports {alias.name}"


def dangers(path: str, source: str) -> Iterator[str]:
    """Nothing that runs what a file or a peer sends."""
    for module, _ in imports(path, source):
        if module.partition(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "joblib"):
            yield f"{path} imports {module}"
        if module.partition(".")[0] in ("shelve", "marshal") or module == "torch.load":
            yield f"{path} imports {module}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "builtins.eval", "builtins.exec", "os.system"):
                yield f"{path}:{node.lineno} calls {called}"
            for keyword in node.keywords:
                refused = ("trust_remote_code", "allow_pickle", "shell")
                if keyword.arg in refused and ast.unparse(keyword.value) != "False":
                    yield f"{path}:{node.lineno} passes {keyword.arg}"
        elif isinstance(node, ast.Attribute):
            if ast.unparse(node) in ("torch.load", "yaml.load", "yaml.unsafe_load"):
                yield f"{path}:{node.lineno} uses {ast.unparse(node)}"
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield f"{path}:{node.lineno} mentions trust_remote_code"


def light_imports(path: str, source: str) -> Iterator[str]:
    """What the command line imports before it knows what to do imports nothing heavy."""
    early = path in ("__init__.py", "model/catalog.py", SETTINGS, "model/__init__.py")
    if early or folder_of(path) in ("core", "cli"):
        for module, now in imports(path, source):
            if now and module.partition(".")[0] in HEAVY:
                yield f"{path} imports {module} when it is imported"


def docstrings(path: str, source: str) -> Iterator[str]:
    """Public modules, classes and module-level functions say what they are."""
    tree = ast.parse(source)
    if (
        not ast.get_docstring(tree)
        and tree.body
        and not re.match(r"_(?!_)", PurePosixPath(path).stem)
    ):
        yield f"{path} has no docstring"
    for name, node in public(tree):
        if not ast.get_docstring(node):
            yield f"{path}: {name} has no docstring"


def frozen(path: str, source: str) -> Iterator[str]:
    """core's classes are frozen keyword-only dataclasses, protocols or errors; else listed."""
    if folder_of(path) != "core":
        return
    for name, node in public(ast.parse(source)):
        if not isinstance(node, ast.ClassDef) or name in CORE_EXCEPTIONS:
            continue
        bases = {ast.unparse(base) for base in node.bases}
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        plain = any("frozen=True" in text and "kw_only=True" in text for text in decorators)
        if not plain and "Protocol" not in bases and path != "core/errors.py":
            yield f"{path}: {name} is no frozen, keyword-only dataclass"


def hygiene(path: str, source: str) -> Iterator[str]:
    """Nothing that is true of one machine only, nor about how the code came to be."""
    if path in ("tests/architecture_rules.py", "tests/test_architecture.py"):  # the words are here
        return
    for number, line in enumerate(source.splitlines(), 1):
        for what, pattern in HYGIENE.items():
            if match := re.search(pattern, line):
                yield f"{path}:{number} names {what}: {match[0]}"


HYGIENE = {
    "a registry's host": r"\b(pypi\.org|pythonhosted\.org|huggingface\.co|hf\.co|download\.pytorch"
    r"\.org|npmjs\.(org|com)|crates\.io|anaconda\.(org|com)|docker\.io|ghcr\.io|quay\.io)\b",
    "a place on one machine": r"(?<![\w./~$}>-])/(work|tmp|root|home)(/|(?=[\s\"'`]|$))",
    "the workplace": r"(?i)\b(this workplace|(helper|coding) agents?|agent sessions?|BRIEF\.md"
    r"|shared/(DESIGN|FEATURES|anchors|prototype))\b",
}


# ------------------------------------------------------------------------------ what they stand on
def class_name(module: str) -> str:
    """`beam_search` -> `BeamSearch`, as core.lookup does it."""
    return "".join(word.capitalize() for word in module.split("_"))


METHODS = sorted(path.stem for path in (PACKAGE / "methods").glob("*.py"))

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.Module, *, methods: bool = False) -> Iterator[tuple[str, Definition]]:
    """Public classes and functions of a module; with `methods`, also those of its classes."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name, node
            for member in node.body if methods and isinstance(node, ast.ClassDef) else ():
                hidden = isinstance(member, Definition) and re.match(r"_(?!_)", member.name)
                if isinstance(member, Definition) and not hidden:
                    yield f"{node.name}.{member.name}", member
