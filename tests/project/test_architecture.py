"""Rules of the package's layout that import-linter cannot see."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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


def test_private_names_of_mxnet_are_touched_in_one_place():
    for path in PACKAGE:
        if path.name != "mxnet_internals.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            of_self = [isinstance(node.value, ast.Name) and node.value.id == "self" for node in nodes]
            defined = {node.attr for node, is_own in zip(nodes, of_self) if is_own}
            used = {node.attr for node, is_own in zip(nodes, of_self) if not is_own}
            assert not used & (PRIVATE - defined), path
