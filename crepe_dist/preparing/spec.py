"""Specification of a preparation, with all defaults resolved."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.preparing.sources import ReadOptions
from crepe_dist.preparing.splitting import SplitOptions

if TYPE_CHECKING:
    from crepe_dist.preparing.corrections import Corrections

FitAlphabet = Literal["fixed", "if_needed", "always"]
FIXED: FitAlphabet = "fixed"
IF_NEEDED: FitAlphabet = "if_needed"
ALWAYS: FitAlphabet = "always"
# Default maximum fraction of invalid rows.
MAX_BAD = 0.01


@dataclass(frozen=True)
class PreparationSpec:
    """The decisions that determine the contents of a data set, given its sources.

    ``PreparationFlags.to_spec`` makes the specification from the flags of the user.

    Args:
        encoder: Character encoder before fitting.
        split: Rules for sampling rows and dividing them into splits.
        read_options: Format, columns, labels and encoding of the source files.
        fit_length: Fit the maximum length of the encoder to the training texts; see ``fit_encoder.fit_length``.
        fit_case: Use the case ``keep`` instead of the case of ``encoder`` if capital letters indicate the class; see
            ``fit_encoder.capital_information``.
        fit_alphabet: Choice of the alphabet. ``fixed`` uses the alphabet of ``encoder``. ``always`` learns an alphabet
            from the training texts. ``if_needed`` learns an alphabet if it covers clearly more of the training texts.
        max_bad: Maximum fraction of invalid rows, from 0 to 1.
        corrections: Corrections of labels. If it is ``None``, no labels are corrected.
        classes: Classes of the model that will score the rows; all rows are then test rows. If it is ``None``, the rows
            are for training, and the classes are taken from the training rows.
    """

    encoder: CharEncoder = field(default_factory=CharEncoder)
    split: SplitOptions = field(default_factory=SplitOptions)
    read_options: ReadOptions = field(default_factory=ReadOptions)
    fit_length: bool = False
    fit_case: bool = False
    fit_alphabet: FitAlphabet = FIXED
    max_bad: float = MAX_BAD
    corrections: "Corrections | None" = None
    classes: tuple[str, ...] | None = None

    @property
    def label_kind(self) -> str:
        """Kind of the labels of a row, one of ``targets.LABEL_KINDS``."""
        return self.read_options.labelling.kind
