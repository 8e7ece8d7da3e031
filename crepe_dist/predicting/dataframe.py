"""Predictions for pandas data frames and Arrow tables, which cluster engines use."""

import math
import os
import socket
import threading
from collections.abc import Sequence
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import pandas as pd

from crepe_dist.errors import UserError
from crepe_dist.predicting.input_reader import InvalidInput, model_columns
from crepe_dist.predicting.loading import load
from crepe_dist.predicting.output_formats import output_cells, output_column_types
from crepe_dist.predicting.predictor import Predictor
from crepe_dist.preparing.dataframe_source import extract_table_texts, is_missing
from crepe_dist.preparing.remote import is_url

# The process may have many threads, for example in an MLflow server. The lock ensures that the model is opened once.
_lock = threading.Lock()


class FramePredictor:
    """Function that classifies the rows of a data frame, for engines that send functions to other processes.

    The pickle of the function contains only the path or URL of the model and the options below. Each process opens the
    model at the first call and reuses it in later calls.

    >>> predict_frame = crepe_dist.FramePredictor("runs/reviews")                  # doctest: +SKIP
    >>> predict_frame(pd.DataFrame({"text": ["what a wonderful little film"]}))    # doctest: +SKIP

    Args:
        model: Path of a run folder, a model folder or a checkpoint, or the URL of a model folder. The path must be
            valid in every process.
        text: Text column, or a sequence of text columns that are joined in this order. If it is ``None``, the columns
            that the model was trained on are used, or a column with a common name.
        top: Number of classes in a prediction.
        min_probability: As for ``load``.
        device: As for ``load``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        text: str | Sequence[str] | None = None,
        top: int = 1,
        min_probability: float | str = 0.0,
        device: str = "auto",
    ) -> None:
        name = os.fspath(model)
        self.model = name if is_url(name) else os.path.abspath(name)
        self.texts = () if text is None else (text,) if isinstance(text, str) else tuple(text)
        self.top = top
        self.min_probability = min_probability
        self.device = device

    def __call__(self, frame: Any) -> Any:
        """Return the rows with the columns that ``predict --format csv`` adds, such as the class and its probability.

        If a row cannot be classified, its column ``problem`` contains the reason. Its class is empty, and its
        probability is NaN.

        Args:
            frame: A ``DataFrame`` of pandas, or Arrow's ``Table`` or ``RecordBatch``. The result has the same type.

        Raises:
            UserError: There is no model on this host, the text columns cannot be selected, or the text columns do not
                contain strings.
        """
        with _lock:
            predictor = _load_cached(self.model, self.min_probability, self.device)
        return _append_columns(frame, predict_frame(predictor, frame, self.texts, self.top))


@lru_cache(maxsize=1)
def _load_cached(model: str, min_probability: float | str, device: str) -> Predictor:
    if not is_url(model) and not os.path.exists(model):
        remedy = "name a folder that all nodes share, or a URL"
        raise UserError(f"{model} does not exist on {socket.gethostname()}", remedy=remedy)
    return load(model, min_probability=min_probability, device=device)


def predict_frame(predictor: Predictor, frame: Any, texts: Sequence[str] = (), top: int = 1) -> pd.DataFrame:
    """Classify the rows of a data frame. Return only the columns that ``predict --format csv`` adds.

    The result has the index of ``frame``.

    Args:
        texts: Text columns. If there are none, the columns that the model was trained on are used, or a column with a
            common name.
        top: Number of classes in a prediction.

    Raises:
        UserError: The text columns cannot be selected, or they do not contain strings.
    """
    table = frame if isinstance(frame, pd.DataFrame) else _arrow_columns(frame)
    try:
        column = extract_table_texts(table, model_columns(predictor.composition, texts=tuple(texts)))
    except UserError as error:
        raise InvalidInput(error.what, error.why, 'name the column, as in text="body"') from None
    top = min(top, len(predictor.classes))
    without_prediction = [*["[]"] * predictor.is_multilabel, *["", math.nan] * top, 0]
    predictions = predictor.predict_stream("" if is_missing(text) else text for text in column)
    rows = [
        [*without_prediction, prediction.error] if prediction.error else output_cells(prediction, top)
        for prediction in predictions
    ]
    types = output_column_types(top, predictor.is_multilabel)
    index = frame.index if isinstance(frame, pd.DataFrame) else None
    return pd.DataFrame(rows, columns=list(types), index=index).astype(types)


def _arrow_columns(frame: Any) -> dict[str, Any]:
    if not hasattr(frame, "schema"):
        remedy = "give a pandas data frame or an Arrow table; on Ray, map_batches(…, batch_format='pyarrow')"
        raise UserError(f"the frame is of type {type(frame).__name__}", remedy=remedy)
    if len(set(frame.schema.names)) < len(frame.schema.names):
        raise UserError("several columns of the frame have the same name", remedy="rename them")
    return dict(zip(frame.schema.names, frame.columns))


def _append_columns(frame: Any, added: pd.DataFrame) -> Any:
    """Return a data frame or an Arrow table with the columns of ``added`` after its own columns."""
    is_pandas = isinstance(frame, pd.DataFrame)
    for name in frame.columns if is_pandas else frame.schema.names:
        if name in added:
            raise UserError(f"the frame already has a column {name!r}", remedy="rename it, or leave it out")
    if is_pandas:
        return pd.concat([frame, added], axis=1)
    import pyarrow as pa

    from crepe_dist.predicting.arrow_file import TYPES

    fields = [pa.field(name, TYPES[str(added[name].dtype)]) for name in added]
    arrays = [pa.array(added[field.name], field.type) for field in fields]
    schema = pa.schema([*frame.schema, *fields], frame.schema.metadata)
    return type(frame).from_arrays([*frame.columns, *arrays], schema=schema)


def _load_pyfunc(path: str) -> Any:
    """Open a folder of ``export --format mlflow``. MLflow requires the names ``_load_pyfunc`` and ``predict``."""
    return SimpleNamespace(predict=partial(predict_frame, load(path)))
