"""Export of trained networks for other programs."""

FORMATS = ("onnx", "web", "pytorch", "symbol", "params")
