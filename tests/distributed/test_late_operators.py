"""Operators of MXNet that are compiled at their first call are those of ``import mxnet``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from crepe_dist.distributed import late_operators

# Counts the functions that MXNet's import compiles from text. Calls an operator of each module, by its name and as a
# method or in a graph.
BODY = """
import json, sys
compiled = []
sys.addaudithook(lambda event, about: event == "compile" and about[1] == "<string>" and compiled.append(1))
{imports}
at_import = len(compiled)
import mxnet as mx
OF_OPERATORS = ("mxnet.ndarray", "mxnet.symbol", "mxnet.numpy", "mxnet.contrib.ndarray", "mxnet.contrib.symbol")
modules = [sys.modules[name] for name in sorted(sys.modules) if name.startswith(OF_OPERATORS)]
names = [f"{{each.__name__}}.{{name}} {{value.__name__}}" for each in modules for name, value in vars(each).items()
         if callable(value) and not isinstance(value, type) and hasattr(value, "__name__")]
x, weight = mx.nd.array([[-1, 2]]), mx.nd.ones((3, 2))
graph = mx.sym.FullyConnected(mx.sym.var("x"), mx.sym.var("w"), num_hidden=3, no_bias=True, name="dense")
(out,) = graph.bind(mx.cpu(), dict(x=x, w=weight)).forward()
found = [mx.nd.relu(x), x.relu(), mx.nd.linalg.gemm2(x, x, transpose_b=True), mx.nd.contrib.arange_like(x), out,
         mx.np.dot(mx.np.ones((2, 2)), mx.np.ones(2)), mx.npx.relu(mx.np.array([-1.0]))]
print(json.dumps([at_import, names, graph.list_outputs(), [each.asnumpy().tolist() for each in found]]))
"""


def start(imports: str) -> list:
    done = subprocess.run(
        [sys.executable, "-c", BODY.format(imports=imports)], check=True, stdout=subprocess.PIPE, text=True, timeout=100
    )
    return json.loads(done.stdout)


def test_they_have_the_same_names_and_compute_the_same():
    late, *found = start("from crepe_dist.distributed.launch import Launch, import_mxnet; import_mxnet(Launch())")
    eager, *expected = start("import mxnet")
    assert eager > 2000
    assert late < 300  # by dataclasses and named tuples
    assert found == expected


def test_an_mxnet_that_was_imported_before_stays():
    module = sys.modules["mxnet"]
    late_operators.import_mxnet()
    assert sys.modules["mxnet"] is module


def test_of_one_that_cannot_be_imported_nothing_is_left(monkeypatch, tmp_path):
    (tmp_path / "mxnet").mkdir()
    (tmp_path / "mxnet" / "__init__.py").touch()
    (tmp_path / "mxnet" / "base.py").write_text("raise OSError('no library')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mxnet"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OSError, match="no library"):
        late_operators.import_mxnet()
    assert "mxnet" not in sys.modules
