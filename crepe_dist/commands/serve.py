"""Command that serves a model over HTTP."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

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
    """Classify texts over HTTP. The service has an API for programs and a web page."""

    usage = """
        crepe serve
        crepe serve runs/reviews-1f2e3d4c5b --port 9000
        curl localhost:8080/predict -H 'Content-Type: application/json' -d '{"text": "arrived broken"}'

      paths: / (web page), POST /predict, /healthz, /metrics (Prometheus), /openapi.json
      exit codes: 0 after SIGTERM, 130 after Ctrl-C (both after the requests in progress are finished), 1 after an error
      """
    interrupted = "stopped: Ctrl-C"

    host: str = setting("127.0.0.1", "Address to listen on.", NON_EMPTY)
    port: int = setting(DEFAULT_PORT, "Port. The value 0 selects a free port.", int_range(0, 65_535))
    allow_host: tuple[str, ...] = setting(
        (),
        "Host name that clients may use for the service. IP addresses, localhost and --host are always allowed. Repeat "
        "the option for several names.",
        Repeated(NON_EMPTY),
    )
    log_requests: bool = setting(
        False, "Write one line per request to standard error. The lines contain no texts of the requests."
    )

    def run(self) -> None:
        signal.signal(signal.SIGTERM, _stop)
        self.names = frozenset(name.lower() for name in (self.host, *self.allow_host))
        require_single_process("serve")
        extras.require("serve", "serve")
        set_omp_threads()
        _serve(self)


def _stop(number: int, frame: FrameType | None) -> None:
    # A stopped training run can be resumed, so it has its own exit code. A stopped service has finished its work.
    raise StopRequested("SIGTERM", ExitCode.DONE)


def _serve(args: Serve) -> None:
    # These imports are not at the top of the module, because FastAPI and uvicorn take 0.6 s. --help needs none of them.
    from crepe_dist.predicting.loading import load_for_command
    from crepe_dist.serving import server
    from crepe_dist.serving.app import ServiceMetrics, create_app

    with server.listen(args.host, args.port) as listener:
        predictor = load_for_command(args, device=args.device, **args.thresholds())
        metrics = ServiceMetrics(predictor.path.name, predictor.kernels)

        def predict(rows: Sequence[str]) -> list[Prediction]:
            return list(predictor.predict_stream(iter(rows)))

        batcher = DynamicBatcher(predict, predictor.explain, metrics.batch_texts.observe)
        try:
            batcher.submit(["warm-up"]).result()
            path = escape_controls(str(predictor.path))
            print(f"{path}: {len(predictor.classes)} classes, kernels: {predictor.kernels}")
            print(f"listening on {server.url(listener)}", flush=True)
            if not server.is_loopback(listener):
                print(
                    f"warning: other machines can reach {escape_controls(args.host)}, and the service has no "
                    "authentication and no encryption\n"
                    "  do:  use the service only in a private network, or behind a proxy that adds both",
                    file=sys.stderr,
                )
            server.serve(create_app(batcher, predictor, metrics, args, log=args.log_requests), listener, args.timeout)
        finally:
            batcher.close()
