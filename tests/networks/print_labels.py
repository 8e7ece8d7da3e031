"""Print the labels that a run of the bag of characters predicts, as JSON: ``python print_labels.py RUN``."""

import json
import sys

import crepe_dist
import tests.helpers.with_bag  # noqa: F401  # Registers the network.

if __name__ == "__main__":
    model = crepe_dist.load(sys.argv[1], device="cpu")
    labels = [answer.label for answer in model.predict(["quaqua", "zig zig", "vex"])]
    assert not {"mxnet", "onnx", "torch"} & sys.modules.keys()
    print(json.dumps(labels))
