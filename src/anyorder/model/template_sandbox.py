"""A Jinja environment for templates from strangers: no Python objects, bounded time and memory.

A model file's chat template is a program by whoever made the file. On top of Jinja's immutable
sandbox, this environment offers only what chat templates use: no loader, three harmless globals,
a short list of filters and of methods of text, lists and dictionaries. Jinja itself bounds neither
time nor memory, so everything that builds a value is metered: operators, concatenation, slices,
filters, calls, constants and output. Whatever can multiply is checked before it runs, hence
`'a' * 10**10`, doubling in a loop and nested loops end in an error within a moment.
"""

from __future__ import annotations

import datetime
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

MAX_SIZE = 32 << 20
"""Characters that one rendering may build in total, its output included; a list item counts 8."""
MAX_STEPS = 1_000_000
MAX_SECONDS = 2.0
_MAX_INTEGER_BITS = 1024
_MAX_LOOP_NESTING = 32
"""Compiling takes time that grows steeply with it."""

_words = str.split
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        _words(
            "capitalize count endswith find index isalnum isalpha isascii isdecimal isdigit "
            "islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix "
            "removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines "
            "startswith strip swapcase title upper"
        )
    ),
    dict: frozenset(_words("get items keys values copy")),
    list: frozenset(_words("count index copy")),
    tuple: frozenset(_words("count index")),
    LoopContext: frozenset(
        _words(
            "index index0 revindex revindex0 first last length depth depth0 previtem nextitem "
            "cycle changed"
        )
    ),
}
_LIGHT_FILTERS = _words(
    "abs count d default first float int items last length list map reject rejectattr reverse "
    "select selectattr"
)
_HEAVY_FILTERS = _words(
    "capitalize dictsort lower max min sort string title tojson trim unique upper"
)
"""Filters whose work grows with everything that their arguments contain."""


class Meter:
    """What a rendering has used so far."""

    def __init__(self) -> None:
        self._size = self._steps = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        """Count an operation."""
        self._steps += 1
        if self._steps > MAX_STEPS or time.monotonic() > self._deadline:
            raise TemplateRuntimeError(
                f"it takes too long (limits: {MAX_STEPS} steps, {MAX_SECONDS:g} seconds)"
            )

    def charge(self, value: Any) -> Any:
        """Count a value that was built."""
        self.step()
        if isinstance(value, str):
            self._size += len(value)
        elif isinstance(value, list | tuple | dict):
            self._size += 8 * len(value)
        elif isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
            raise TemplateRuntimeError("a number grows too large")
        if self._size > MAX_SIZE:
            self.too_large()
        return value

    def admit(self, size: int) -> None:
        """Refuse an operation whose result would be too large."""
        self.step()
        if self._size + size > MAX_SIZE:
            self.too_large()

    def admit_deep(self, value: Any) -> None:
        """Refuse to work through a value that is too large with all that it contains."""
        size, stack = 0, [value]
        while stack:
            self.step()
            item = stack.pop()
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, Mapping):
                stack += [*item.keys(), *item.values()]
                size += 8 * len(item)
            elif isinstance(item, list | tuple):
                stack += item
                size += 8 * len(item)
            self.admit(size)

    def too_large(self) -> NoReturn:
        """What is built gets too large."""
        raise TemplateRuntimeError(f"it builds more than {MAX_SIZE >> 20} MiB of text")


class SandboxNamespace(Namespace):
    """`namespace()` of a template, without private attributes."""

    def __init__(self, /, **attributes: Any) -> None:
        for name in attributes:
            _refuse_private(name)
        super().__init__(**attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


class _Generation(Extension):
    """{% generation %} marks the assistant's text for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _MeterEverything(NodeTransformer):
    """Rewrites a parsed template so that what Jinja does inline goes through metered filters."""

    def __init__(self) -> None:
        self._nesting = 0

    def _metered(self, node: nodes.Node, by: str = "_charged") -> nodes.Expr:
        filtered = nodes.Filter(node, by, [], [], None, None)
        filtered.set_lineno(node.lineno)
        return filtered

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return self._metered(nodes.Const(node.data).set_lineno(node.lineno))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._metered(nodes.List(node.nodes).set_lineno(node.lineno), by="_concatenated")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._metered(node) if isinstance(node.arg, nodes.Slice) else node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._nesting += 1
        if self._nesting > _MAX_LOOP_NESTING:
            raise TemplateRuntimeError(f"loops are nested more than {_MAX_LOOP_NESTING} deep")
        self.generic_visit(node)
        self._nesting -= 1
        node.iter = self._metered(node.iter, by="_looped")
        return node


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment. One rendering at a time: set `meter` before each."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=self._output,
        )
        self.meter = Meter()
        self.now = datetime.datetime.now()
        available = dict(self.filters, tojson=_to_json)
        self.filters = {name: self._light(available[name]) for name in _LIGHT_FILTERS}
        self.filters |= {name: self._heavy(available[name]) for name in _HEAVY_FILTERS}
        self.filters |= {
            "safe": lambda value: value,  # nothing is escaped
            "replace": self._replace,
            "join": self._join,
            "indent": self._indent,
            "_charged": lambda value: self.meter.charge(value),
            "_concatenated": lambda items: self._join(items),
            "_looped": lambda items: self._loop(items),
        }
        self.globals = {
            "range": self.globals["range"],
            "namespace": SandboxNamespace,
            "dict": lambda **items: items,
            "raise_exception": _raise_exception,
            "strftime_now": lambda layout: self.now.strftime(str(layout)[:100]),
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        rewritten: nodes.Template = _MeterEverything().visit(parsed)
        return rewritten

    # ------------------------------------------------------------------------- access to objects
    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only what is listed above, and the attributes of namespaces."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        return isinstance(obj, SandboxNamespace) or attr in _METHODS.get(type(obj), ())

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """No exception for str.format, which can pad to any width: it is not listed above."""
        return None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method, macro or global."""
        name, owner = getattr(obj, "__name__", ""), getattr(obj, "__self__", None)
        if isinstance(owner, str) and name == "replace":
            return self._replace(owner, *args, **kwargs)
        if isinstance(owner, str) and name == "join":
            return self._join(args[0] if args else (), owner)
        self.meter.step()
        return self.meter.charge(super().call(context, obj, *args, **kwargs))

    # --------------------------------------------------------------------------------- operations
    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator whose result can be much larger than its operands."""
        if operator == "%" and isinstance(left, str):
            raise SecurityError("the % operator on text is not available; use ~ to join texts")
        if operator == "**" and (abs(left) > 2**32 or abs(right) > 32):
            raise TemplateRuntimeError("a number grows too large")
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    self.meter.admit(8 * len(sequence) * max(times, 0))
        return self.meter.charge(super().call_binop(context, operator, left, right))

    def _light(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            return self.meter.charge(function(*args, **kwargs))

        return metered

    def _heavy(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
            self.meter.admit_deep([a for a in (*args, *kwargs.values()) if _is_data(a)])
            return self.meter.charge(function(*args, **kwargs))

        return metered

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            self.meter.admit_deep(value)
        return str(value)

    def _replace(self, value: Any, old: str, new: str, count: int = -1) -> str:
        text, old, new = self._text(value), self._text(old), self._text(new)
        found = text.count(old) if count is None or count < 0 else min(text.count(old), count)
        self.meter.admit(len(text) + found * len(new))
        result: str = self.meter.charge(text.replace(old, new, found))
        return result

    def _join(self, items: Any, separator: Any = "", attribute: str | None = None) -> str:
        if attribute is not None:
            items = [self.getitem(item, attribute) for item in items]
        separator, pieces, size = self._text(separator), [], 0
        for item in items:
            pieces.append(self._text(item))
            size += len(pieces[-1]) + len(separator)
            self.meter.admit(size)
        joined: str = self.meter.charge(separator.join(pieces))
        return joined

    def _indent(self, value: Any, width: int | str = 4, first: bool = False) -> str:
        margin = width if isinstance(width, str) else " " * min(int(width), 1000)
        text = self._text(value)
        self.meter.admit(len(text) + (text.count("\n") + 1) * len(margin))
        indented = ("\n" + margin).join(text.split("\n"))
        result: str = self.meter.charge(margin + indented if first else indented)
        return result

    def _loop(self, items: Any) -> Any:
        self.meter.step()
        return items

    @pass_context
    def _output(self, context: Context, value: Any) -> Any:
        return self.meter.charge(self._text(value))


def _is_data(value: Any) -> bool:
    return isinstance(value, str | list | tuple | dict)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, not escaped for HTML as Jinja's own filter does."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise TemplateRuntimeError("tojson indents by 0 to 16")
    return json.dumps(
        value,
        ensure_ascii=bool(ensure_ascii),
        indent=indent,
        separators=separators,
        sort_keys=bool(sort_keys),
    )


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateRuntimeError(str(message)[:1000])
