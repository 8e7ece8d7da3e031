"""Preparation for callers in Python: sources may be tables in memory, and keyword arguments replace flags.

``crepe_dist.prepare``, ``crepe_dist.fit`` and ``CrepeClassifier`` all prepare their rows with ``prepare_from_python``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crepe_dist.data.dataset import UNLABELLED
from crepe_dist.errors import UserError
from crepe_dist.files.folders import temporary_folder
from crepe_dist.preparing.dataframe_source import find_label_type, is_table, write_table
from crepe_dist.preparing.flags import AUTO, PreparationFlags
from crepe_dist.preparing.formats.columns import ColumnSpec
from crepe_dist.preparing.worker_pool import PrintLine, print_nothing
from crepe_dist.settings.config import argument_name, flag, settings
from crepe_dist.settings.fields import Boolean, Choice, Nullable, Range, did_you_mean, kind_of, settings_of
from crepe_dist.settings.flags import TextEncoding

if TYPE_CHECKING:
    import pandas as pd

    Table = pd.DataFrame | Mapping[str, Any]

# Any flag in a message, with the word after it. The pattern omits the space before a number, a placeholder or a quoted
# value, because each of them is the value of the flag. Any other word is a value only if the setting accepts it.
FLAG = re.compile(r"(--[a-z]+(?:-[a-z]+)*)(?:=| (?=[\dA-Z'\"])| ([a-z][\w-]*))?")
# Names and types of the arguments of ``crepe_dist.fit`` and ``crepe_dist.prepare``, by their flags.
ARGUMENTS = {
    **{flag(name): (argument_name(name), kind_of(item)) for name, item in settings().items()},
    **{
        spelling: (item.name, kind_of(item))
        for item in settings_of(PreparationFlags)
        for spelling in (PreparationFlags.flag(item.name), *item.metadata["also"])
    },
}


def prepare_from_python(
    source: Any,
    out: Path,
    options: Mapping[str, Any],
    *,
    command: str = "",
    render_page: Callable[[dict[str, Any]], str] | None = None,
    print_line: PrintLine = print_nothing,
    processes: int | None = None,
) -> dict[str, Any]:
    """Prepare tables in memory, or files, as a data set folder.

    Args:
        source: Table, or names of files and folders.
        out: Folder to create.
        options: Arguments of ``crepe_dist.prepare`` by their names. ``test``, ``validation`` and ``unlabelled`` may be
            tables.
        command, render_page, print_line, processes: See ``PreparationFlags.prepare``.

    Returns:
        The numbers of the report.

    Raises:
        UserError: An option does not exist, or the data cannot be used. The message names options, not flags.
    """
    options = dict(options)
    tables = {"table": source}
    tables |= {name: options[name] for name in ("test", "validation", UNLABELLED) if options.get(name) is not None}
    label, weight, id_ = (name if name is None else str(name) for name in map(options.get, ("label", "weight", "id")))
    texts, labels, groups = (_to_names(options.get(name)) for name in ("text", "label_columns", "group"))
    columns = ColumnSpec(label, texts, weight, labels, id_, groups=groups)
    with python_names_in_errors(), temporary_folder() as folder:
        for name, table in tables.items():
            if not is_table(table):
                _check_type(name, table)
                continue
            # The other tables must have the columns of the first one, except its weights and groups.
            spec = columns if name == "table" else replace(columns, weight=None, groups_required=False)
            if name == UNLABELLED:
                spec = replace(spec, label=None, texts=(), labels=(), id_required=False, preferred_texts=columns.texts)
                spec = replace(spec, groups=())
            written = write_table(table, folder / name, spec, labelled=name != UNLABELLED)
            columns = written if name == "table" else columns
            tables[name] = folder / name
        options |= {"label": columns.label, "weight": columns.weight, "id": columns.id, "text": columns.texts}
        options |= {"label_columns": ",".join(columns.labels) or None}
        options |= {"group": columns.groups}
        options |= {"test": tables.get("test"), "validation": tables.get("validation")}
        options |= {UNLABELLED: _to_names(tables.get(UNLABELLED))}
        known = [field.name for field in settings_of(PreparationFlags)]
        if unknown := options.keys() - set(known):
            name = unknown.pop()
            remedy = did_you_mean(name, known) or "docs/reference/commands.md lists them"
            raise UserError(f"prepare has no argument {name}", remedy=remedy)
        label_type = find_label_type(source, columns.label) if is_table(source) else ""
        sources = _to_names(tables["table"])
        flags = PreparationFlags(source=sources, out=out, label_type=label_type, **options)
        return flags.prepare(render_page, command, print_line=print_line, processes=processes)


def _check_type(name: str, sources: Any) -> None:
    """Raise ``UserError`` unless the sources are names of files, or a fraction of the rows."""
    for item in sources if isinstance(sources, (list, tuple)) else (sources,):
        if not isinstance(item, (str, Path, float, int)):
            raise UserError(
                f"the {name} cannot be of type {type(item).__name__}",
                "a table has a column of texts and a column of labels",
                'give a data frame, {"text": texts, "label": labels}, or the name of a file',
            )


def _to_names(names: Any) -> tuple[str, ...]:
    """Convert a single name, a sequence of names or ``None`` to a tuple of names."""
    is_single = isinstance(names, str) or not hasattr(names, "__iter__")
    return () if names is None else tuple(map(str, [names] if is_single else names))


@contextmanager
def python_names_in_errors() -> Iterator[None]:
    """Replace the flags in the message of a ``UserError`` by keyword arguments; see ``translate_for_python``."""
    try:
        yield
    except UserError as error:
        raise translate_for_python(error) from error.__cause__


def translate_for_python(error: UserError) -> UserError:
    """Replace the flags in a message by keyword arguments of ``prepare`` and ``fit``.

    The functions and the commands share their checks. The messages contain flags, which Python callers cannot use.
    """
    for name in ("what", "why", "remedy"):
        setattr(error, name, FLAG.sub(_to_argument, getattr(error, name)))
    return error


def _to_argument(match: re.Match[str]) -> str:
    """Return the keyword argument for a match of ``FLAG``, such as ``dedupe="near"`` or ``strip_html=True``."""
    option, word = match.groups()
    name, kind = ARGUMENTS.get(option, (option[2:].replace("-", "_"), None))
    kind = kind.of if isinstance(kind, Nullable) else kind
    if isinstance(kind, Boolean) and not match[0].endswith("="):
        return match[0].replace(option, f"{name}=True")
    if word is None:
        return f"{name}="
    # The type of --alphabet accepts any text, because the value may be a path.
    is_value = word == AUTO
    if isinstance(kind, (Choice, Range, TextEncoding)):
        with suppress(ValueError):
            is_value = bool(kind(word))
    return f'{name}="{word}"' if is_value else f"{name}= {word}"
