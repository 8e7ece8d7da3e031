"""Command that serves a model over HTTP."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Optional

from crepe_dist import extras
from crepe_dist.distributed.launch import require_single_process, set_omp_threads
from crepe_dist.distributed.signals import StopRequested
from crepe_dist.errors import ExitCode, escape_controls
from crepe_dist.predicting.prediction import Prediction
from crepe_dist.serving.batching import DynamicBatcher
from crepe_dist.settings.fields import NON_EMPTY, Repeated, int_range, setting
from crepe_dist.settings.flags import Command, DeviceFlag, ModelFlags, ThresholdFlag
from crepe_dist.settings.options import DEFAULT_PORT, ServiceOptions


@dataclass
class Serve(ServiceOptions, ModelFlags, DeviceFlag, ThresholdFlag, Command):
    """Classify texts over HTTP, with an API for programs and a web page for people."""

    usage = """
        crepe serve
        crepe serve runs/reviews-1f2e3d4c5b --port 9000
        curl localhost:8080/predict -H 'Content-Type: application/json' -d '{"text": "arrived broken"}'

      paths: / (web page), POST /predict, /v2 (Open Inference Protocol), /healthz, /metrics (Prometheus), /openapi.json
      exit codes: 0 after SIGTERM and 130 after Ctrl-C, once the requests in progress are answered; 1 after an error
      """
    interrupted = "stopped: Ctrl-C"

    host: str = setting("127.0.0.1", "address to listen on", NON_EMPTY)
    port: int = setting(DEFAULT_PORT, "port; 0 picks a free one", int_range(0, 65_535))
    allow_host: tuple[str, ...] = setting((), "host name that clients may use; repeatable", Repeated(NON_EMPTY))
    log_requests: bool = setting(False, "write one line per request to standard error, without texts")

    def run(self) -> None:
        signal.signal(signal.SIGTERM, _stop)
        self.names = frozenset(name.lower() for name in (self.host, *self.allow_host))
        require_single_process("serve")
        extras.require("serve", "serve")
        set_omp_threads()
        _serve(self)


def _stop(number: int, frame: Optional[FrameType]) -> None:
    # Unlike a stopped run, a stopped service leaves nothing to resume, so this is a success.
    raise StopRequested("SIGTERM", ExitCode.DONE)


def _serve(args: Serve) -> None:
    # Not at the top: FastAPI and uvicorn take 0.6 s, which --help need not wait for.
    from crepe_dist.predicting.loading import load
    from crepe_dist.runs import checkpoint
    from crepe_dist.serving import server
    from crepe_dist.serving.app import ServiceMetrics, create_app

    with server.listen(args.host, args.port) as listener:
        path = checkpoint.log_model_in_use(checkpoint.resolve_model(args.checkpoint), args.checkpoint)
        predictor = load(path, **args.external_weights_kwargs(), device=args.device, **args.thresholds())
        metrics = ServiceMetrics(predictor.path.name, predictor.kernels)

        def predict(rows: Sequence[str]) -> list[Prediction]:
            metrics.read(rows, predictor.encoding)
            return list(predictor.predict_stream(iter(rows)))  # which have the values of columns

        batcher = DynamicBatcher(predict, predictor.explain, metrics.batch_texts.observe)
        try:
            batcher.submit(["warm-up"]).result()
            print(f"{escape_controls(str(path))}: {len(predictor.classes)} classes, kernels: {predictor.kernels}")
            print(f"listening on {server.url(listener)}", flush=True)
            if not server.is_loopback(listener):
                print(
                    f"warning: other machines can reach {escape_controls(args.host)}; the service has no "
                    f"authentication and no "
                    "encryption\n  do:  use it in a private network only, or behind a proxy that adds both",
                    file=sys.stderr,
                )
            server.serve(create_app(batcher, predictor, metrics, args, log=args.log_requests), listener, args.timeout)
        finally:
            batcher.close()
