#!/usr/bin/env python3
"""Count the code lines of the package and the tests, and the lines of the kernels and of the documentation.

A code line of Python holds more than a docstring, a comment or a blank. Every line of C++, CUDA and Markdown counts.
"""

import ast
import io
import subprocess
import tokenize
from pathlib import Path

NO_CODE = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}


def count_code(source: str) -> int:
    """Return the number of code lines of a Python module."""
    with_docstring = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, with_docstring)]
    strings = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
    docstrings = {line for node in strings for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in NO_CODE]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - docstrings)


files = [Path(name) for name in subprocess.check_output(["git", "ls-files"], text=True).splitlines()]
for title, folder, suffixes in (
    ("package", "crepe_dist", ".py"),
    ("tests", "tests", ".py"),
    ("C++ and CUDA", "", ".cpp .h .cu .cuh"),
    ("docs", "docs", ".md"),
):
    chosen = [file for file in files if file.suffix in suffixes.split() and file.is_relative_to(folder)]
    count = sum(count_code(file.read_text()) if suffixes == ".py" else file.read_text().count("\n") for file in chosen)
    print(f"{title:<14}{count:>7,} lines in {len(chosen)} files")
