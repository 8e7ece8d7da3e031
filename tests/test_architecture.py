"""Rules of the package's layout that import-linter cannot see."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "crepe_dist").rglob("*.py"))
# Private names of MXNet's trainers, optimisers, parameters and blocks.
PRIVATE = {
    "_LIB",
    "_all_index_update_counts",
    "_allreduce_grads",
    "_clear_cached_op",
    "_collect_params_with_prefix",
    "_fresh_grad",
    "_optimizer",
    "_params",
    "_scale",
    "_set_current_context",
    "_updaters",
}


def test_messages_spell_commands_as_the_user_would_type_them():
    """The page of a run names the command in a form that holds for every reader."""
    spelled = [
        (path.name, node.lineno)
        for path in PACKAGE
        if path.name not in ("invocation.py", "run_findings.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.JoinedStr, ast.Call))
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and re.search(r"python -m crepe_dist\.[a-z]", str(part.value))
    ]
    assert spelled == []


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_mxnet_are_touched_in_one_place(path):
    if path.name == "mxnet_internals.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    assert not used & (PRIVATE - own)
