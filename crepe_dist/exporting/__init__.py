"""Networks in files for other programs."""

FORMATS = ("onnx", "symbol", "params")
