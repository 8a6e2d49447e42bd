"""The page about Python: what signatures and docstrings of the public modules say."""

import ast
import importlib
import importlib.util
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from _docstrings import flowing, markdown
from _reference_sql import Group

WIDTH = 100
INTRODUCTION = """\
# Reference: Python

Made by `tools/reference.py` from the docstrings; change those. What a call does in each state of a stage is in
[lifecycle.md](lifecycle.md); the SQL functions behind the methods are in [reference_sql.md](reference_sql.md).
"""

ASYNCHRONOUS = """\
## AsyncStageTracker, AsyncStageContext, AsyncClaimedRun

From `processors_v2.stage_tracker`: the same for asyncio and supabase's AsyncClient. What asks or writes is awaited,
contexts are entered with `async with`, and iterators are gone through with `async for`.
"""


def page(groups: Iterable[Group]) -> str:
    """Return the text of the page.

    Args:
        groups: What of StageTracker is told together; what is in none of them comes last.
    """
    return "\n".join([INTRODUCTION, *_tracker(list(groups)), *_contexts(), *_others()])


def _tracker(groups: list[Group]) -> Iterator[str]:
    tracker = importlib.import_module("processors_v2.stage_tracker").StageTracker
    yield _class("StageTracker", tracker, "processors_v2.stage_tracker", methods=False)
    methods = dict(_public_methods(tracker))
    told: set[str] = set()
    for group in [*groups, Group("Further", set(methods))]:
        names = [name for name in methods if name in group.names - told]
        told |= set(names)
        if names:
            yield f"### StageTracker: {group.title[0].lower()}{group.title[1:]}\n"
            yield from (_method(name, methods[name], 4) for name in names)
    yield ASYNCHRONOUS


def _contexts() -> Iterator[str]:
    module = importlib.import_module("processors_v2.stage_tracker")
    yield _class("StageContext", module.StageContext, module.__name__)
    yield _class("ClaimedRun", module.ClaimedRun, module.__name__, constructor=False, beside=module.StageContext)
    module = importlib.import_module("processors_v2.worker")
    for name in ("StageWorker", "RunContext"):
        yield _class(name, getattr(module, name), module.__name__, constructor=name == "StageWorker")


def _others() -> Iterator[str]:
    module = importlib.import_module("processors_v2.local")
    yield _class("LocalSupabase", module.LocalSupabase, module.__name__)
    plugin = importlib.import_module("processors_v2.pytest_plugin")
    yield "## The fixture local_supabase\n"
    yield markdown(inspect.getdoc(plugin) or "")
    if importlib.util.find_spec("processors_v2.api") is not None:
        yield _functions(importlib.import_module("processors_v2.api"))
    yield _errors(importlib.import_module("processors_v2.errors"))
    yield _shapes(importlib.import_module("processors_v2.models"))


def _class(
    name: str, kind: type, module: str, *, methods: bool = True, constructor: bool = True, beside: type | None = None
) -> str:
    """A class, its constructor and its methods; those of ``beside``, which is told already, left out."""
    lines = [f"## {name}", ""]
    if constructor:
        made = _signature(name, inspect.getattr_static(kind, "__init__")).removesuffix(" -> None")
        lines += ["```text", f"from {module} import {name}", "", made, "```", ""]
    else:
        lines += [f"From `{module}`.", ""]
    lines.append(markdown(inspect.getdoc(kind) or ""))
    if methods:
        known = dict(_public_methods(beside)) if beside else {}
        own = [(each, method) for each, method in _public_methods(kind) if known.get(each) is not method]
        lines += [_method(each, method, 3, name) for each, method in own]
    return "\n".join(lines)


def _public_methods(kind: type) -> list[tuple[str, Any]]:
    found = {
        name: inspect.getattr_static(kind, name)
        for base in reversed(kind.__mro__)
        for name in vars(base)
        if not name.startswith("_") and base.__module__.startswith("processors_v2")
    }
    kinds = (property, classmethod, staticmethod)
    return sorted((name, one) for name, one in found.items() if inspect.isfunction(one) or isinstance(one, kinds))


def _method(name: str, method: Any, level: int, owner: str = "") -> str:
    lines = [f"{'#' * level} {f'{owner}.' if owner else ''}{name}", ""]
    if isinstance(method, property):
        returned = _parsed(method.fget).returns
        lines += [f"A property, `{ast.unparse(returned)}`." if returned else "A property.", ""]
        return "\n".join([*lines, markdown(inspect.getdoc(method) or "")])
    function = method.__func__ if isinstance(method, classmethod | staticmethod) else method
    before = "StageTracker." if isinstance(method, classmethod) else ""
    lines += ["```text", before + _signature(name, function), "```", ""]
    return "\n".join([*lines, markdown(inspect.getdoc(function) or "")])


def _functions(module: ModuleType) -> str:
    lines = [f"## {module.__name__}", "", markdown(inspect.getdoc(module) or "")]
    for name in module.__all__:
        one = getattr(module, name)
        if inspect.isfunction(one):
            lines.append(_method(name, one, 3))
    return "\n".join(lines)


def _parsed(function: Callable[..., Any]) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The function as it is written, so that the page is the same for every version of Python."""
    function = inspect.unwrap(function)
    [node] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return node


def _signature(name: str, function: Callable[..., Any]) -> str:
    node = _parsed(function)
    arguments = list(_arguments(node.args, inspect.unwrap(function).__globals__))
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({', '.join(arguments)}){returned}"
    return line if len(line) <= WIDTH else f"{name}(\n    " + ",\n    ".join(arguments) + f",\n){returned}"


def _arguments(given: ast.arguments, names: dict[str, Any]) -> Iterator[str]:
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    for argument, default in zip(plain, defaults, strict=True):
        if argument.arg not in {"self", "cls"}:
            yield _argument(argument, default, names)
    if given.vararg:
        yield f"*{_argument(given.vararg, None, names)}"
    elif given.kwonlyargs:
        yield "*"
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _argument(argument, default, names)
    if given.kwarg:
        yield f"**{_argument(given.kwarg, None, names)}"


def _argument(argument: ast.arg, default: ast.expr | None, names: dict[str, Any]) -> str:
    kind = f": {_unquoted(argument.annotation)}" if argument.annotation else ""
    if default is None:
        return f"{argument.arg}{kind}"
    # A constant of the module says nothing to readers: its value does.
    value = repr(names[default.id]) if isinstance(default, ast.Name) else ast.unparse(default)
    return f"{argument.arg}{kind} = {value}"


def _unquoted(annotation: ast.expr) -> str:
    written = annotation.value if isinstance(annotation, ast.Constant) else None
    return written if isinstance(written, str) else ast.unparse(annotation)


def _errors(module: ModuleType) -> str:
    tree = textwrap.dedent((inspect.getdoc(module) or "").partition("::\n\n")[2]).rstrip()
    lines = ["## Errors", "", f"From `{module.__name__}`.", "", "```text", tree, "```", ""]
    for name in module.__all__:
        lines += [f"### {name}", "", markdown(inspect.getdoc(getattr(module, name)) or "")]
    words = vars(importlib.import_module("processors_v2._errors"))["_BY_WORD"]
    rows = [f"| `{word}` | `{kind.__name__}` |" for word, kind in sorted(words.items())]
    lines += ["### The words of the database", "", "`error` of an exception, and the word of the SQL functions:", ""]
    return "\n".join([*lines, "| word | class |", "|---|---|", *rows, ""])


def _shapes(module: ModuleType) -> str:
    lines = ["## Shapes of answers", "", f"From `{module.__name__}`.", "", markdown(inspect.getdoc(module) or "")]
    nodes = dict(_written(module))
    for name in module.__all__:
        node, text = nodes[name]
        lines += [f"### {name}", ""]
        if isinstance(node, ast.ClassDef):
            lines += [markdown(ast.get_docstring(node) or ""), *_fields(node)]
        else:
            lines += ["```text", ast.unparse(node), "```", "", flowing(text), ""]
    return "\n".join(lines)


def _written(module: ModuleType) -> Iterator[tuple[str, tuple[ast.stmt, str]]]:
    """What the modules define that a public one takes its names from, each with the text that stands under it."""
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for source in (node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module):
        file = importlib.import_module(source).__file__
        assert file is not None
        body = ast.parse(Path(file).read_text(encoding="utf-8")).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.ClassDef):
                yield node.name, (node, "")
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                yield node.targets[0].id, (node, _text(after))


def _fields(node: ast.ClassDef) -> list[str]:
    inherited = [ast.unparse(base) for base in node.bases if ast.unparse(base) not in {"TypedDict", "BaseModel"}]
    lines = [f"All of {', '.join(f'`{base}`' for base in inherited)}, and:", ""] if inherited else []
    lines += ["| field | type | what |", "|---|---|---|"]
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            kind, told = ast.unparse(field.annotation), _described(field) or _text(after)
            lines.append(f"| `{field.target.id}` | `{_in_table(kind)}` | {_in_table(told)} |")
    return [*lines, ""]


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def _described(field: ast.AnnAssign) -> str:
    if not isinstance(field.value, ast.Call):
        return ""
    given = {one.arg: one.value for one in field.value.keywords}
    return str(ast.literal_eval(given["description"])) if "description" in given else ""


def _text(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return flowing(node.value.value)
    return ""
