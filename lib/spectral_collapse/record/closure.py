"""The code that a function depends on, found by static analysis, and its hash."""

import ast
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = __name__.partition(".")[0]
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_Imports = dict[str, tuple[str, ...]]  # a name to its module, or to (module, name in it)


@dataclass
class _Source:
    """A parsed module: the statements that bind each of its names, and the statements that bind none."""

    name: str
    is_package: bool
    bound: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: _Imports = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)
    _described: dict[str, tuple[str, list[tuple[str, ...]]]] = field(default_factory=dict)

    def described(self, name: str) -> tuple[str, list[tuple[str, ...]]]:
        """Syntax tree of the statements that bind a name ("": that bind none), and the names that they use."""
        if name not in self._described:
            nodes = self.bound[name] if name else self.effects
            uses = {use for node in nodes for use in _uses(node, self, frozenset(), {})}
            self._described[name] = "".join(map(ast.dump, nodes)), sorted(uses)
        return self._described[name]

    def absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def imports(self, node: ast.AST) -> _Imports:
        """The names that an import statement binds."""
        if isinstance(node, ast.ImportFrom):
            return {alias.asname or alias.name: (self.absolute(node), alias.name) for alias in node.names}
        if isinstance(node, ast.Import):
            whole = {alias.asname: alias.name for alias in node.names if alias.asname}
            tops = {alias.name.partition(".")[0] for alias in node.names if not alias.asname}
            return {name: (module,) for name, module in (whole | dict(zip(tops, tops, strict=True))).items()}
        return {}


def _only_for_readers(node: ast.stmt) -> bool:
    """Whether a statement does nothing on import: `if TYPE_CHECKING`, `if __name__ == "__main__"`, bare text."""
    if isinstance(node, ast.If):
        return any(getattr(part, "id", None) in ("TYPE_CHECKING", "__name__") for part in ast.walk(node.test))
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _targets(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            parts = [part for target in node.targets for part in ast.walk(target)]
        case ast.AnnAssign():
            parts = [node.target]
        case _:
            return []
    return [part.id for part in parts if isinstance(part, ast.Name)]


def _file(module: str) -> Path | None:
    """The file of a module in a loaded package; None where there is none."""
    top, *rest = module.split(".")
    if top not in sys.modules:
        return None
    if not rest:
        path = getattr(sys.modules[top], "__file__", None)
        return Path(path) if path and path.endswith(".py") else None
    for folder in getattr(sys.modules[top], "__path__", []):
        place = Path(folder).joinpath(*rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


@functools.cache
def _parsed(module: str, is_package: bool, text: str) -> _Source:
    source, tree = _Source(module, is_package), ast.parse(text)
    for node in ast.walk(tree):  # docstrings are no code
        match getattr(node, "body", None):
            case [ast.Expr(ast.Constant(str())), *_]:
                node.body.pop(0)
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            source.imported |= source.imports(node)
        elif names := _targets(node):
            for name in names:
                source.bound.setdefault(name, []).append(node)
        elif not _only_for_readers(node):
            source.effects.append(node)
            for part in ast.walk(node):
                source.imported |= source.imports(part)
                for name in _targets(part) if isinstance(part, ast.stmt) else []:
                    source.bound.setdefault(name, [])  # by the whole statement
    return source


def _locals(scope: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    """Local names of a function: arguments and assignments, without those of comprehensions and inner functions."""
    arguments = scope.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    found, others = {argument.arg for argument in every if argument}, set()
    pending = [scope.body] if isinstance(scope, ast.Lambda) else list(scope.body)
    while pending:
        node = pending.pop()
        match node:
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                others |= set(names)
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                found.add(name)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                found.add(name)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif not isinstance(node, (*_COMPREHENSIONS, ast.Lambda)):
            pending += ast.iter_child_nodes(node)
    return found - others


def _is_stage(node: ast.AST) -> bool:
    """Whether a function is declared as a stage; the hash of its code stands in its own records."""
    calls = [call.func if isinstance(call, ast.Call) else call for call in getattr(node, "decorator_list", [])]
    return any(getattr(call, "id", getattr(call, "attr", None)) == "stage" for call in calls)


def _uses(node: ast.AST, source: _Source, hidden: frozenset[str], imported: _Imports) -> Iterator[tuple[str, ...]]:
    """(module, name, attributes …) for every module-level name that code uses; `hidden` are its local names,
    `imported` its local imports."""

    def inside(parts: Iterable[ast.AST], hidden: frozenset[str] = hidden, imported: _Imports = imported):
        for part in parts:
            yield from _uses(part, source, hidden, imported)

    match node:
        case ast.Name() | ast.Attribute():
            attributes: list[str] = []
            while isinstance(node, ast.Attribute):
                attributes.insert(0, node.attr)
                node = node.value
            if not isinstance(node, ast.Name):
                yield from inside([node])
            elif node.id in imported:
                yield (*imported[node.id], *attributes)
            elif node.id not in hidden and node.id in source.bound:
                yield (source.name, node.id)
            elif node.id not in hidden and node.id in source.imported:
                yield (*source.imported[node.id], *attributes)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            yield from inside([*node.args.defaults, *filter(None, node.args.kw_defaults)])
            if not _is_stage(node):
                yield from inside(getattr(node, "decorator_list", []))
            body = [node.body] if isinstance(node, ast.Lambda) else node.body
            own = dict(imported)
            for part in body:
                for inner in ast.walk(part):
                    own |= source.imports(inner)
            yield from inside(body, hidden | (_locals(node) - own.keys()), own)
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            targets = [part for generator in node.generators for part in ast.walk(generator.target)]
            yield from inside([node.generators[0].iter])
            names = frozenset(part.id for part in targets if isinstance(part, ast.Name))
            yield from inside(ast.iter_child_nodes(node), hidden | names)
        case ast.AnnAssign():
            yield from inside(filter(None, [node.target, node.value]))
        case _:
            yield from inside(ast.iter_child_nodes(node))


class _Closure:
    """Everything that is reachable from the entered names: `found`, by module and name."""

    def __init__(self, packages: set[str]):
        self.packages = packages
        self.sources: dict[str, _Source | None] = {}
        self.found: dict[tuple[str, str], str] = {}

    def source(self, module: str) -> _Source | None:
        """The parsed module; None for a name that is no module of the packages."""
        if module not in self.sources:
            path = _file(module) if module.partition(".")[0] in self.packages else None
            text = path and path.read_text(encoding="utf-8")
            self.sources[module] = path and _parsed(module, path.name == "__init__.py", text)
        return self.sources[module]

    def enter(self, module: str, name: str, is_root: bool = False) -> None:
        """Adds the statements that bind a module's name, those that it runs on import (name ""), and all they use."""
        source = self.source(module)
        if source is None or (module, name) in self.found:
            return
        if name in source.bound:
            if is_root or not any(map(_is_stage, source.bound[name])):
                for each in (name, ""):
                    self.found[module, each], uses = source.described(each)
                    for use in uses:
                        self.follow(*use)
        elif name in source.imported:
            self.follow(*source.imported[name])

    def follow(self, module: str, *names: str) -> None:
        """Enters the name that names and attributes lead to; of a module itself, all its names."""
        while names and self.source(f"{module}.{names[0]}") is not None:
            module, names = f"{module}.{names[0]}", names[1:]
        if names:
            self.enter(module, names[0])
        elif (source := self.source(module)) is not None:
            for each in (*source.bound, *source.imported):
                self.enter(module, each)


def used(*functions: Callable) -> dict[tuple[str, str], str]:
    """(module, name) → syntax tree, without docstrings, of everything that functions use: the functions themselves;
    all functions, classes and constants of their package and of this one that their names lead to, transitively; and
    what the modules of these run on import (name "").

    A class counts with all its methods. Not followed: attributes of objects other than modules, `getattr`, other
    packages, annotations, and stages, whose records have keys of their own.
    """
    found: dict[tuple[str, str], str] = {}
    for function in map(inspect.unwrap, functions):
        closure = _Closure({PACKAGE, function.__module__.partition(".")[0]})
        closure.enter(function.__module__, function.__qualname__.partition(".")[0], is_root=True)
        found |= closure.found
    return found


def code_hash(*functions: Callable) -> str:
    """SHA-256 of what `used` finds, hexadecimal."""
    return hashlib.sha256(repr(sorted(used(*functions).items())).encode()).hexdigest()
