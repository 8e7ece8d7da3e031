"""Names that flags, settings and values had in earlier versions, and their names today.

The help and the documentation have today's names only. Files of earlier versions are always read under the old names.
On the command line and in Python an old name is accepted, or refused with a sentence that gives the new name.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from crepe_dist.errors import UserError


class Alias(NamedTuple):
    """Today's name of something that was renamed.

    Attributes:
        name: today's name.
        refused_because: reason why users may no longer give the old name; empty if it is accepted.
    """

    name: str
    refused_because: str = ""


_NO_CHECKPOINT = "it saves the state that resumes a run, and a checkpoint is the weights of an epoch"

# Settings of training by their dotted names.
SETTINGS: Mapping[str, Alias] = {
    "checkpoint.every": Alias("state.save_steps", _NO_CHECKPOINT),
    "checkpoint.every_s": Alias("state.save_seconds", _NO_CHECKPOINT),
    "model.embeddings": Alias("model.embedding_rows"),
    "training.choose": Alias("training.metric_for_best_model"),
    "training.encoder": Alias("training.sentence_encoder"),
}

# Flags of the other commands. A command that has a flag of the old name keeps it.
FLAGS: Mapping[str, Alias] = {
    "--least": Alias("--min-effect"),
    "--next": Alias("--num-suggestions"),
    "--score": Alias("--score-class", "a score is the accuracy in the other commands"),
    "--size": Alias("--max-size-mb", "--size is the size of the paper's network in train"),
    "--text": Alias("--text-column"),
}

# Values, by the settings and flags that take them.
VALUES: Mapping[str, Mapping[str, str]] = {
    "alphabet": {"usual": "standard"},
    "labels": {"one": "single", "several": "multilabel"},
    "model.kernels": {"own": "native"},
}

ARGUMENTS: Mapping[str, Alias] = {"length": Alias("max_length")}  # arguments of CrepeClassifier
VARIABLES: Mapping[str, str] = {"CREPE_DIST_RENDEZVOUS_SECONDS": "CREPE_DIST_MEETING_SECONDS"}  # today's and old name


def current_name(name: str, aliases: Mapping[str, Alias], known: Collection[str]) -> str:
    """Return today's name of a flag, a setting or an argument that a user gave.

    Args:
        known: names that exist today. One of them is returned as it is, even if something else once had that name.

    Raises:
        UserError: the old name is refused.
    """
    alias = aliases.get(name)
    if alias is None or name in known or alias.name not in known:
        return name
    if alias.refused_because:
        raise UserError(f"{name} is now called {alias.name}", alias.refused_because, f"give {alias.name}")
    return alias.name


def current_value(name: str, value: Any) -> Any:
    """Return today's spelling of a value, given the name of its flag or the dotted name of its setting."""
    return VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value


def read_variable(name: str, environment: Mapping[str, str]) -> str:
    """Return the value of an environment variable, which may have its old name; empty if it is not set."""
    return environment.get(name, "").strip() or environment.get(VARIABLES[name], "").strip()


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a file, in their groups, with today's names and values.

    Raises:
        UserError: a setting has two values, one under each of its names.
    """
    names = {old: alias.name for old, alias in SETTINGS.items()}
    return _rename(settings, names, VALUES)


def stored_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, in their groups, with the names and values that files of all versions have.

    They name the folder of a run, so the same settings must have the same names in every version.
    """
    names = {alias.name: old for old, alias in SETTINGS.items()}
    values = {name: {new: old for old, new in spellings.items()} for name, spellings in VALUES.items()}
    return _rename(settings, names, values)


def _rename(
    settings: Mapping[str, Any], names: Mapping[str, str], values: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    result = {group: dict(value) if isinstance(value, dict) else value for group, value in settings.items()}
    for dotted, spellings in values.items():
        group, _, name = dotted.rpartition(".")
        options = result.get(group)
        if isinstance(options, dict) and isinstance(value := options.get(name), str):
            options[name] = spellings.get(value, value)
    for before, after in names.items():
        (group, name), (new_group, new_name) = before.split("."), after.split(".")
        options = result.get(group)
        if not isinstance(options, dict) or name not in options:
            continue
        new_options = result.setdefault(new_group, {})
        if not isinstance(new_options, dict) or new_name in new_options:
            what = f"{before} and {after} are two names of one setting, and both have a value"
            raise UserError(what, remedy=f"give {after} only")
        new_options[new_name] = options.pop(name)
        if not options:
            del result[group]
    return result
