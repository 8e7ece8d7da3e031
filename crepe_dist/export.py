"""Command that exports a network for other programs: ``python -m crepe_dist.export RUN --out DIR``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from crepe_dist import command
from crepe_dist.distributed.launch import detect, limit_threads
from crepe_dist.errors import UserError, visible
from crepe_dist.exporting import FORMATS
from crepe_dist.settings import flags as arguments
from crepe_dist.wording import counted, size

if TYPE_CHECKING:
    pass

EXAMPLES = """  python -m crepe_dist.export --out exported
  python -m crepe_dist.export runs/reviews-1f2e3d4c5b --data data/reviews --out exported
  python -m crepe_dist.export runs/reviews-1f2e3d4c5b --format web --out page
  python -m crepe_dist.export runs/reviews-1f2e3d4c5b --format crepe --out reviews-model
  python -m crepe_dist.export runs/reviews-1f2e3d4c5b --size 2MB --out small
  python -m crepe_dist.export runs/reviews-1f2e3d4c5b --format pytorch --out exported
  python -m crepe_dist.export crepe_gluon_epoch6.params --mode notebook --classes classes.txt --out exported
"""
SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(kB|KB|MB|GB)")
UNITS = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def bytes_of(text: str) -> int:
    """Parse a size such as 500kB or 1.5MB."""
    match = SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a size such as 500kB or 1.5MB")
    return int(float(match[1]) * UNITS[match[2]])


def parser() -> arguments.Parser:
    flags = arguments.parser(
        "export",
        "Export the network for other programs. onnx: model.onnx, and crepe_runtime.py, which classifies texts with it "
        "and only needs ONNX Runtime. web: a page that classifies text in the browser. crepe: a folder for "
        "crepe_dist elsewhere, model.safetensors and model.json; with --size a small one. huggingface, mlflow: the "
        "same as a repository of the Hub, or a model of MLflow. pytorch: the same, whole, and crepe_torch.py, a "
        "PyTorch module that can also be trained. The export is compared with our own engine on some texts, and only "
        "written if the probabilities agree.",
        EXAMPLES,
    )
    arguments.add_checkpoint(flags)
    flags.add_argument("--format", choices=FORMATS, help="default: onnx; with --size: crepe")
    flags.add_argument(
        "--size",
        type=bytes_of,
        metavar="SIZE",
        help="(crepe) largest size of the folder, such as 2MB or 500kB: rows of the tables that matter least in the "
        "training split are left out, and several numbers share a byte",
    )
    arguments.add_model_folder(flags)
    flags.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="prepared folder with test texts for the comparison, and with the training split for --size; default: "
        "the run's",
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
    args = parser().parse_args()
    arguments.check_folder(args.out)
    form = args.format or ("crepe" if args.size else "onnx")
    if args.quantize and form not in ("onnx", "web"):
        raise UserError(
            f"--quantize does not apply to --format {form}", remedy="to make a model folder small, use --size"
        )
    if args.size and form != "crepe":
        raise UserError(f"--size does not apply to --format {form}", remedy="use --format crepe")
    limit_threads(detect())
    from crepe_dist.exporting.exporter import export, real_texts, synthetic_texts
    from crepe_dist.predicting.predictor import load
    from crepe_dist.runs import checkpoint

    path = checkpoint.announce(checkpoint.find(args.checkpoint))
    predictor = load(path, **arguments.foreign(args), device="cpu", min_probability=args.min_probability)
    if args.size:
        from crepe_dist.exporting.small_model import compress_to

        files, notes = compress_to(predictor, args.size, args.out, args.data)
        _list(files)
        print(*notes, sep="\n")
        return
    real, synthetic = real_texts(path, args.data), synthetic_texts(predictor.encoding)
    files, difference = export(predictor, form, args.out, real + synthetic, quantize=args.quantize)
    _list(files)
    if predictor.composition.strip_html and form in ("onnx", "web", "pytorch"):
        print("note: the model was trained on texts without HTML, and this export does not strip it: do so before")
    texts = f"{counted(len(real), 'text')} of the test split and {len(synthetic)} synthetic ones"
    print(f"compared with our own engine on {texts}: probabilities differ by at most {difference:.1e}")


def _list(files: list[Path]) -> None:
    for file in files:
        print(f"{visible(str(file))} ({size(file.stat().st_size)})")


if __name__ == "__main__":
    command.run(main)
