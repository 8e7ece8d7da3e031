"""Command that exports a network for other programs: ``python -m crepe_dist.export RUN --out DIR``."""

from __future__ import annotations

from pathlib import Path

from crepe_dist import command
from crepe_dist.distributed.launch import detect, limit_threads
from crepe_dist.errors import UserError, visible
from crepe_dist.exporting import FORMATS
from crepe_dist.settings import arguments
from crepe_dist.wording import counted, size

EXAMPLES = """  python -m crepe_dist.export --out exported
  python -m crepe_dist.export runs/reviews-1f2e3d4c5b --data data/reviews --out exported
  python -m crepe_dist.export runs/reviews-1f2e3d4c5b --format web --out page
  python -m crepe_dist.export runs/reviews-1f2e3d4c5b --format crepe --out reviews-model
  python -m crepe_dist.export runs/reviews-1f2e3d4c5b --format pytorch --out exported
  python -m crepe_dist.export crepe_gluon_epoch6.params --mode notebook --classes classes.txt --out exported
"""


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "export",
        "Export the network for other programs. onnx: model.onnx, and crepe_runtime.py, which classifies texts with it "
        "and only needs ONNX Runtime. web: a page that classifies text in the browser. crepe: a folder for "
        "crepe_dist elsewhere, model.safetensors and model.json. pytorch: the same, and crepe_torch.py, a PyTorch "
        "module that can also be trained. symbol: MXNet's symbol and parameters. params: Gluon parameters with a "
        "description. The export is compared with our own engine on some texts, and only "
        "written if the probabilities agree.",
        EXAMPLES,
    )
    arguments.add_checkpoint(flags)
    flags.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    arguments.add_model_folder(flags)
    flags.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="prepared folder with test texts for the comparison; default: the run's",
    )
    flags.add_argument(
        "--quantize",
        action="store_true",
        help="store the tables of n-grams in eight bits a number: a file of a quarter of the size (onnx, web)",
    )
    arguments.add_min_probability(flags, " by model.onnx's runtime and the page")
    arguments.add_foreign(flags)
    return flags


def main() -> None:
    given = parser().parse_args()
    arguments.check_folder(given.out)
    if given.quantize and given.format not in ("onnx", "web"):
        raise UserError(
            f"--quantize does not apply to --format {given.format}",
            "it is for ONNX files and web pages",
            "leave it out; `compress` makes a model small for crepe_dist itself",
        )
    limit_threads(detect())
    from crepe_dist.exporting import verification, web_runtime
    from crepe_dist.exporting.exporter import export
    from crepe_dist.predicting.predictor import load
    from crepe_dist.runs import checkpoint

    path = checkpoint.announce(checkpoint.find(given.checkpoint))
    predictor = load(path, **arguments.foreign(given), device="cpu", min_probability=given.min_probability)
    real, synthetic = verification.real(path, given.data), verification.synthetic(predictor.encoding)
    if given.format == "web" and not web_runtime.archive().exists():
        print(f"npm downloads {web_runtime.PACKAGE} (33 MB, once)", flush=True)
    files, difference = export(
        predictor,
        checkpoint.describe(path),
        given.format,
        given.out,
        real + synthetic,
        path.name,
        quantize=given.quantize,
    )
    for file in files:
        print(f"{visible(str(file))} ({size(file.stat().st_size)})")
    texts = f"{counted(len(real), 'text')} of the test split and {len(synthetic)} synthetic ones"
    if not real:
        texts = f"{len(synthetic)} synthetic texts, because the run's data set is not available"
    print(f"compared with our own engine on {texts}: probabilities differ by at most {difference:.1e}")


if __name__ == "__main__":
    command.run(main)
