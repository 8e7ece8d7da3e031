"""Command that exports a network for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from crepe_dist.distributed.launch import set_omp_threads
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.exporting import FORMATS
from crepe_dist.formatting import pluralize, size
from crepe_dist.settings.fields import PATH_ARGUMENT, Choice, float_range, setting
from crepe_dist.settings.flags import Command, ModelFlags, ThresholdFlag, check_folder


@dataclass(frozen=True)
class FormatName(Choice):
    """One of the formats, with a message about a format that was removed."""

    def check(self, value: Any) -> str:
        if value in ("pytorch", "torch"):
            raise UserError(
                "the PyTorch export was removed",
                "ONNX is the format for other frameworks",
                "use --format onnx; then convert model.onnx to a PyTorch module with onnx2torch, or run it with ONNX "
                "Runtime inside your PyTorch code",
            )
        return super().check(value)


@dataclass
class Export(ModelFlags, ThresholdFlag, Command):
    """Export the network for other programs.

    onnx: model.onnx, and crepe_runtime.py, which classifies texts with it and only needs ONNX Runtime. web: a page that
    classifies text in the browser. crepe: a folder for crepe_dist elsewhere, model.safetensors and model.json; with
    --max-size-mb a small one. huggingface, mlflow: the same as a repository of the Hub, or a model of MLflow. The
    export is compared with our own engine on some texts, and only written if the probabilities agree.
    """

    usage = """
        crepe export --out exported
        crepe export runs/reviews-1f2e3d4c5b --data data/reviews --out exported
        crepe export runs/reviews-1f2e3d4c5b --format web --out page
        crepe export runs/reviews-1f2e3d4c5b --format crepe --out reviews-model
        crepe export runs/reviews-1f2e3d4c5b --max-size-mb 2 --out small
        crepe export crepe_gluon_epoch6.params --mode notebook --classes classes.txt --out exported
        """

    format: Optional[str] = setting(None, "default: onnx; with --max-size-mb: crepe", FormatName(FORMATS))
    max_size_mb: Optional[float] = setting(
        None,
        "(crepe) largest size of the folder in MB: rows of the tables that matter least in the training split are left "
        "out, and several numbers share a byte",
        float_range(0, 1e6, open_below=True),
    )
    out: Path = setting(None, "folder; files of the same names are replaced", PATH_ARGUMENT)
    data: Optional[Path] = setting(
        None,
        "prepared folder: test texts for the comparison, and the training split for --max-size-mb; default: the run's",
        PATH_ARGUMENT,
    )

    def run(self) -> None:
        if self.out is None:
            raise UserError("--out is missing: it names the folder to write", remedy="add --out DIR")
        check_folder(self.out)
        form = self.format or ("crepe" if self.max_size_mb else "onnx")
        if self.max_size_mb and form != "crepe":
            raise UserError(f"--max-size-mb does not apply to --format {form}", remedy="use --format crepe")
        set_omp_threads()
        from crepe_dist.exporting.exporter import export, real_texts, synthetic_texts
        from crepe_dist.predicting.loading import load
        from crepe_dist.runs import checkpoint

        path = checkpoint.log_model_in_use(checkpoint.resolve_model(self.checkpoint, self.data), self.checkpoint)
        predictor = load(path, **self.external_weights_kwargs(), device="cpu", **self.thresholds())
        if predictor.composition.beside and form == "web":
            remedy = "use --format onnx, huggingface, mlflow or crepe"
            raise UserError(f"--format {form} does not read columns beside the text, as this model does", remedy=remedy)
        if predictor.level_thresholds:
            remedy = "leave --min-precision out, and give it to predict or serve"
            raise UserError("no export has the thresholds of a tree of codes", remedy=remedy)
        if self.max_size_mb:
            from crepe_dist.exporting.compression import compress_to

            files, notes = compress_to(predictor, int(self.max_size_mb * 1e6), self.out, self.data)
            _list(files)
            print(*notes, sep="\n")
            return
        real, synthetic = real_texts(path, self.data), synthetic_texts(predictor.encoding)
        files, difference = export(predictor, form, self.out, real + synthetic)
        _list(files)
        if predictor.composition.strip_html and form == "onnx":
            print("note: crepe_runtime.py removes HTML as in training; other programs must remove it before model.onnx")
        texts = f"{pluralize(len(real), 'text')} of the test split and {len(synthetic)} synthetic ones"
        print(f"compared with our own engine on {texts}: probabilities differ by at most {difference:.1e}")


def _list(files: list[Path]) -> None:
    for file in files:
        print(f"{escape_controls(str(file))} ({size(file.stat().st_size)})")
