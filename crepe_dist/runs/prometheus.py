"""Prometheus metrics of a training job, which rank 0 serves over HTTP."""

import math
import time
from collections.abc import Mapping
from typing import Any

from crepe_dist import extras
from crepe_dist.errors import UserError
from crepe_dist.settings.options import LoggingOptions

# Gauges with the values of the records of steps and epochs, by the key of the record. An epoch without a split has no
# scores of this split.
STEP_GAUGES = {
    "step": "Number of the last logged step of the current network.",
    "epoch": "Number of the current epoch.",
    "loss": "Training loss of the last logged step, in nats.",
    "learning_rate": "Learning rate of the last logged step.",
    "documents_per_second": "Documents per second, over all ranks.",
}
EPOCH_GAUGES = {
    f"{split}_{name}": f"{text} on the {split} split after the last epoch."
    for split in ("validation", "test")
    for name, text in (("loss", "Loss in nats"), ("accuracy", "Accuracy (micro F1 for multilabel data)"))
}


class PrometheusExporter:
    """Context manager of the HTTP server. The metrics have their own registry, and are updated with each record.

    Args:
        options: Settings ``metrics_host`` and ``metrics_port``. The port 0 selects a free port.

    Attributes:
        url: URL of the metrics.

    Raises:
        UserError: prometheus-client is not installed, or the address cannot be used.
    """

    def __init__(self, options: LoggingOptions) -> None:
        extras.require("metrics", "--metrics-port")
        from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, start_http_server

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"crepe_dist_train_{name}", text, labels, registry=registry)

        self._gauges = {name: gauge(name, text) for name, text in {**STEP_GAUGES, **EPOCH_GAUGES}.items()}
        self._logged = gauge("last_step_timestamp_seconds", "Unix time when steps were last logged.")
        # Without a value, a gauge would be 0, which alerts would take for a score or a time.
        for unknown in (*self._gauges.values(), self._logged):
            unknown.set(math.nan)
        self._times = gauge("rank_step_seconds", "Mean seconds of a step, by its parts.", "rank", "host", "part")
        self._memory = gauge("rank_memory_bytes", "Resident memory of the process.", "rank", "host")
        host, port = options.metrics_host, options.metrics_port or 0
        try:
            self._server, _ = start_http_server(port, host, registry)
        except OSError as error:
            remedy = "choose another --metrics-port, or a --metrics-host of this machine"
            raise UserError(f"cannot listen on {host}, port {port}: {error}", remedy=remedy) from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}/metrics"

    def update(self, record: Mapping[str, Any]) -> None:
        """Set the gauges to the values of a record of ``metrics.jsonl``."""
        if record["event"] == "ranks":
            for rank, host in enumerate(record["hosts"]):
                for part in ("compute", "data", "exchange"):
                    self._times.labels(rank, host, part).set(record[f"{part}_ms"][rank] / 1000)
                self._memory.labels(rank, host).set(record["memory_bytes"][rank])
            return
        for name in self._gauges.keys() & record.keys():
            self._gauges[name].set(record[name])
        self._logged.set(time.time())

    def __enter__(self) -> "PrometheusExporter":
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
