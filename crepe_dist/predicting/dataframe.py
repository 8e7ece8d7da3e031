"""Predictions for tables in memory, pandas data frames and Arrow tables, as engines for clusters pass them."""

from __future__ import annotations

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
from crepe_dist.predicting.output_formats import answer_cells, answer_types
from crepe_dist.predicting.predictor import Predictor, load
from crepe_dist.preparing.dataframe_source import extract_table_texts, is_missing
from crepe_dist.preparing.remote import is_url

_turn = threading.Lock()  # one thread opens the model; a worker or MLflow's server may have several


class FramePredictor:
    """Function that classifies the rows of a data frame, for engines that send functions to other processes.

    It is pickled as the name of the model and the options below. Each process opens the model once, in its first call.

    >>> predict_frame = crepe_dist.FramePredictor("runs/reviews")                  # doctest: +SKIP
    >>> predict_frame(pd.DataFrame({"text": ["what a wonderful little film"]}))    # doctest: +SKIP

    Args:
        model: run folder, model folder or checkpoint that every process sees under this name, or the URL of a model
            folder.
        text: column of the text, or several that are joined in this order; ``None``: those that the model was trained
            on, or a column with a usual name.
        top: number of classes in an answer.
        min_probability: as for ``load``.
        device: as for ``load``.
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
        """Return the rows with the columns that ``predict --format csv`` adds: the class, its probability and more.

        A row that cannot be classified has the reason in ``problem``, no class, and NaN for its probability.

        Args:
            frame: pandas' ``DataFrame``, or Arrow's ``Table`` or ``RecordBatch``; the result is of the same kind.

        Raises:
            UserError: there is no model on this host, the columns of the text cannot be chosen, or hold no texts.
        """
        with _turn:
            predictor = _opened(self.model, self.min_probability, self.device)
        return _joined(frame, predict_frame(predictor, frame, self.texts, self.top))


@lru_cache(maxsize=1)
def _opened(model: str, min_probability: float | str, device: str) -> Predictor:
    if not is_url(model) and not os.path.exists(model):
        remedy = "name a folder that all nodes share, or a URL; on Spark, a file of SparkContext.addFile"
        raise UserError(f"{model} does not exist on {socket.gethostname()}", remedy=remedy)
    return load(model, min_probability=min_probability, device=device)


def predict_frame(predictor: Predictor, frame: Any, texts: Sequence[str] = (), top: int = 1) -> pd.DataFrame:
    """Classify the rows of a data frame; return the columns that ``predict --format csv`` adds, and its index.

    Args:
        texts: columns of the text; none: those that the model was trained on, or a column with a usual name.
        top: number of classes in an answer.

    Raises:
        UserError: the columns of the text cannot be chosen, or hold something else than texts.
    """
    wanted = model_columns(predictor.composition, texts=tuple(texts))
    table = frame if isinstance(frame, pd.DataFrame) else _arrow_columns(frame)
    try:
        column = extract_table_texts(table, wanted)
    except UserError as error:
        raise InvalidInput(error.what, error.why, 'name the column, as in text="body"') from None
    several, top = predictor.is_multilabel, min(top, len(predictor.classes))
    predictions = predictor.predict_stream("" if is_missing(text) else text for text in column)
    rows = [
        [*["[]"] * several, *["", math.nan] * top, 0, each.problem] if each.problem else answer_cells(each, top)
        for each in predictions
    ]
    types = answer_types(top, several)
    index = frame.index if isinstance(frame, pd.DataFrame) else None
    return pd.DataFrame(rows, columns=list(types), index=index).astype(types)


def _arrow_columns(frame: Any) -> dict[str, Any]:
    if not hasattr(frame, "schema"):
        remedy = "give a pandas data frame or an Arrow table; on Ray, map_batches(…, batch_format='pyarrow')"
        raise UserError(f"the frame is of type {type(frame).__name__}", remedy=remedy)
    if len(set(frame.schema.names)) < len(frame.schema.names):
        raise UserError("several columns of the frame have the same name", remedy="rename them")
    return dict(zip(frame.schema.names, frame.columns))


def _joined(frame: Any, answers: pd.DataFrame) -> Any:
    """Return a data frame with the columns of the answers after its own."""
    is_pandas = isinstance(frame, pd.DataFrame)
    for name in frame.columns if is_pandas else frame.schema.names:
        if name in answers:
            raise UserError(f"the frame already has a column {name!r}", remedy="rename it, or leave it out")
    if is_pandas:
        return pd.concat([frame, answers], axis=1)
    import pyarrow as pa

    types = {"float64": pa.float64(), "int64": pa.int64(), "object": pa.string()}
    added = [(name, types[str(answers[name].dtype)]) for name in answers]
    arrays = [pa.array(answers[name], kind) for name, kind in added]
    schema = pa.schema([*frame.schema, *(pa.field(*each) for each in added)], frame.schema.metadata)
    return type(frame).from_arrays([*frame.columns, *arrays], schema=schema)


def _load_pyfunc(path: str) -> Any:
    """Open a folder of ``export --format mlflow``; MLflow calls this function, and ``predict``, by their names."""
    return SimpleNamespace(predict=partial(predict_frame, load(path)))
