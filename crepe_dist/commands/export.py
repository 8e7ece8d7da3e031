"""Command that exports a network for other programs."""

from dataclasses import dataclass
from pathlib import Path

from crepe_dist.distributed.launch import set_omp_threads
from crepe_dist.errors import UserError, escape_controls
from crepe_dist.exporting import FORMATS
from crepe_dist.formatting import pluralize, size
from crepe_dist.settings.fields import PATH_ARGUMENT, Choice, float_range, setting
from crepe_dist.settings.flags import Command, ModelFlags, ThresholdFlag, check_folder


@dataclass
class Export(ModelFlags, ThresholdFlag, Command):
    """Export a model for other programs.

    onnx: model.onnx, and crepe_runtime.py, which classifies texts with model.onnx and needs only NumPy and ONNX
        Runtime.
    web: a web page that classifies texts in the browser.
    crepe: a model folder for crepe_dist, with model.safetensors and model.json.
    huggingface: the model folder as a repository of the Hugging Face Hub.

    The probabilities of the exported model are compared with the probabilities of crepe_dist on test texts and
    synthetic texts. The export is written only if the probabilities agree.
    """

    usage = """
        crepe export --out exported
        crepe export runs/reviews-1f2e3d4c5b --data data/reviews --out exported
        crepe export runs/reviews-1f2e3d4c5b --format web --out page
        crepe export runs/reviews-1f2e3d4c5b --format crepe --out reviews-model
        crepe export runs/reviews-1f2e3d4c5b --max-size-mb 2 --out small
        """

    format: str | None = setting(
        None, "Format, as described above. Default: crepe with --max-size-mb, otherwise onnx.", Choice(FORMATS)
    )
    max_size_mb: float | None = setting(
        None,
        "Maximum size of the model folder in MB, for --format crepe. The least important rows of the n-gram tables are "
        "removed, and the other numbers are quantized. Default: no compression.",
        float_range(0, 1e6, open_below=True),
    )
    out: Path = setting(None, "Output folder. Files with the same names are replaced. Required.", PATH_ARGUMENT)
    data: Path | None = setting(
        None,
        "Prepared folder. Its test split is used for the comparison, and its training split for --max-size-mb. "
        "Default: the data set of the run.",
        PATH_ARGUMENT,
    )

    def run(self) -> None:
        if self.out is None:
            raise UserError("--out is missing: it names the folder to write", remedy="add --out DIR")
        check_folder(self.out)
        export_format = self.format or ("crepe" if self.max_size_mb else "onnx")
        if self.max_size_mb and export_format != "crepe":
            raise UserError(f"--max-size-mb does not apply to --format {export_format}", remedy="use --format crepe")
        set_omp_threads()
        from crepe_dist.exporting.exporter import export, real_texts, synthetic_texts
        from crepe_dist.predicting.loading import load_for_command

        predictor = load_for_command(self, device="cpu", **self.thresholds())
        if self.max_size_mb:
            from crepe_dist.exporting.compression import compress_to

            files, notes = compress_to(predictor, int(self.max_size_mb * 1e6), self.out, self.data)
            _list(files)
            print(*notes, sep="\n")
            return
        real, synthetic = real_texts(predictor.path, self.data), synthetic_texts(predictor.encoding)
        files, difference = export(predictor, export_format, self.out, real + synthetic)
        _list(files)
        if predictor.composition.strip_html and export_format == "onnx":
            print(
                "note: crepe_runtime.py removes HTML in the same way as in training; other programs must remove HTML "
                "before they call model.onnx"
            )
        texts = f"{pluralize(len(real), 'text')} of the test split and {len(synthetic)} synthetic texts"
        print(f"compared with crepe_dist on {texts}: the probabilities differ by at most {difference:.1e}")


def _list(files: list[Path]) -> None:
    for file in files:
        print(f"{escape_controls(str(file))} ({size(file.stat().st_size)})")
