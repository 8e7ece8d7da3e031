"""Command that serves a model over HTTP: ``python -m crepe_dist.serve``, then open http://127.0.0.1:8080."""

from __future__ import annotations

import signal
import sys
from functools import partial
from types import FrameType
from typing import Any

from crepe_dist import command, extras
from crepe_dist.distributed.control import Stopped
from crepe_dist.distributed.launch import detect, limit_threads
from crepe_dist.errors import ExitCode, UserError, visible
from crepe_dist.predicting.prediction import summarise
from crepe_dist.serving.batching import BATCH_TEXTS, Batcher
from crepe_dist.settings import flags as arguments
from crepe_dist.settings.fields import settings_of, whole
from crepe_dist.settings.flags import add_settings
from crepe_dist.settings.options import PORT, ServiceOptions

EXAMPLES = """  python -m crepe_dist.serve
  python -m crepe_dist.serve runs/reviews-1f2e3d4c5b --port 9000
  curl localhost:8080/predict -H 'Content-Type: application/json' -d '{"text": "arrived broken"}'

paths: / (web page), POST /predict, /v2 (Open Inference Protocol), /healthz, /metrics (Prometheus), /openapi.json
exit codes: 0 after SIGTERM and 130 after Ctrl-C, once the requests in progress are answered; 1 after an error
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "serve", "Classify texts over HTTP, with an API for programs and a web page for people.", EXAMPLES
    )
    arguments.add_checkpoint(flags)
    arguments.add_device(flags)
    flags.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1")
    flags.add_argument(
        "--port", type=whole(0, 65_535), default=PORT, metavar="N", help=f"port; 0 picks a free one; default: {PORT}"
    )
    arguments.add_min_probability(flags)
    flags.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="host name that clients may use; repeatable"
    )
    add_settings(flags, ServiceOptions, lambda name: f"--{name}".replace("_", "-"))
    flags.add_argument(
        "--examples",
        choices=("data", "none"),
        help="texts that the page offers to everybody who can open it: of the run's data set, or none; default: data, "
        "unless other machines can reach the service or --allow-host is given",
    )
    flags.add_argument(
        "--log-requests", action="store_true", help="write one line per request to standard error, without texts"
    )
    arguments.add_foreign(flags)
    return flags


def main() -> None:
    args = parser().parse_args()
    signal.signal(signal.SIGTERM, _stop)
    values = {each.name: getattr(args, each.name) for each in settings_of(ServiceOptions)}
    options = ServiceOptions(**values, names=frozenset(name.lower() for name in (args.host, *args.allow_host)))
    launch = detect()
    if launch.size > 1:
        raise UserError(f"serve was started in {launch.size} processes", remedy="start it without a launcher")
    extras.require("serve", "serve")
    limit_threads(launch)
    _serve(args, options)


def _stop(number: int, frame: FrameType | None) -> None:
    # Unlike a stopped run, a stopped service leaves nothing to resume, so this is a success.
    raise Stopped("SIGTERM", ExitCode.DONE)


def _serve(args: Any, options: ServiceOptions) -> None:
    # Not at the top: FastAPI and uvicorn take 0.6 s, which --help need not wait for.
    from crepe_dist.predicting.predictor import load
    from crepe_dist.reports import run_page
    from crepe_dist.runs import checkpoint
    from crepe_dist.serving import server
    from crepe_dist.serving.app import Metrics, create_app

    with server.listen(args.host, args.port) as listener:
        path = checkpoint.announce(checkpoint.find(args.checkpoint))
        predictor = load(path, **arguments.foreign(args), device=args.device, min_probability=args.min_probability)
        about = summarise(predictor)
        metrics = Metrics(about.checkpoint, about.kernels)
        explain = partial(predictor.explain_in_batches, batch_size=BATCH_TEXTS)
        batcher = Batcher(predictor.predict, explain, metrics.batch_texts.observe)
        is_private = server.is_loopback(listener) and not args.allow_host
        offers_data = args.examples == "data" or (args.examples is None and is_private)
        examples = run_page.examples(path) if offers_data else []
        if examples:
            print("the page offers texts of the data set as examples; --examples none leaves them out", file=sys.stderr)
        try:
            batcher.submit(["warm-up"]).result()
            print(f"{visible(str(path))}: {len(about.classes)} classes, kernels: {about.kernels}")
            print(f"listening on {server.url(listener)}", flush=True)
            if not server.is_loopback(listener):
                print(
                    f"warning: other machines can reach {visible(args.host)}; the service has no authentication and no "
                    "encryption\n  do:  use it in a private network only, or behind a proxy that adds both",
                    file=sys.stderr,
                )
            server.serve(
                create_app(batcher, about, metrics, options, examples, log=args.log_requests), listener, options.timeout
            )
        finally:
            batcher.close()


if __name__ == "__main__":
    command.run(main, "stopped: Ctrl-C")
