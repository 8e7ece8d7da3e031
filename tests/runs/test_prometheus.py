"""Metrics of training for Prometheus."""

import math
import socket
import urllib.request

import pytest

from crepe_dist.errors import UserError
from crepe_dist.runs.metrics import MetricsLogger
from crepe_dist.runs.prometheus import PrometheusExporter
from crepe_dist.settings.options import LoggingOptions

pytest.importorskip("prometheus_client")
STEP = {"step": 7, "epoch": 2, "loss": 0.5, "learning_rate": 0.1, "documents_per_second": 9.0, "milliseconds": 1.0,
        "wait_fraction": 0.0}  # fmt: skip


def read(url: str) -> dict[str, float]:
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(url, timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        " ".join([sample.name, *(sample.labels[name] for name in sorted(sample.labels))]): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_records_of_a_run_are_served(tmp_path):
    with PrometheusExporter(LoggingOptions(metrics_port=0)) as exporter:
        metrics = MetricsLogger(tmp_path, print, exporter=exporter)
        metrics.log("step", [STEP])
        times = {"compute_ms": [4.0, 20.0], "data_ms": [0.0, 0.0], "exchange_ms": [16.0, 0.0]}
        ranks = {"step": 7, "epoch": 2, "steps": 7, "hosts": ["a", "b"], **times, "memory_bytes": [1, 2]}
        metrics.log("ranks", [ranks])
        metrics.log("epoch", [{"step": 7, "epoch": 2, "validation_accuracy": 0.9}])
        values = read(exporter.url)
        assert values["crepe_dist_train_step"] == 7
        assert values["crepe_dist_train_loss"] == 0.5
        assert values["crepe_dist_train_validation_accuracy"] == 0.9
        assert math.isnan(values["crepe_dist_train_test_accuracy"])  # 0 would be a score.
        assert values["crepe_dist_train_rank_step_seconds b compute 1"] == 0.02
        assert values["crepe_dist_train_rank_step_seconds a exchange 0"] == 0.016
        assert values["crepe_dist_train_rank_memory_bytes b 1"] == 2
        assert values["crepe_dist_train_last_step_timestamp_seconds"] > 1e9
        assert values["process_resident_memory_bytes"] > 0
    with socket.socket() as port_is_free:
        port_is_free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port_is_free.bind(("127.0.0.1", int(exporter.url.split(":")[2].split("/")[0])))


def test_a_port_in_use_is_an_error_with_a_remedy():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {port}"):
            PrometheusExporter(LoggingOptions(metrics_port=port))
