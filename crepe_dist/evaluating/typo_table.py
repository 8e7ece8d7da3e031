"""Scores of a split by the share of characters with a typing error, as text."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from crepe_dist.runs.checkpoint import AnyScores
from crepe_dist.wording import measure, percent


def typo_table(noisy: Mapping[float, AnyScores], *, several: bool = False) -> str:
    """Format the scores by rate.

    Args:
        several: documents have several labels.
    """
    rows = [
        (f"{rate:g}", percent(scores.accuracy), f"{scores.macro_f1:.3f}", f"{scores.loss:.4f}")
        for rate, scores in noisy.items()
    ]
    table = pd.DataFrame(rows, columns=["characters hit", measure(several), "macro F1", "loss"])
    return f"with typing errors\n{table.to_string(index=False)}"
