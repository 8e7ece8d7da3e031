"""Old names of flags, settings and values, and the current names that replace them.

The help and the documentation show only the current names. Files written by earlier versions may contain old names, and
can always be read. On the command line and in Python, an old name is either accepted, or refused with a message that
states the current name.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from crepe_dist.errors import UserError


class Alias(NamedTuple):
    """Current name of a renamed flag, setting or argument.

    Attributes:
        name: Current name.
        refused_because: Reason why the old name is refused. It is empty if the old name is accepted.
    """

    name: str
    refused_because: str = ""


_NO_CHECKPOINT = "it controls the resume state of a run, and a checkpoint contains the weights of an epoch"

# Renamed settings of training, by their dotted names.
SETTINGS: Mapping[str, Alias] = {
    "checkpoint.every": Alias("state.save_steps", _NO_CHECKPOINT),
    "model.embeddings": Alias("model.embedding_rows"),
    "training.choose": Alias("training.metric_for_best_model"),
    "training.encoder": Alias("training.sentence_encoder"),
}

# Renamed flags of the other commands. An alias does not apply to a command that still has a flag with the old name.
FLAGS: Mapping[str, Alias] = {
    "--least": Alias("--min-effect"),
    "--next": Alias("--num-suggestions"),
    "--score": Alias("--score-class", "in the other commands, a score is the accuracy"),
    "--size": Alias("--max-size-mb", "--size is the size of the paper's network in train"),
    "--text": Alias("--text-column"),
}

# Renamed values (old: new), by the name of their flag or setting.
VALUES: Mapping[str, Mapping[str, str]] = {
    "alphabet": {"usual": "standard"},
    "labels": {"one": "single", "several": "multilabel"},
    "model.kernels": {"own": "native"},
}

ARGUMENTS: Mapping[str, Alias] = {"length": Alias("max_length")}  # Renamed arguments of CrepeClassifier.
# Renamed environment variables.
VARIABLES: Mapping[str, str] = {"CREPE_DIST_RENDEZVOUS_SECONDS": "CREPE_DIST_MEETING_SECONDS"}  # New: old.


def current_name(name: str, aliases: Mapping[str, Alias], known: Collection[str]) -> str:
    """Return the current name of a flag, a setting or an argument that the user passed.

    Args:
        known: Current names. A current name is returned unchanged, even if it is also an old name.

    Raises:
        UserError: The old name is refused.
    """
    alias = aliases.get(name)
    if alias is None or name in known or alias.name not in known:
        return name
    if alias.refused_because:
        raise UserError(f"{name} is now called {alias.name}", alias.refused_because, f"pass {alias.name}")
    return alias.name


def current_value(name: str, value: Any) -> Any:
    """Return a value with its current spelling.

    Args:
        name: Name of the flag, or dotted name of the setting.
    """
    return VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value


def read_variable(name: str, environment: Mapping[str, str]) -> str:
    """Return the value of an environment variable, under its new or old name; "" if it is not set."""
    return environment.get(name, "").strip() or environment.get(VARIABLES[name], "").strip()


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace old names and values in the settings of a file with the current ones.

    Args:
        settings: Settings, nested in their groups.

    Raises:
        UserError: The file contains a setting under both its old and its current name.
    """
    result = {group: dict(value) if isinstance(value, dict) else value for group, value in settings.items()}
    for dotted in VALUES:
        group, _, name = dotted.rpartition(".")
        options = result.get(group)
        if isinstance(options, dict) and name in options:
            options[name] = current_value(dotted, options[name])
    for source, (target, _) in SETTINGS.items():
        (group, name), (new_group, new_name) = source.split("."), target.split(".")
        options = result.get(group)
        if not isinstance(options, dict) or name not in options:
            continue
        new_options = result.setdefault(new_group, {})
        if not isinstance(new_options, dict) or new_name in new_options:
            what = f"{source} and {target} are two names of one setting, and both have a value"
            raise UserError(what, remedy=f"give only {target}")
        new_options[new_name] = options.pop(name)
        if not options:
            del result[group]
    return result
