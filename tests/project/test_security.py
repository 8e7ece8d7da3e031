"""Tests of the syntax trees: the code never executes or unpickles data and never starts a shell.

``concurrent.futures`` passes pickles between our own processes through pipes that nobody else can write to; nothing
that comes from a disk or a network is unpickled.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for room in ("crepe_dist", "benchmarks", "tools", "third_party") for path in (ROOT / room).rglob("*.py")
)
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "code",
    "codeop",
    "pty",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# By the last two parts of the name, however the module was imported.
CALLS = {
    "os.system", "os.popen", "os.execv", "os.execvp", "tempfile.mktemp", "subprocess.getoutput",
    "subprocess.getstatusoutput", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.load",
    "pd.read_pickle", "pandas.read_pickle", "mx.nd.load", "nd.load", "mx.nd.load_frombuffer",
}  # fmt: skip
METHODS = {"broadcast_object", "allgather_object", "read_pickle", "to_pickle", "load_parameters"}


def findings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{name.name}" for name in node.names]
            yield from ((node.lineno, name) for name in whole if name in CALLS or name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, found) for found in _call(node))


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    last = name.rsplit(".", 1)[-1]
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in BUILTINS or name.startswith("builtins."):
        yield name
    if name in CALLS or ".".join(name.split(".")[-2:]) in CALLS or last in METHODS:
        yield name
    if keywords.get("shell", "False") != "False" or keywords.get("allow_pickle", "False") != "False":
        yield f"{name} with a shell or pickles"
    if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
        yield f"{name} without allow_pickle=False"
    if last == "load" and "yaml" in name and not any("Safe" in ast.unparse(each) for each in node.args[1:]):
        yield f"{name} without a safe loader"
    if last == "literal_eval":
        yield name


def test_nothing_that_was_read_is_run():
    calls = [(str(path.relative_to(ROOT)), *call) for path in FILES for call in findings(ast.parse(path.read_bytes()))]
    assert calls == []
