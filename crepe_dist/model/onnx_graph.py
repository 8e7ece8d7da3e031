"""Builder of ONNX graphs.

MXNet's own exporter is not used, because it rejects the layout of one-dimensional convolutions, supports only a few
versions of the onnx package, and writes no metadata.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from crepe_dist.model.quantization import to_float16_if_exact


class GraphBuilder:
    """ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.values: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def input(self, name: str, kind: int, *shape: str | int) -> str:
        """Add an input and return its name; ``kind`` is a type of ``TensorProto``."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def value(self, array: npt.ArrayLike, name: str = "") -> str:
        """Add a constant and return its name."""
        self.values.append(numpy_helper.from_array(np.asarray(array, order="C"), name or f"value{len(self.values)}"))
        return str(self.values[-1].name)

    def sizes(self, *values: int) -> str:
        """Add an int64 constant, [n], for axes, sizes or slice ends, and return its name."""
        return self.value(np.array(values, np.int64))

    def node(self, kind: str, *inputs: str | int, name: str = "", **settings: Any) -> str:
        """Add a node and return the name of its first output.

        Args:
            inputs: Names of values. An integer is converted to an int32 constant.
        """
        name = name or f"{kind.lower()}{len(self.nodes)}"
        names = [self.value(np.array(value, np.int32)) if isinstance(value, int) else value for value in inputs]
        outputs = [name, f"{name}.order"] if kind == "TopK" else [name]
        self.nodes.append(helper.make_node(kind, names, outputs, name, **settings))
        return name

    def look_up(self, table: npt.NDArray[np.float32], name: str, rows: Sequence[str]) -> list[str]:
        """Add nodes that read float32 rows of a table. Return one output name for each name in ``rows``."""
        half = to_float16_if_exact(table)
        values = self.value(table if half is None else half, name)
        return [
            self.node("Cast", self.node("Gather", values, name_of_rows), to=TensorProto.FLOAT) for name_of_rows in rows
        ]
