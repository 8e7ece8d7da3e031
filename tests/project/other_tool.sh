#!/bin/sh
# Python of an environment with other tools, in which only the benchmark of short texts works.
case "$2" in
*/short_texts_worker.py) echo '{"train_rate": 1e-3, "predict_rate": 1e-3, "seconds": 1.0, "accuracy": 0.5}' ;;
*) echo no module torch >&2; exit 1 ;;
esac
