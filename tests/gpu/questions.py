"""The conditions of the package that ask for a GPU, and a record of the answers that processes saw.

``Recorded`` loads the package's modules with each such condition wrapped, when ``FOLDER`` names a folder to write to.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

FOLDER = "CREPE_DIST_GPU_ANSWERS"  # environment variable; supervised processes get those with this prefix
ROOT = Path(__file__).parents[2]
ASKS = re.compile(r"device_type|gpus?\b|gpu_|cuda|'cpu'|on_cpu|on_gpu", re.IGNORECASE)
NAME = "__answered__"


class _Wrapped(ast.NodeTransformer):
    """Wraps the conditions of one module and collects their names, ``path: condition``."""

    def __init__(self, path: str) -> None:
        self.names: set[str] = set()
        self._path = path

    def _wrap(self, condition: ast.expr) -> ast.expr:
        source = ast.unparse(condition)
        if not ASKS.search(source):
            return condition
        name = f"{self._path}: {source}"
        self.names.add(name)
        return ast.Call(ast.Name(NAME, ast.Load()), [ast.Constant(name), condition], [])

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            node.test = self._wrap(node.test)
        elif isinstance(node, ast.comprehension):
            node.ifs = [self._wrap(each) for each in node.ifs]
        return node


def _wrapped(path: Path) -> tuple[ast.Module, set[str]]:
    wrapped = _Wrapped(str(path.relative_to(ROOT)))
    tree = wrapped.visit(ast.parse(path.read_text(encoding="utf-8")))
    return ast.fix_missing_locations(tree), wrapped.names


def found() -> set[str]:
    """Find all conditions of the package."""
    return {name for path in sorted((ROOT / "crepe_dist").rglob("*.py")) for name in _wrapped(path)[1]}


def answers(folder: Path) -> dict[str, set[bool]]:
    """Collect the answers that processes saw, by condition."""
    seen: dict[str, set[bool]] = {}
    for file in folder.iterdir():
        for line in file.read_text(encoding="utf-8").splitlines():
            answer, name = line.split(" ", 1)
            seen.setdefault(name, set()).add(answer == "true")
    return seen


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        tree, names = _wrapped(Path(self.path))
        return compile(tree, self.path, "exec", dont_inherit=True) if names else super().get_code(fullname)


class Recorded:
    """Finder of the package's modules for ``sys.meta_path``."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / str(os.getpid())
        self._seen: set[tuple[str, bool]] = set()
        setattr(builtins, NAME, self._answered)

    def _answered(self, name: str, answer: Any) -> Any:
        if (name, bool(answer)) not in self._seen:
            self._seen.add((name, bool(answer)))
            with self._file.open("a", encoding="utf-8") as stream:  # at once: the process may be killed
                stream.write(f"{str(bool(answer)).lower()} {name}\n")
        return answer

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        spec = PathFinder.find_spec(name, path) if name.startswith("crepe_dist") else None
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path)
        return spec
