"""The resolved description of a preparation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.text_preprocessing import FeatureColumn
from crepe_dist.preparing.sources import ReadOptions
from crepe_dist.preparing.splitting import SplitOptions

if TYPE_CHECKING:
    from crepe_dist.preparing.corrections import Corrections

FitAlphabet = Literal["fixed", "if_needed", "always"]
FIXED: FitAlphabet = "fixed"
IF_NEEDED: FitAlphabet = "if_needed"
ALWAYS: FitAlphabet = "always"
MAX_BAD = 0.01  # default of ``PreparationSpec.max_bad``


@dataclass(frozen=True)
class PreparationSpec:
    """The decisions that determine the contents of a data set, given its sources.

    ``PreparationFlags.to_spec`` makes the specification from the flags of the user.

    Args:
        encoding: character encoder before fitting.
        split: selection of rows and their division into splits.
        read_options: format, columns, labels and encoding of the source files.
        fit_length: fit ``encoding.feature_len`` to the training texts: the smallest ``SHORTEST`` + n × ``STEP`` that
            keeps 99 % of the texts whole, at most ``MAX_AUTO_LENGTH``.
        fit_alphabet: ``fixed`` keeps the alphabet of ``encoding``. ``always`` makes a new alphabet of the characters
            of the training texts. ``if_needed`` makes a new alphabet if it covers clearly more of the training texts.
        max_bad: maximum fraction of unusable rows.
        corrections: corrections of labels; ``None`` for none.
        classes: classes of the model that scores the rows, which are all test rows; ``None``: the classes are those
            of the training rows.
        feature_columns: columns beside the text that the same model reads.
        explicit_options: read options that the user gave explicitly. Each of them must have an effect on some source.
            ``None`` skips this check.
    """

    encoder: CharEncoder = field(default_factory=CharEncoder)
    split: SplitOptions = field(default_factory=SplitOptions)
    read_options: ReadOptions = field(default_factory=ReadOptions)
    fit_length: bool = False
    fit_alphabet: FitAlphabet = FIXED
    max_bad: float = MAX_BAD
    corrections: Corrections | None = None
    classes: tuple[str, ...] | None = None
    feature_columns: tuple[FeatureColumn, ...] = ()
    explicit_options: ReadOptions | None = None

    @property
    def label_kind(self) -> str:
        """Kind of the labels of a row, one of ``targets.KINDS``."""
        return self.read_options.labelling.kind
