"""Export of trained networks for other programs."""

FORMATS = ("onnx", "web", "crepe", "huggingface")
