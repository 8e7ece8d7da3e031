"""Training from Python in one call: ``crepe_dist.fit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crepe_dist.data.dataset import MANIFEST, SAMPLE
from crepe_dist.distributed.launch import detect
from crepe_dist.errors import UserError
from crepe_dist.files import scratch
from crepe_dist.predicting.inputs import check_column
from crepe_dist.predicting.predictor import Predictor, load
from crepe_dist.prepare import COMMAND_ONLY, Prepare, for_python, prepare
from crepe_dist.settings.config import combined, flag, settings
from crepe_dist.settings.fields import near, settings_of
from crepe_dist.supervising.training_process import QUIET
from crepe_dist.train import train

if TYPE_CHECKING:
    from crepe_dist.prepare import Table

NEVER = {*COMMAND_ONLY, "out", "overwrite", "source", "data.source"}
OF_BOTH = "seed"


def fit(
    data: Table | str | Path | Sequence[str | Path],
    label: str | None = None,
    text: str | Sequence[str] | None = None,
    **options: Any,
) -> Predictor:
    """Train a classifier, and return it; also called ``crepe_dist.fit``.

    A table or a file is prepared, and trained on, in a temporary folder, with the defaults of ``crepe prepare`` and
    ``crepe train``: a fifth of the rows is the test split, unless ``test`` is given. A prepared folder is trained on as
    by ``crepe train``, in a folder of ``runs/``: the same call resumes an unfinished run, and opens a finished one.

    Args:
        data: data frame, mapping of names to lists such as ``{"text": texts, "label": labels}``, prepared folder, or
            file or folder that ``crepe prepare`` reads.
        label, text: columns; ``None``: those with usual names. Several columns of ``text`` are joined in their order.
        options: arguments of ``prepare``, unless the data are prepared, such as ``labels="several"``; and settings of
            ``crepe train``, named as their flags, such as ``epochs=3`` or ``**{"logging.report": False}``. ``seed`` is
            that of both. ``run_dir`` keeps the run and its report.

    Raises:
        UserError: an option does not exist or has an unusable value, or the data cannot be used.
    """
    check_column("label", label)
    options = {**{name: value for name, value in (("label", label), ("text", text)) if value is not None}, **options}
    path = Path(data) if isinstance(data, (str, Path)) else None
    if path is not None and (str(path) == SAMPLE or (path / MANIFEST).is_file()):
        config = combined({**_divided(options, is_prepared=True)[1], "data.source": str(path)})
        return load(train(config).checkpoint, device=config.device)
    if detect().size > 1:
        remedy = "prepare it first, in one process, with crepe_dist.prepare; then give its name to crepe_dist.fit"
        raise UserError(f"{detect().size} processes cannot prepare the same data", remedy=remedy)
    preparing, training = _divided(options, is_prepared=False)
    with scratch() as folder:
        prepared = folder / ((path and path.resolve().stem) or "frame")
        prepare(data, prepared, **preparing)
        usual = {} if "run_dir" in training else {"run_dir": str(folder / "run"), **QUIET}
        try:
            config = combined({**usual, **training, "data.source": str(prepared)})
            return load(train(config).checkpoint, device=config.device)
        except UserError as error:
            raise for_python(error) from error.__cause__


def _divided(options: Mapping[str, Any], *, is_prepared: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of ``prepare``, and the settings of training by their dotted names."""
    known, flags = settings(), set() if is_prepared else {each.name for each in settings_of(Prepare)}
    dotted = {**{flag(name)[2:].replace("-", "_"): name for name in known}, **dict(zip(known, known))}
    preparing, training = {}, {}
    for name, value in options.items():
        if name in NEVER or name not in {*dotted, *flags}:
            remedy = near(name, {*dotted, *flags} - NEVER) or "docs/how-to/python.md lists the options"
            raise UserError(f"fit has no option {name}{' for a prepared folder' * is_prepared}", remedy=remedy)
        if name in flags:
            preparing[name] = value
        if name in dotted and (name not in flags or name == OF_BOTH):
            plain = value.item() if hasattr(value, "item") else value  # NumPy's numbers
            training[dotted[name]] = str(plain) if isinstance(plain, Path) else plain
    return preparing, training
