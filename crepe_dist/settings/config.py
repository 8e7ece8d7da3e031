"""Configuration of a training run, composed of this room's dataclasses: defaults < YAML files < flags."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Optional

from crepe_dist import invocation
from crepe_dist.errors import UserError
from crepe_dist.formatting import join_words
from crepe_dist.settings.aliases import FLAGS, SETTINGS, current_name, stored_settings
from crepe_dist.settings.fields import (
    NON_EMPTY,
    PATH,
    RUN_NAME,
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

UNPREFIXED_GROUPS = ("data", "model", "optimizer", "training")  # groups whose flags need no prefix
SOURCE = "data.source"
REFIT = "training.refit"
POSITIONAL = "positional"  # data folder without its flag
FLAG_NAMES = MappingProxyType({"data.source": "data", "model.network": "model", "optimizer.name": "optimizer"})
EXAMPLES = """  crepe train                                    the sample on this machine
  horovodrun -np 2 crepe train                   the same with two processes
  crepe train data/reviews --device gpu          prepared data, one GPU
  crepe train --config configs/smoke.yaml --epochs 3
  crepe train data/mine --init-from runs/other   fine-tuned from that run, or more classes
  crepe train data/reviews --on ray --processes 8   on a Ray cluster

Run the same command again to resume an unfinished run. Percentages are rounded to one decimal; the accuracy in a
checkpoint's name has two and is cut off, so 92.119 % is 92.1 % here and 92.11 there.
"""


@dataclass
class Config(Settings):
    """Configuration of a training run."""

    device: Literal["auto", "gpu", "cpu"] = setting(
        "auto", "auto (a GPU if there is one that can compute the network), gpu or cpu."
    )
    name: Optional[str] = setting(
        None,
        "name of the run in reports and comparisons, such as baseline. A resumed run keeps its name unless a new one "
        "is given. null: that of its folder.",
        RUN_NAME,
    )
    run_dir: Optional[str] = setting(
        None, "folder of the run. null: `runs/<data>-<hash of the settings that decide the result>`.", PATH
    )
    fresh: bool = setting(False, "start a new run even if one with the same settings exists.")
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    state: StateOptions = field(default_factory=StateOptions)
    safety: SafetyOptions = field(default_factory=SafetyOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)

    @classmethod
    def flag(cls, name: str) -> str:
        return flag(name)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_yaml(self) -> str:
        """Return the YAML that is saved with the run; passed to ``--config``, it selects the same run."""
        import yaml  # here: --help need not wait for it

        values = {name: value for name, value in self.to_dict().items() if name != "fresh"}
        return yaml.safe_dump(values, sort_keys=False)

    def to_arguments(self) -> list[str]:
        """Return the arguments of Python that train with this configuration, on another machine, too."""
        mine, usual = (_flatten_groups(config.to_dict()) for config in (self, Config()))
        given = {name: value for name, value in mine.items() if value != usual[name]}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
        return ["-m", "crepe_dist.train", *(f"{flag(name)}={text}" for name, text in texts.items())]

    def run_key(self) -> dict[str, Any]:
        """Return the settings that decide the result; a run is resumed only if they are equal."""
        return stored_settings(
            {
                "batch_size": self.data.batch_size,
                "typos": self.data.typos,
                "model": asdict(self.model),
                "optimizer": asdict(self.optimizer),
                "training": asdict(self.training),
            }
        )


def flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """Flatten settings to dotted names, without those that only select or name the run."""
    return {
        name: value for name, value in _flatten_groups(settings).items() if name not in ("name", "run_dir", "fresh")
    }


def _flatten_groups(settings: dict[str, Any]) -> dict[str, Any]:
    flattened: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flattened.update({f"{name}.{key}": nested for key, nested in value.items()})
        else:
            flattened[name] = value
    return flattened


GROUPS: dict[str, Any] = {each.name: each.type for each in fields(Config) if "kind" not in each.metadata}


def settings() -> dict[str, Field[Any]]:
    """Map the dotted name of every setting to its field."""
    return {qualified_name(group, each): each for group in (Config, *GROUPS.values()) for each in settings_of(group)}


def parser() -> Parser:
    """Build the parser of train, with a flag per setting; the namespace holds only flags that were given."""
    result = command_parser("train", "Train a character-level text classifier in one or many processes.", EXAMPLES)
    result.usage = "%(prog)s [DATA] [--config FILE] [options]"
    result.add_argument(POSITIONAL, metavar="DATA", nargs="?", default=argparse.SUPPRESS, help="the same as --data")
    result.add_argument(
        "--config",
        type=NON_EMPTY,
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of settings; flags take precedence",
    )
    result.add_argument("--print-config", action="store_true", help="print all settings as YAML and exit")
    cluster = result.add_argument_group("cluster", "Processes on a cluster, which restart after a failure.")
    cluster.add_argument("--on", choices=["ray"], help="train on a Ray cluster; default: this process alone")
    cluster.add_argument("--processes", type=int_range(1, 1 << 16), metavar="N", help="number of processes; with --on")
    cluster.add_argument(
        "--max-restarts",
        type=int_range(0, 10**9),
        metavar="N",
        help="restarts after failures; preemptions do not count; with --on; default: 10",
    )
    add_settings(result, Config, flag)
    for name, group in GROUPS.items():
        add_settings(result.add_argument_group(name, group.__doc__), group, flag)
    result.aliases = {**FLAGS, **{flag(old): alias._replace(name=flag(alias.name)) for old, alias in SETTINGS.items()}}
    return result


def flag(name: str) -> str:
    """Return the flag of a setting, given its dotted name."""
    group, _, own = name.rpartition(".")
    return f"--{FLAG_NAMES.get(name) or (own if group in UNPREFIXED_GROUPS else name)}".replace("_", "-")


def print_help(words: Sequence[str]) -> None:
    """Print the help or the version and exit if asked to; called before MXNet is imported."""
    if {"-h", "--help", "--version"}.intersection(words):
        parser().parse_known_args(words)


class ClusterOptions(NamedTuple):
    """Number of the processes of a run on a cluster, and of the restarts after failures."""

    processes: int
    max_restarts: int = 10


def parse(words: Sequence[str]) -> Config:
    """Parse a command line into a configuration."""
    return parse_with_cluster(words)[0]


def parse_with_cluster(words: Sequence[str]) -> tuple[Config, Optional[ClusterOptions]]:
    """Parse a command line into a configuration, and the cluster on which to train, if any."""
    flags = parser()
    values, rest = flags.parse_known_intermixed_args(words)
    if rest:
        raise flags.unknown(rest[0])
    given = {name: value for name, value in vars(values).items() if name != POSITIONAL}
    folder = getattr(values, POSITIONAL, given.get(SOURCE))
    if folder is not None and os.path.normpath(given.setdefault(SOURCE, folder)) != os.path.normpath(folder):
        what = f"the data are {folder} by position, and {given[SOURCE]} by --data"
        raise UserError(what, remedy="give only one of them")
    config = merge_settings(given, values.config)
    _check(config)
    if values.print_config:
        print(config.to_yaml(), end="")
        sys.exit()
    return config, _cluster(values)


def _cluster(values: argparse.Namespace) -> Optional[ClusterOptions]:
    if values.on is None:
        given = [flag for flag in ("processes", "max_restarts") if getattr(values, flag) is not None]
        if given:
            remedy = f"give --on ray, or, on one machine, start with {invocation.command_line('supervise')} -np N"
            raise UserError(f"{flag(given[0])} without --on", remedy=remedy)
        return None
    if values.processes is None:
        raise UserError(f"--on {values.on} without --processes", remedy="give the number of processes: --processes 4")
    return (
        ClusterOptions(values.processes)
        if values.max_restarts is None
        else ClusterOptions(values.processes, values.max_restarts)
    )


def _check(config: Config) -> None:
    """Check that the settings that the user gave can have an effect."""
    network = config.model.network
    if config.training.init_from is None:  # which decides the network
        known = settings()
        readers = {name: known[name].metadata["networks"] for name in sorted(config.given)}
        for name, networks in readers.items():
            if networks and network not in networks and not (name == REFIT and not config.training.refit):
                config.refuse([name], f"--model {network} does not read it; {join_words(list(networks))} would")
    elif config.training.refit:
        config.refuse(["training.refit"], "--init-from was given, and such a run refits nothing")
    if config.optimizer.name != "sgd":
        config.refuse(["optimizer.momentum"], f"--optimizer {config.optimizer.name} has none", "add --optimizer sgd")


def merge_settings(given: Mapping[str, Any], files: Sequence[str] = ()) -> Config:
    """Merge settings given by their dotted names, files and defaults, in this order of precedence."""
    from crepe_dist.settings.yaml_file import read  # here: --help need not wait for YAML

    values: dict[str, dict[str, Any]] = {"": {}, **{name: {} for name in GROUPS}}
    for path in files:
        for name, value in _known(read(Path(path)), path).items():
            values[name if name in GROUPS else ""].update(value if name in GROUPS else {name: value})
    known = settings()
    names = {current_name(name, SETTINGS, known): value for name, value in given.items()}
    for full in names.keys() & known.keys():
        group, _, name = full.rpartition(".")
        values[group][name] = names[full]
    groups = {name: options(**values[name]) for name, options in GROUPS.items()}
    return Config(**values[""], **groups).as_given(names.keys() & known.keys())


def _known(values: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the settings of a file after a check that each exists."""
    known = settings()
    for name, value in values.items():
        if (name in GROUPS) != isinstance(value, dict) and name not in known:
            raise UserError(
                f"{path}: {truncate(name)} is not a group of settings with a value for each",
                remedy=did_you_mean(str(name), GROUPS) or f"the groups are {', '.join(GROUPS)}",
            )
        for key in [f"{name}.{key}" for key in value] if name in GROUPS else [str(name)]:
            if key not in known:
                remedy = did_you_mean(key, known) or f"{invocation.command_line('train')} --help lists the options"
                raise UserError(f"{path}: there is no setting {truncate(key)}", remedy=remedy)
    return values
