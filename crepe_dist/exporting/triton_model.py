"""Files that make a model folder a model of Triton's Python backend, whose code is that of the installed package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crepe_dist.errors import one_line
from crepe_dist.files import write_text
from crepe_dist.predicting.tensors import INPUT, outputs

VERSION = "1"
LABELS = "labels.txt"
MAX_BATCH = 256  # texts
CODE = '''"""Model of Triton's Python backend; its code is that of the installed crepe_dist."""

from crepe_dist.predicting.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write(classes: Sequence[str], several: bool, folder: Path) -> None:
    """Write the configuration and the names of the classes, and ``model.py`` into the folder of the version."""
    write_text(folder / "config.pbtxt", _configuration(len(classes), several))
    write_text(folder / LABELS, "".join(f"{one_line(name)}\n" for name in classes))
    write_text(folder / VERSION / "model.py", CODE)


def _configuration(classes: int, several: bool) -> str:
    tensors = [_tensor("input", INPUT, "STRING", 1)]
    for name, kind in outputs(several).items():
        has_classes = name == "probabilities"
        dimension, labels = (classes, LABELS) if has_classes else (1, "")
        tensors.append(_tensor("output", name, {"BYTES": "STRING"}.get(kind, kind), dimension, labels))
    head = f'backend: "python"\nmax_batch_size: {MAX_BATCH}\ndynamic_batching {{}}\n'
    return f"{head}instance_group [{{ count: 1, kind: KIND_CPU }}]\n{''.join(tensors)}"


def _tensor(direction: str, name: str, kind: str, dimension: int, labels: str = "") -> str:
    file = f', label_filename: "{labels}"' if labels else ""
    return f'{direction} [{{ name: "{name}", data_type: TYPE_{kind}, dims: [{dimension}]{file} }}]\n'
