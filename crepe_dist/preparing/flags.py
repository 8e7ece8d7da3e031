"""Flags of `prepare`, which are the arguments of `crepe_dist.prepare`, and the preparation that they describe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Optional, Union

from crepe_dist import invocation
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.characters import sort_alphabet
from crepe_dist.data.dataset import MANIFEST, SAMPLE
from crepe_dist.data.targets import ONE, SEVERAL, SOFT
from crepe_dist.data.text_preprocessing import PRIVATE
from crepe_dist.errors import UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.files.json_file import read_json
from crepe_dist.preparing import remote
from crepe_dist.preparing.corrections import read_corrections
from crepe_dist.preparing.fit_encoder import MIN_COVERAGE_GAIN
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.label_parsing import LabelFormat
from crepe_dist.preparing.preparation import check_out, prepare
from crepe_dist.preparing.renaming import read_renames
from crepe_dist.preparing.sources import SAMPLE_DEDUPE, SAMPLE_FEATURE_LEN, ReadOptions, Source, find_sources
from crepe_dist.preparing.spec import ALWAYS, FIXED, IF_NEEDED, MAX_BAD, PreparationSpec
from crepe_dist.preparing.splitting import DEDUPE, MIN_ROWS_FOR_VALIDATION, SplitOptions
from crepe_dist.preparing.worker_pool import PrintLine, ProgressCallback, no_progress, print_nothing
from crepe_dist.settings.fields import (
    ANY_TEXT,
    COLUMN,
    MAX_DOCUMENT_LENGTH,
    MODES,
    NON_EMPTY,
    PATH_ARGUMENT,
    Choice,
    Repeated,
    String,
    ValueType,
    float_range,
    int_range,
    refuse,
    setting,
)
from crepe_dist.settings.flags import ColumnFlags, Command
from crepe_dist.settings.options import MAX_AUTO_LENGTH

AUTO = "auto"  # fitted to the training texts
STANDARD = "standard"  # the standard alphabet of the mode
LABELS_CHOICES = {"single": ONE, "multilabel": SEVERAL, "soft": SOFT}  # values of --labels, and the values in files
CORRECT_CHOICES = TRAINING, ALL = "train", "all"  # values of --correct


class FileOrFraction(ValueType):
    """File of a split, or its share of the rows."""

    metavar = "FILE|SHARE"

    def read(self, text: str) -> Union[str, float]:
        try:
            return float(text)
        except ValueError:
            return text

    def check(self, value: Any) -> Union[str, float]:
        return float(value) if isinstance(value, (int, float)) else NON_EMPTY.check(str(value))

    def __str__(self) -> str:
        return "a file, or a share of the rows such as 0.2"


class Renames(Repeated):
    """Old and new names of classes: pairs, names of files, or in Python a mapping."""

    def check(self, value: Any) -> tuple[Any, ...]:
        given = value.items() if isinstance(value, Mapping) else (value,) if isinstance(value, (str, Path)) else value
        return tuple(map(self._pair, given))

    def _pair(self, each: Any) -> Any:
        if isinstance(each, (str, Path)):
            old, is_pair, new = str(each).partition("=")
            return (old, new) if is_pair else NON_EMPTY.check(str(each))
        old, new = each
        return ANY_TEXT.check(str(old)), ANY_TEXT.check(str(new))

    def __str__(self) -> str:
        return "old=new, or a CSV file with the columns old and new"


@dataclass
class PreparationFlags(ColumnFlags, Command):
    """Flags of a preparation."""

    source: tuple[str, ...] = setting((), "files, folders, URLs, - or sample", Repeated(NON_EMPTY), positional="*")
    out: Optional[Path] = setting(None, "folder to create", PATH_ARGUMENT)
    overwrite: bool = setting(False, "replace --out if it is a prepared folder")
    weight: Optional[str] = setting(
        None,
        "column of the weights of training rows in the loss, numbers from 0; they are divided by their mean; scores do "
        "not use them; default: all rows count alike",
        COLUMN,
    )
    id: Optional[str] = setting(
        None,
        "column that names a row, such as a ticket number: mistakes and answers show it",
        COLUMN,
    )
    category: tuple[str, ...] = setting(
        (), "column beside the text whose values are read as a whole, such as a sector; repeatable", Repeated(COLUMN)
    )
    number: tuple[str, ...] = setting(
        (), "column of numbers beside the text, such as a turnover; repeatable", Repeated(COLUMN)
    )
    labels: Optional[str] = setting(
        None,
        "labels of a row. single: one label. multilabel: any number of labels, in a JSON list or separated. soft: a "
        "proportion for each class, in a JSON object or in columns. Default: single; with --label-separator, or with "
        "--label-columns without --levels: multilabel",
        Choice(tuple(LABELS_CHOICES)),
    )
    label_separator: Optional[str] = setting(
        None, "separator of several labels in a cell, such as ';', or space for white space", ANY_TEXT
    )
    levels: Optional[str] = setting(
        None,
        "separator of the levels of a label, such as '.' in 47.11.2, if the classes form a tree; with --label-columns, "
        "each column has the part of a level",
        ANY_TEXT,
    )
    rename: tuple[Any, ...] = setting(
        (),
        "class to rename, such as Billling=Billing, which merges two spellings of one; with --levels also a node; or a "
        "CSV file with the columns old and new; repeatable; applies to all splits, and to files that evaluate scores",
        Renames(String("", str.strip, "OLD=NEW|FILE")),
    )
    max_bad: float = setting(MAX_BAD, "largest share of unusable rows", float_range(0, 1))
    corrections: Optional[Path] = setting(
        None,
        "labels to give in place of those in the source: a label_errors.csv of inspect, edited as you like",
        PATH_ARGUMENT,
    )
    correct: Optional[str] = setting(
        None,
        "splits in which --corrections may change labels. train: the training split only, because a model that "
        "suggested the labels of the test split would score too well on it. all: also the validation and the test "
        "split, once a person has read every row of the list. Default: train",
        Choice(CORRECT_CHOICES),
    )
    test: Any = setting(None, "test split; default: the sources' own test files, else 0.2", FileOrFraction())
    validation: Any = setting(
        None,
        "split for choosing the best epoch and stopping early; default: the sources' own validation files, else 0.1 of "
        f"at least {MIN_ROWS_FOR_VALIDATION:,} rows",
        FileOrFraction(),
    )
    unlabelled: tuple[str, ...] = setting(
        (),
        "texts without labels for training: a file of any format, plain lines too, a folder or a URL; repeatable; "
        "labels in it are ignored; default: files and folders named unlabelled* in the sources",
        Repeated(NON_EMPTY),
    )
    keep_unlabelled: bool = setting(
        False, "keep the rows of SOURCE that have no label as unlabelled texts, instead of leaving them out"
    )
    stratified: bool = setting(False, "split every class in the same proportions")
    max_per_class: Optional[int] = setting(
        None, "sample at most so many rows per class, uniformly", int_range(1, 10**12)
    )
    dedupe: Optional[str] = setting(
        None,
        "drop repeated texts; near ignores case, spaces and punctuation; default: no, sample " + SAMPLE_DEDUPE,
        Choice(DEDUPE),
    )
    seed: int = setting(0, "random seed of the selection", int_range(0, (1 << 32) - 1))
    mode: str = setting(
        "paper",
        "paper: lower case, read in reverse; full: upper and lower case, read in reverse; notebook: read in order, "
        "upper case and line breaks unknown",
        Choice(MODES),
    )
    feature_len: Any = setting(
        None,
        f"characters per document; auto keeps 99 % of the training texts whole, at most {MAX_AUTO_LENGTH}; default: "
        f"auto, sample {SAMPLE_FEATURE_LEN}",
        int_range(1, MAX_DOCUMENT_LENGTH, AUTO),
    )
    strip_html: bool = setting(
        False, "remove HTML tags from the texts, and read &amp; as &; models of these data do the same"
    )
    alphabet: Optional[str] = setting(
        None,
        "known characters. standard: the standard alphabet of the mode. auto: the characters of the training texts. A "
        "prepared folder, a run, or a checkpoint's .json: the alphabet of that model. Default: auto if it covers more "
        f"in {100 * MIN_COVERAGE_GAIN:g} % of the texts or characters, else standard. A character that loses its "
        "accent is not covered",
        NON_EMPTY,
    )
    processes: Optional[int] = setting(None, "number of worker processes; default: one per core", int_range(1, 4096))
    label_type: str = ""  # no flag: type of the labels of a table in memory

    def prepare(
        self,
        render_page: Optional[Callable[[dict[str, Any]], str]],
        command: str,
        show_progress: ProgressCallback = no_progress,
        copies: Optional[Path] = None,
        print_line: PrintLine = print_nothing,
    ) -> dict[str, Any]:
        """Run the preparation, and return the numbers of the report.

        Args:
            page: function that renders the report's numbers as HTML; ``None`` for no page.
            command: command line, for the report.
            show: function that is called with the progress.
            copies: folder with the copies of URLs among the sources.
            say: function that prints how the sources are read.

        Raises:
            UserError: a source does not exist, or flags contradict each other.
        """
        assert self.out is not None
        named = (*self.source, self.test, self.validation, *self.unlabelled)
        if urls := [name for name in named if isinstance(name, str) and remote.is_url(name)]:
            check_out(self.out, self.overwrite)  # before a long download
            self.out.absolute().parent.mkdir(parents=True, exist_ok=True)
            with temporary_folder(self.out.absolute().parent) as folder:  # on the disk of the data set
                paths = {
                    url: str(remote.download(url, folder, show_progress=show_progress)) for url in dict.fromkeys(urls)
                }
                local = replace(
                    self,
                    source=tuple(paths.get(name, name) for name in self.source),
                    test=paths.get(self.test, self.test),
                    validation=paths.get(self.validation, self.validation),
                    unlabelled=tuple(paths.get(name, name) for name in self.unlabelled),
                )
                return local.as_given(self.given).prepare(
                    render_page, remote.redact_url(command), show_progress, folder, print_line
                )
        spec = self.to_spec()
        sources = self._find_sources(spec.read_options)
        if copies:  # a name that had to be a path does not say where the copy was
            sources = [replace(source, name=source.name.replace(f"{copies}/", "")) for source in sources]
        return prepare(
            sources,
            self.out,
            spec,
            processes=self.processes,
            overwrite=self.overwrite,
            command=command,
            render_page=render_page,
            show_progress=show_progress,
            print_line=print_line,
        )

    def to_spec(self) -> PreparationSpec:
        """Resolve the flags, whose defaults depend on one another.

        Raises:
            UserError: flags contradict each other, or a file that a flag names cannot be read.
        """
        options = self._read_options()
        corrections = None
        if self.corrections is not None:
            corrections = read_corrections(self.corrections, held_out=self.correct == ALL)
        elif self.correct is not None:
            remedy = "leave it out, or name a list with --corrections"
            refuse(["--correct"], "", remedy, on=" without --corrections")
        is_sample = self.source == (SAMPLE,)
        length: Any = self.feature_len or (SAMPLE_FEATURE_LEN if is_sample else AUTO)
        encoding = CharEncoder(
            self.mode,  # type: ignore[arg-type]
            MAX_AUTO_LENGTH if length == AUTO else length,
            None,
            *(("", "") if self.alphabet in (None, AUTO, STANDARD) else _read_alphabet(Path(self.alphabet or ""))),
        )
        split = SplitOptions(
            test=self.test if isinstance(self.test, float) else 0.2,
            validation=self.validation if isinstance(self.validation, float) else None,
            seed=self.seed,
            stratified=self.stratified,
            max_per_class=self.max_per_class,
            dedupe=self.dedupe or (SAMPLE_DEDUPE if is_sample else "no"),  # type: ignore[arg-type]
            keep_unlabelled=self.keep_unlabelled,
        )
        # Mode notebook exists for the published parameters, which need its standard alphabet.
        is_fitted = self.alphabet is None and self.mode != "notebook"
        return PreparationSpec(
            encoding,
            split,
            options,
            fit_length=length == AUTO,
            fit_alphabet=ALWAYS if self.alphabet == AUTO else IF_NEEDED if is_fitted else FIXED,
            max_bad=self.max_bad,
            corrections=corrections,
            explicit_options=options,
        )

    def _read_options(self) -> ReadOptions:
        """Return the options of reading the source files."""
        labelling, columns = self._parse_label_flags()
        wanted = ColumnSpec(
            self.label, self.text, self.weight, columns, self.id, categories=self.category, numbers=self.number
        )
        if wanted.feature_columns and self.mode == "notebook":
            why = "it reads the beginning of a text, and values follow it"
            raise UserError("--mode notebook does not read --category and --number", why, "leave --mode out")
        renames = read_renames(self.rename)
        return ReadOptions(
            self.input_format, self.header, wanted, labelling, self.strip_html, self.encoding, renames=renames
        )

    def _find_sources(self, options: ReadOptions) -> list[Source]:
        """Find the source files, and refuse flags of splits that these files contradict."""
        shares = {"test": self.test, "validation": self.validation}
        files = {name: part for name, part in shares.items() if isinstance(part, str)}
        sources = find_sources(self.source, options=options, unlabelled=self.unlabelled, **files)
        _check_fractions(sources, shares)
        if shares.keys() <= {source.split for source in sources}:
            self.refuse(["stratified"], "no split is drawn: all are files")
        return sources

    def _parse_label_flags(self) -> tuple[LabelFormat, tuple[str, ...]]:
        """Return the labels of rows, and the columns of the classes."""
        columns = split_names(self.label_columns)
        separator = self.label_separator or ""
        spelling = self.labels or ("multilabel" if separator or (columns and not self.levels) else "single")
        kind = LABELS_CHOICES[spelling]
        problem = ""
        if kind == ONE and (separator or (columns and not self.levels)):
            problem = (
                "--labels single cannot be combined with --label-separator, or with --label-columns without --levels"
            )
        elif kind == SOFT and separator:
            problem = "--labels soft cannot be combined with --label-separator"
        elif self.levels and kind != ONE:
            problem = f"--levels cannot be combined with --labels {spelling}"
        elif columns and (separator or self.label):
            problem = "--label-columns cannot be combined with --label or --label-separator"
        elif len(columns) == 1 or len(set(columns)) < len(columns):
            problem = "--label-columns needs at least two different columns"
        elif kind != ONE and (self.stratified or self.max_per_class is not None):
            problem = f"--labels {spelling} cannot be combined with --stratified or --max-per-class: "
            problem += "they need one class per row"
        if problem:
            raise UserError(
                problem, remedy=f"leave one out; {invocation.command_line('prepare')} --help describes them"
            )
        return LabelFormat(kind, separator, self.levels or "", self.label_type), columns


def split_names(flag: Optional[str]) -> tuple[str, ...]:
    """Return the names that a flag gives, separated by commas."""
    return tuple(name.strip() for name in (flag or "").split(",") if name.strip())


def _read_alphabet(path: Path) -> tuple[str, str]:
    """Read the custom alphabet of a prepared folder, a run or a checkpoint's description, and its rare characters."""
    if path.is_dir():  # all checkpoints of a run have the same
        path = next(path.glob("checkpoints/*[0-9t].json"), path / MANIFEST)  # not the scores beside them
    try:
        encoding = CharEncoder.from_dict(read_json(path)["encoding"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "give auto, a prepared folder, a run, or the .json beside a checkpoint"
        raise UserError(f"--alphabet: {path} has no alphabet: {type(error).__name__}", remedy=remedy) from error
    if not encoding.is_custom:
        remedy = f"use --mode {encoding.mode}, whose alphabet it has"
        raise UserError(f"--alphabet: {path} has no custom alphabet", remedy=remedy)
    own, rare = (sort_alphabet(set(PRIVATE.sub("", each))) for each in (encoding.alphabet, encoding.paired))
    return own, rare  # without the values of columns


def _check_fractions(sources: Sequence[Source], shares: dict[str, Any]) -> None:
    for part, value in shares.items():
        names = [source.name for source in sources if source.split == part]
        if isinstance(value, float) and value > 0 and names:
            raise UserError(
                f"--{part} {value:g} cannot be used: the sources have their own {part} split, {', '.join(names)[:200]}",
                remedy=f"leave --{part} out, or name the training files alone",
            )
