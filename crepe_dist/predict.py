"""Classifies texts: `echo "what a wonderful little film" | python -m crepe_dist.predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crepe_dist import arguments, command
from crepe_dist.cluster.launch import detect, limit_threads
from crepe_dist.data.dataset import PARTS, open_dataset
from crepe_dist.data.formats.rows import join_title
from crepe_dist.errors import UserError, shown, visible
from crepe_dist.limits import whole

if TYPE_CHECKING:
    from crepe_dist.serving.predictor import Prediction, Predictor

EXAMPLES = """  echo "what a wonderful little film" | python -m crepe_dist.predict
  python -m crepe_dist.predict runs/reviews-1f2e3d4c5b --file new.txt --format jsonl --top 3
  python -m crepe_dist.predict --title "Good stuff" --text "This album is above the previous one"
  python -m crepe_dist.predict --random 5 --data data/sample
"""


def main() -> None:
    flags = arguments.parser(
        "predict",
        "Classify texts: one a line from standard input or --file, or one by --text. One answer a line, in order.",
        EXAMPLES,
    )
    arguments.add_checkpoint(flags)
    flags.add_argument("--text", type=str, help="a text, in place of lines")
    flags.add_argument("--title", type=str, help="its title, joined as in training: title | text")
    flags.add_argument("--file", metavar="FILE", help="texts, one a line (- is standard input)")
    flags.add_argument(
        "--random", type=whole(1, 10**9), metavar="N", help="N random documents of --data, with their true class"
    )
    flags.add_argument("--data", metavar="DIR", default="data/sample", help="prepared folder; default: data/sample")
    flags.add_argument("--part", choices=PARTS, default="test", help="part for --random; default: test")
    flags.add_argument("--seed", type=whole(0, (1 << 63) - 1), metavar="N", help="makes --random repeatable")
    flags.add_argument("--top", type=whole(1, 10**9), default=5, metavar="K", help="classes shown; default: 5")
    flags.add_argument("--format", choices=("text", "jsonl"), default="text", help="default: text")
    arguments.add_foreign(flags)
    given = flags.parse_args()
    _check(given)
    limit_threads(detect())
    from crepe_dist.serving.predictor import load

    predictor = load(
        given.checkpoint,
        mode=given.mode,
        feature_len=given.feature_len,
        fold_accents=given.fold_accents,
        classes=arguments.class_names(given.classes),
        device=given.device,
    )
    if given.random is not None:
        _predict_random(predictor, given)
        return
    texts, batch_size = _texts(given)
    for prediction in predictor.predict_stream(texts, batch_size):
        print(_shown(prediction, given.top, given.format), flush=batch_size == 1)


def _check(given: Any) -> None:
    if given.title is not None and given.text is None:
        raise UserError("--title needs --text", remedy="give both, or neither")
    if sum(value is not None for value in (given.text, given.file, given.random)) > 1:
        raise UserError("--text, --file and --random exclude each other", remedy="give one of them")


def _texts(given: Any) -> tuple[Iterator[str], int]:
    """The texts, and how many may be answered together: a person who types wants each answer at once."""
    from crepe_dist.serving.predictor import BATCH_SIZE

    if given.text is not None:
        return iter([join_title(given.title or "", given.text)]), 1
    if given.file in (None, "-"):
        return _lines(sys.stdin.fileno()), 1 if sys.stdin.isatty() else BATCH_SIZE
    if not Path(given.file).is_file():
        what = "is not a file" if Path(given.file).exists() else "does not exist"
        raise UserError(f"{given.file} {what}", remedy="give a file with one text a line")
    return _lines(given.file), BATCH_SIZE


def _lines(source: str | int) -> Iterator[str]:
    # Bytes that are not UTF-8 are unknown characters, not the end of the stream.
    with open(source, encoding="utf-8", errors="replace", newline="\n") as stream:
        for line in stream:
            yield line.rstrip("\r\n")


def _shown(prediction: Prediction, top: int, style: str) -> str:
    ranking = prediction.ranking[:top]
    if style == "jsonl":
        return _json(
            {
                "class": prediction.label,
                "probability": prediction.probability,
                "top": [{"class": label, "probability": probability} for label, probability in ranking],
            }
        )
    return "   ".join(f"{visible(label)} {probability:.1%}" for label, probability in ranking)


def _json(record: dict[str, Any]) -> str:
    """One line of JSON, in letters where a terminal shows them, escaped where it would act on them."""
    line = json.dumps(record, ensure_ascii=False)
    return "".join(character if shown(character) == character else json.dumps(character)[1:-1] for character in line)


def _predict_random(predictor: Predictor, given: Any) -> None:
    """The notebook's random testing: text, true class, predicted class, right or wrong."""
    dataset = open_dataset(given.data)
    part = dataset.parts.get(given.part)
    if part is None:
        raise UserError(
            f"{given.data} has no {given.part} part", f"it has {', '.join(dataset.parts)}", "choose another --part"
        )
    if dataset.classes != predictor.classes:
        raise UserError(
            f"{given.data} has other classes than the checkpoint",
            f"checkpoint: {', '.join(predictor.classes)}; data: {', '.join(dataset.classes)}",
            "name the data that it was trained for with --data",
        )
    rows = np.random.default_rng(given.seed).choice(len(part), size=min(given.random, len(part)), replace=False)
    codes = part.codes(rows)
    texts = [part.text(row) or dataset.encoding.decode(codes[i]) for i, row in enumerate(rows.tolist())]
    for row, text, prediction in zip(rows.tolist(), texts, predictor.predict(texts)):
        true = dataset.classes[int(part.labels[row])]
        verdict = "right" if prediction.label == true else "wrong"
        if given.format == "jsonl":
            record = {
                "row": row,
                "text": text,
                "true": true,
                "predicted": prediction.label,
                "probability": prediction.probability,
                "right": verdict == "right",
            }
            print(_json(record))
        else:
            answer = f"predicted: {visible(prediction.label)} {prediction.probability:.1%}   {verdict}"
            print(f"{visible(text)}\n  true: {visible(true)}   {answer}\n")


if __name__ == "__main__":
    command.run(main)
