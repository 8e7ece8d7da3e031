"""Networks in files for other programs."""

FORMATS = ("onnx", "web", "symbol", "params")
