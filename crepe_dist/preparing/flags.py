"""Flags of the command ``prepare``, which are also the keyword arguments of ``crepe_dist.prepare``."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crepe_dist import invocation
from crepe_dist.data.char_encoder import MARKS, CharEncoder
from crepe_dist.data.dataset import MANIFEST, SAMPLE
from crepe_dist.data.targets import MULTILABEL, SINGLE_LABEL, SOFT
from crepe_dist.errors import UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.json_file import read_json
from crepe_dist.preparing import remote
from crepe_dist.preparing.corrections import read_corrections
from crepe_dist.preparing.fit_encoder import MIN_COVERAGE_GAIN
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.label_parsing import LabelFormat
from crepe_dist.preparing.preparation import check_out, prepare
from crepe_dist.preparing.sources import SAMPLE_DEDUPE, SAMPLE_FEATURE_LEN, ReadOptions, Source, find_sources
from crepe_dist.preparing.spec import ALWAYS, FIXED, IF_NEEDED, MAX_BAD, PreparationSpec
from crepe_dist.preparing.splitting import DEDUPE, MIN_ROWS_FOR_VALIDATION, SplitOptions
from crepe_dist.preparing.worker_pool import PrintLine, ProgressCallback, no_progress, print_nothing
from crepe_dist.settings.fields import (
    COLUMN,
    MAX_DOCUMENT_LENGTH,
    NON_EMPTY,
    PATH_ARGUMENT,
    Choice,
    Repeated,
    ValueType,
    float_range,
    int_range,
    setting,
)
from crepe_dist.settings.flags import ColumnFlags, Command
from crepe_dist.settings.options import MAX_AUTO_LENGTH

# Value of --feature-len and --alphabet that requests fitting to the training texts.
AUTO = "auto"
# Value of --alphabet that selects the standard alphabet of the case.
STANDARD = "standard"
# Values of --labels, mapped to the kind of labels that manifests store.
LABELS_CHOICES = {"single": SINGLE_LABEL, "multilabel": MULTILABEL, "soft": SOFT}


class FileOrFraction(ValueType):
    """Type of a flag whose value is the file of a split, or the fraction of the rows that is drawn for the split."""

    metavar = "FILE|FRACTION"

    def read(self, text: str) -> str | float:
        try:
            return float(text)
        except ValueError:
            return text

    def check(self, value: Any) -> str | float:
        return float(value) if isinstance(value, (int, float)) else NON_EMPTY.check(str(value))

    def __str__(self) -> str:
        return "a file, or a fraction of the rows such as 0.2"


@dataclass
class PreparationFlags(ColumnFlags, Command):
    """Flags that specify the sources, the splits, the labels and the encoding of a data set."""

    source: tuple[str, ...] = setting(
        (), "Files, folders, URLs, `-` for a pipe, or `sample`.", Repeated(NON_EMPTY), positional="*"
    )
    out: Path | None = setting(None, "Folder to create.", PATH_ARGUMENT)
    overwrite: bool = setting(False, "Replace --out if it is a prepared folder.")
    weight: str | None = setting(
        None,
        "Column with the loss weight of each training row (a number of at least 0). Weights are normalized to a mean "
        "of 1. Scores ignore the weights. Default: all rows have the same weight.",
        COLUMN,
    )
    id: str | None = setting(
        None,
        "Column that identifies a row, such as a ticket number. Lists of mistakes and predictions show the "
        "value of this column. Default: rows have no id.",
        COLUMN,
    )
    group: tuple[str, ...] = setting(
        (),
        "Column whose values group the rows, such as a host, an author, a customer or a product. All rows of a group "
        "are in one split, so the scores are those of unknown groups. A row without a value is a group by itself. "
        "Repeat the flag for more columns: rows that share a value in any of them stay together. Default: no groups.",
        Repeated(COLUMN),
    )
    labels: str | None = setting(
        None,
        "Labels of a row. single: one label. multilabel: any number of labels, in a JSON list or in columns. "
        "soft: a probability for each class, in a JSON object or in columns. Default: multilabel if --label-columns is "
        "given, otherwise single.",
        Choice(tuple(LABELS_CHOICES)),
    )
    max_bad: float = setting(MAX_BAD, "Maximum fraction of invalid rows.", float_range(0, 1))
    corrections: Path | None = setting(
        None,
        "CSV file of corrected labels: the label_errors.csv of `inspect`, which you may edit. Its labels replace the "
        "labels of training rows.",
        PATH_ARGUMENT,
    )
    test: Any = setting(
        None,
        "Test split: a file, or a fraction of the rows. Default: the test files of the sources, otherwise 0.2.",
        FileOrFraction(),
    )
    validation: Any = setting(
        None,
        "Validation split, which selects the best epoch and stops training early: a file, or a fraction of the rows. "
        f"Default: the validation files of the sources, otherwise 0.1 if there are at least "
        f"{MIN_ROWS_FOR_VALIDATION:,} rows, otherwise 0.",
        FileOrFraction(),
    )
    unlabelled: tuple[str, ...] = setting(
        (),
        "Unlabelled texts for training: a file in any supported format (including plain text, one text per line), a "
        "folder or a URL. Labels in these sources are ignored. Repeat the flag for more sources. Default: files "
        "and folders named unlabelled* in the sources.",
        Repeated(NON_EMPTY),
    )
    dedupe: str | None = setting(
        None,
        "Leave out repeated texts. no: keep all texts. exact: compare the texts as they are. near: ignore case, "
        f"spaces and punctuation. Default: {SAMPLE_DEDUPE} for `sample`, otherwise no.",
        Choice(DEDUPE),
    )
    seed: int = setting(0, "Random seed of the splits.", int_range(0, (1 << 32) - 1))
    case: str = setting(
        AUTO,
        "Case of the texts. auto: keep if the use of capital letters indicates the class, otherwise fold. keep: marks "
        "indicate capital letters, so that a word keeps its characters in any case. fold: upper case is read as lower "
        "case.",
        Choice((AUTO, "keep", "fold")),
    )
    feature_len: Any = setting(
        None,
        "Maximum length of a text in characters; longer texts are cut. auto: the length that keeps 99 % of the "
        f"training texts whole, at most {MAX_AUTO_LENGTH}. Default: {SAMPLE_FEATURE_LEN} for `sample`, otherwise auto.",
        int_range(1, MAX_DOCUMENT_LENGTH, AUTO),
    )
    strip_html: bool = setting(
        False,
        "Remove HTML tags from the texts, and read &amp; as &. Models that are trained on this data do the same.",
    )
    alphabet: str | None = setting(
        None,
        "Known characters. standard: the standard alphabet. auto: an alphabet learned from the training texts. "
        "A path: the alphabet of a prepared folder, a run or the .json file of a checkpoint. Default: auto if a "
        f"learned alphabet raises the coverage of the characters or texts by at least {100 * MIN_COVERAGE_GAIN:g} "
        "percentage point, otherwise standard. A letter that is read only by dropping its accent does not count as "
        "covered.",
        NON_EMPTY,
    )
    # Type of the labels of a table in memory. This field is not a flag: only ``crepe_dist.prepare`` sets it.
    label_type: str = ""

    def prepare(
        self,
        render_page: Callable[[dict[str, Any]], str] | None,
        command: str,
        show_progress: ProgressCallback = no_progress,
        print_line: PrintLine = print_nothing,
        processes: int | None = None,
    ) -> dict[str, Any]:
        """Run the preparation, and return the numbers of the report. Sources that are URLs are downloaded first.

        Args:
            render_page: Function that renders the numbers of the report as HTML. If it is ``None``, no HTML page is
                written.
            command: Command line to show in the report.
            show_progress: Function to call with the progress.
            print_line: Function that prints how the sources are read.
            processes: Number of processes; see ``preparation.prepare``.

        Raises:
            UserError: A source does not exist, or flags contradict each other.
        """
        assert self.out is not None
        named = (*self.source, self.test, self.validation, *self.unlabelled)
        urls = dict.fromkeys(name for name in named if isinstance(name, str) and remote.is_url(name))
        paths: dict[Any, str] = {}
        with ExitStack() as stack:
            if urls:
                check_out(self.out, self.overwrite)  # Report a problem before a long download, not after it.
                parent = self.out.absolute().parent
                parent.mkdir(parents=True, exist_ok=True)
                # The copies are stored on the same disk as the data set, because /tmp may be small.
                folder = stack.enter_context(temporary_folder(parent))
                paths = {url: str(remote.download(url, folder, show_progress=show_progress)) for url in urls}
            spec = self.to_spec()
            sources = self._find_sources(spec.read_options, paths)
            if urls:  # Reports must not show the path of the temporary folder.
                sources = [replace(source, name=source.name.replace(f"{folder}/", "")) for source in sources]
            return prepare(
                sources,
                self.out,
                spec,
                processes=processes,
                overwrite=self.overwrite,
                command=remote.redact_url(command),
                render_page=render_page,
                show_progress=show_progress,
                print_line=print_line,
            )

    def to_spec(self) -> PreparationSpec:
        """Build the specification of the preparation. The defaults of some flags depend on other flags.

        Raises:
            UserError: Flags contradict each other, or the file of a flag cannot be read.
        """
        options = self._read_options()
        is_sample = self.source == (SAMPLE,)
        length: Any = self.feature_len or (SAMPLE_FEATURE_LEN if is_sample else AUTO)
        is_fixed = self.alphabet not in (None, AUTO, STANDARD)
        characters = _read_alphabet(Path(self.alphabet or "")) if is_fixed else ("", "")
        case: Any = self.case
        if case == AUTO:  # A given alphabet with marks is the alphabet of a model that reads capital letters.
            case = "keep" if set(MARKS) <= set(characters[0]) else "fold"
        encoding = CharEncoder(case, MAX_AUTO_LENGTH if length == AUTO else length, None, *characters)
        split = SplitOptions(
            test=self.test if isinstance(self.test, float) else 0.2,
            validation=self.validation if isinstance(self.validation, float) else None,
            seed=self.seed,
            dedupe=self.dedupe or (SAMPLE_DEDUPE if is_sample else "no"),  # type: ignore[arg-type]
        )
        return PreparationSpec(
            encoding,
            split,
            options,
            fit_length=length == AUTO,
            fit_case=self.case == AUTO and not is_fixed,
            fit_alphabet=ALWAYS if self.alphabet == AUTO else IF_NEEDED if self.alphabet is None else FIXED,
            max_bad=self.max_bad,
            corrections=None if self.corrections is None else read_corrections(self.corrections),
        )

    def _read_options(self) -> ReadOptions:
        """Return the options for reading the source files."""
        label_format, label_columns = self._parse_label_flags()
        columns = ColumnSpec(
            self.label, self.text, self.weight, label_columns, self.id, groups=tuple(dict.fromkeys(self.group))
        )
        return ReadOptions(self.input_format, columns, label_format, self.strip_html, self.encoding)

    def _find_sources(self, options: ReadOptions, paths: Mapping[Any, str]) -> list[Source]:
        """Find the source files, and refuse --test and --validation if they contradict these files.

        Args:
            paths: Paths of the downloaded copies, keyed by URL.
        """
        splits = {"test": self.test, "validation": self.validation}
        files = {split: paths.get(value, value) for split, value in splits.items() if isinstance(value, str)}
        names, unlabelled = ([paths.get(name, name) for name in group] for group in (self.source, self.unlabelled))
        sources = find_sources(names, options=options, unlabelled=unlabelled, **files)
        for split, value in splits.items():
            split_names = [source.name for source in sources if source.split == split]
            if isinstance(value, float) and value > 0 and split_names:
                raise UserError(
                    f"--{split} {value:g} cannot be used",
                    f"the sources already have files of the {split} split: {', '.join(split_names)[:200]}",
                    f"leave out --{split}, or name only the training files as sources",
                )
        return sources

    def _parse_label_flags(self) -> tuple[LabelFormat, tuple[str, ...]]:
        """Return the format of the labels, and the column names of --label-columns."""
        columns = split_names(self.label_columns)
        kind = LABELS_CHOICES[self.labels or ("multilabel" if columns else "single")]
        problem = ""
        if kind == SINGLE_LABEL and columns:
            problem = "--labels single cannot be combined with --label-columns"
        elif columns and self.label:
            problem = "--label-columns cannot be combined with --label"
        elif len(columns) == 1 or len(set(columns)) < len(columns):
            problem = "--label-columns needs at least two different columns"
        if problem:
            raise UserError(
                problem,
                remedy=f"leave out one of them; {invocation.command_line('prepare')} --help describes the flags",
            )
        return LabelFormat(kind, self.label_type), columns


def split_names(flag: str | None) -> tuple[str, ...]:
    """Split the value of a flag at its commas."""
    return tuple(name.strip() for name in (flag or "").split(",") if name.strip())


def _read_alphabet(path: Path) -> tuple[str, str]:
    """Read the alphabet and the rare characters from a prepared folder, a run or the .json file of a checkpoint."""
    if path.is_dir():
        # All checkpoints of a run have the same alphabet. The pattern excludes the files that contain their scores.
        path = next(path.glob("checkpoints/*[0-9t].json"), path / MANIFEST)
    try:
        encoding = CharEncoder.from_dict(read_json(path)["encoding"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--alphabet: {path} has no alphabet",
            "there is no such file"
            if isinstance(error, FileNotFoundError)
            else f"reading it failed with {type(error).__name__}",
            "give auto, standard, a prepared folder, a run, or the .json file of a checkpoint",
        ) from error
    if not encoding.is_custom:
        raise UserError(
            f"--alphabet: {path} has no custom alphabet",
            "it uses the standard alphabet",
            f"leave out --alphabet and pass --case {encoding.case}",
        )
    return encoding.alphabet, encoding.two_id_characters
