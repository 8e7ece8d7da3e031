"""Configuration of a training run. Flags override YAML files, and YAML files override the defaults."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from crepe_dist import invocation
from crepe_dist.errors import UserError
from crepe_dist.settings.fields import (
    NON_EMPTY,
    PATH,
    Settings,
    did_you_mean,
    int_range,
    qualified_name,
    setting,
    settings_of,
    truncate,
)
from crepe_dist.settings.flags import Parser, add_settings, command_parser
from crepe_dist.settings.options import (
    DataOptions,
    LoggingOptions,
    ModelOptions,
    OptimizerOptions,
    SafetyOptions,
    StateOptions,
    TrainingOptions,
)

UNPREFIXED_GROUPS = ("data", "model", "optimizer", "training")  # Groups whose flags have no prefix.
SOURCE = "data.source"
POSITIONAL = "positional"  # Namespace attribute for a data folder that is passed without a flag.
# Flags whose names differ from the names of their settings.
FLAG_NAMES = {
    "data.source": "data",
    "logging.track": "track",
    "model.network": "model",
    "optimizer.name": "optimizer",
}
# Settings for experiments. The help names them in one sentence.
UNLISTED = {
    "model.width",
    "model.blocks",
    "model.dropout",
    "optimizer.name",
    "optimizer.schedule",
    "training.label_smoothing",
}
# Settings that disable the outputs of a training run that a temporary run does not need.
NO_REPORTS = {
    "logging.report": False,
    "logging.track": "none",
}
EXAMPLES = """  crepe train                                       train on the bundled sample, on this machine
  horovodrun -np 2 crepe train                      the same with two processes
  crepe train data/reviews --device gpu             train on prepared data, on one GPU
  crepe train --config configs/smoke.yaml --epochs 3
  crepe train data/mine --init-from runs/other      fine-tune the weights of another run
  crepe train data/reviews --on ray --processes 8   train on a Ray cluster

The page docs/reference/options.md has all settings, which flags and files accept: also width, blocks and dropout of
the network, optimizer, schedule and label smoothing.

Run the same command again to resume an unfinished run. Printed percentages are rounded to one decimal. The accuracy
in the name of a checkpoint is cut off after two decimals: 92.119 % is printed as 92.1 %, and named 92.11.
"""


@dataclass
class Config(Settings):
    """Configuration of a training run."""

    device: Literal["auto", "gpu", "cpu"] = setting(
        "auto", "Device. auto: a GPU if there is one that supports the network, otherwise the CPU."
    )
    run_dir: str | None = setting(
        None, "Folder of the run. Default: `runs/<data>-<hash of the settings that change the result>`.", PATH
    )
    fresh: bool = setting(False, "Start a new run even if a run with the same settings exists.")
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    state: StateOptions = field(default_factory=StateOptions)
    safety: SafetyOptions = field(default_factory=SafetyOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)

    def to_yaml(self) -> str:
        """Return the settings as YAML, for the run folder. A command with this YAML as ``--config`` resumes the run."""
        import yaml  # Imported here because --help does not need it.

        values = {name: value for name, value in values_of(self).items() if name != "fresh"}
        values |= {name: values_of(getattr(self, name)) for name in GROUPS}
        return yaml.safe_dump(values, sort_keys=False)

    def to_arguments(self) -> list[str]:
        """Return command-line arguments for the Python interpreter that start training with this configuration."""
        values, defaults = (_flatten_groups(asdict(config)) for config in (self, Config()))
        changed = {name: value for name, value in values.items() if value != defaults[name]}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changed.items()}
        return ["-m", "crepe_dist.train", *(f"{flag(name)}={text}" for name, text in texts.items())]

    def run_key(self) -> dict[str, Any]:
        """Return the settings that affect the result. A run is resumed only if these settings have not changed."""
        return {
            "batch_size": self.data.batch_size,
            "typos": self.data.typos,
            "model": asdict(self.model),
            "optimizer": asdict(self.optimizer),
            "training": asdict(self.training),
        }


def values_of(group: Settings) -> dict[str, Any]:
    """Return the settings of a group by name, without the constants of training."""
    return {item.name: getattr(group, item.name) for item in settings_of(type(group))}


def flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """Flatten settings to dotted names. Omit settings that only select the run folder."""
    return {name: value for name, value in _flatten_groups(settings).items() if name not in ("run_dir", "fresh")}


def _flatten_groups(settings: dict[str, Any]) -> dict[str, Any]:
    flattened: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flattened.update({f"{name}.{key}": nested for key, nested in value.items()})
        else:
            flattened[name] = value
    return flattened


def group_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings with dotted names to the nested groups of a configuration file."""
    groups: dict[str, Any] = {}
    for dotted, value in settings.items():
        group, _, name = dotted.rpartition(".")
        plain = value.item() if hasattr(value, "item") else value  # Searches return NumPy scalars.
        (groups.setdefault(group, {}) if group else groups)[name] = plain
    return groups


GROUPS: dict[str, Any] = {item.name: item.type for item in fields(Config) if "kind" not in item.metadata}


def settings() -> dict[str, Field[Any]]:
    """Map the dotted name of every setting to its field."""
    return {qualified_name(group, item): item for group in (Config, *GROUPS.values()) for item in settings_of(group)}


def parser() -> Parser:
    """Build the parser of ``train``, with a flag for each setting. The namespace contains only the passed flags."""
    result = command_parser("train", "Train a character-level text classifier with one or many processes.", EXAMPLES)
    result.usage = "%(prog)s [DATA] [--config FILE] [options]"
    result.add_argument(
        POSITIONAL, metavar="DATA", nargs="?", default=argparse.SUPPRESS, help="Data folder; same as --data."
    )
    result.add_argument(
        "--config",
        type=NON_EMPTY,
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of settings, which flags override. If it is repeated, later files override earlier ones.",
    )
    cluster = result.add_argument_group("cluster", "Training on a cluster, which restarts failed processes.")
    cluster.add_argument("--on", choices=["ray"], help="Cluster to train on. Default: none; only this process trains.")
    cluster.add_argument(
        "--processes", type=int_range(1, 1 << 16), metavar="N", help="Number of processes. Requires --on."
    )
    cluster.add_argument(
        "--max-restarts",
        type=int_range(0, 10**9),
        metavar="N",
        help="Maximum number of restarts after failures. Preemptions do not count. Requires --on. Default: 10.",
    )
    add_settings(result, Config, flag, UNLISTED)
    for name, group in GROUPS.items():
        add_settings(result.add_argument_group(name, group.__doc__), group, flag, UNLISTED)
    return result


def flag(name: str) -> str:
    """Map the dotted name of a setting to its flag."""
    group, _, own = name.rpartition(".")
    return f"--{FLAG_NAMES.get(name) or (own if group in UNPREFIXED_GROUPS else name)}".replace("_", "-")


def argument_name(name: str) -> str:
    """Map the dotted name of a setting to its argument of ``crepe_dist.fit``."""
    return flag(name)[2:].replace("-", "_")


def print_help(words: Sequence[str]) -> None:
    """Print the help or the version, and exit, if the command line contains ``--help`` or ``--version``.

    The command calls this function before it imports MXNet, because that import is slow.
    """
    if {"-h", "--help", "--version"}.intersection(words):
        parser().parse_known_args(words)


def parse(words: Sequence[str]) -> Config:
    """Parse a command line into a configuration."""
    return parse_with_cluster(words)[0]


def parse_with_cluster(words: Sequence[str]) -> tuple[Config, dict[str, int] | None]:
    """Parse a command line into a configuration and the keyword arguments of ``on_ray``.

    If ``--on`` is not given, there are no keyword arguments, and the second value is ``None``.
    """
    values = parser().parse_intermixed_args(words)
    given = {name: value for name, value in vars(values).items() if name != POSITIONAL}
    folder = getattr(values, POSITIONAL, given.get(SOURCE))
    if folder is not None and os.path.normpath(given.setdefault(SOURCE, folder)) != os.path.normpath(folder):
        what = f"two data folders are given: {folder} by position, and {given[SOURCE]} by --data"
        raise UserError(what, remedy="give only one of them")
    config = merge_settings(given, values.config)
    return config, _cluster(values)


def _cluster(values: argparse.Namespace) -> dict[str, int] | None:
    options = {"processes": values.processes, "max_restarts": values.max_restarts}
    given = {name: value for name, value in options.items() if value is not None}
    if values.on is None:
        if given:
            remedy = f"pass --on ray, or, on one machine, start with {invocation.command_line('supervise')} -np N"
            raise UserError(f"{flag(next(iter(given)))} without --on", remedy=remedy)
        return None
    if "processes" not in given:
        raise UserError(f"--on {values.on} without --processes", remedy="give the number of processes: --processes 4")
    return given


def merge_settings(given: Mapping[str, Any], files: Sequence[str] = ()) -> Config:
    """Merge settings into a configuration.

    Args:
        given: Settings from flags or Python, by their dotted names. These settings override the files.
        files: YAML files. A later file overrides an earlier one, and all files override the defaults.
    """
    from crepe_dist.settings.yaml_file import read  # Imported here because --help does not need YAML.

    known = settings()
    from_files = {name: value for path in files for name, value in _known(read(Path(path)), path).items()}
    passed = {name: value for name, value in given.items() if name in known}
    values: dict[str, dict[str, Any]] = {"": {}, **{name: {} for name in GROUPS}}
    for qualified, value in {**from_files, **passed}.items():
        group, _, name = qualified.rpartition(".")
        values[group][name] = value
    groups = {name: options(**values[name]) for name, options in GROUPS.items()}
    return Config(**values[""], **groups)


def _known(values: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the settings of a file by their dotted names. Raise ``UserError`` if a setting or group does not exist."""
    known = settings()
    result: dict[str, Any] = {}
    for name, value in values.items():
        if (name in GROUPS) != isinstance(value, dict) and name not in known:
            raise UserError(
                f"{path}: {truncate(name)} is not a group of settings with their values",
                remedy=did_you_mean(str(name), GROUPS) or f"the groups are {', '.join(GROUPS)}",
            )
        result |= {f"{name}.{key}": nested for key, nested in value.items()} if name in GROUPS else {str(name): value}
    for name in result:
        if name not in known:
            remedy = did_you_mean(name, known) or f"{invocation.command_line('train')} --help lists the options"
            raise UserError(f"{path}: there is no setting {truncate(name)}", remedy=remedy)
    return result
