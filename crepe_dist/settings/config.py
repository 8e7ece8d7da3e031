"""Configuration of a training run, composed of this room's dataclasses: defaults < YAML files < flags."""

import argparse
import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Optional

import docstring_parser
import yaml
from pydantic.dataclasses import dataclass

from crepe_dist import invocation
from crepe_dist.errors import UserError
from crepe_dist.settings import arguments
from crepe_dist.settings.data_options import DataOptions
from crepe_dist.settings.limits import near, shortened, whole
from crepe_dist.settings.model_options import ModelOptions
from crepe_dist.settings.schema import Name, Settings, Title, alternatives, choices, typed, wanted
from crepe_dist.settings.training_options import (
    CheckpointOptions,
    EvaluationOptions,
    LoggingOptions,
    OptimizerOptions,
    SafetyOptions,
    TrainingOptions,
)
from crepe_dist.settings.yaml_file import load, read

Device = Literal["auto", "gpu", "cpu"]
TYPED_OFTEN = ("data", "model", "optimizer", "training")  # groups whose flags need no prefix
OWN_FLAGS = MappingProxyType({"data.source": "data", "model.network": "model", "optimizer.name": "optimizer"})
COMMON = (
    *("--data", "--epochs", "--batch-size", "--learning-rate", "--model", "--patience"),
    *("--device", "--name", "--run-dir", "--fresh", "--config"),
)
SYNONYMS = {
    "lr": "--learning-rate",
    "network": "--model",
    "gpu": "--device gpu",
    "cpu": "--device cpu",
    "output": "--run-dir",
}
SPELLED = re.compile(r"^--[a-z][a-z._-]*(?=$|=)")  # flag, perhaps as the setting is spelled in files
EXAMPLES = """  python -m crepe_dist.train                                    the sample on this machine
  horovodrun -np 2 python -m crepe_dist.train                   the same with two processes
  python -m crepe_dist.train --data data/reviews --device gpu   prepared data, one GPU
  python -m crepe_dist.train --config configs/smoke.yaml --epochs 3
  python -m crepe_dist.train --data data/mine --init-from runs/other   fine-tuned from that run, or more classes
  python -m crepe_dist.train --on ray --processes 8 --data data/reviews   on a Ray cluster
  python -m crepe_dist.train --overfit-batches 2                can the network memorise 128 documents?

A flag may also be written as in a settings file, such as --training.epochs for --epochs. Run the same
command again to resume an unfinished run. Percentages are rounded to one decimal; the accuracy in a checkpoint's name
has two and is cut off, so 92.119 % is 92.1 % here and 92.11 there.
"""


@dataclass
class Config(Settings):
    """Configuration of a training run.

    Args:
        device: auto (a GPU if there is one that can compute the network), gpu or cpu.
        name: name of the run in reports and comparisons, such as baseline. A resumed run keeps its name unless a new
            one is given. null: that of its folder.
        run_dir: folder of the run. null: ``runs/<data>-<hash of the settings that decide the result>``.
        fresh: start a new run even if one with the same settings exists.
    """

    device: Device = "auto"
    name: Optional[Title] = None
    run_dir: Optional[Name] = None
    fresh: bool = False
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    safety: SafetyOptions = field(default_factory=SafetyOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_yaml(self) -> str:
        """Return the YAML that is saved with the run; passed to ``--config``, it selects the same run."""
        values = {name: value for name, value in self.to_dict().items() if name != "fresh"}
        return yaml.safe_dump(values, sort_keys=False)

    def to_arguments(self) -> list[str]:
        """Return the arguments of Python that train with this configuration, on another machine, too."""
        mine, usual = (_by_dotted(config.to_dict()) for config in (self, Config()))
        flags = []
        for name, hint in settings().items():
            if mine[name] != usual[name]:
                is_text = isinstance(mine[name], str) and _reader(hint) is not _value
                flags.append(f"{flag(name)}={mine[name] if is_text else json.dumps(mine[name])}")
        return ["-m", "crepe_dist.train", *flags]

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result; a run is resumed only if they are equal."""
        return {
            "batch_size": self.data.batch_size,
            "typos": self.data.typos,
            "model": asdict(self.model),
            "optimizer": asdict(self.optimizer),
            "training": asdict(self.training),
        }


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Flatten settings to dotted names, without those that only select or name the run."""
    return {name: value for name, value in _by_dotted(settings).items() if name not in ("name", "run_dir", "fresh")}


def _by_dotted(settings: dict[str, Any]) -> dict[str, Any]:
    flattened: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flattened.update({f"{name}.{key}": nested for key, nested in value.items()})
        else:
            flattened[name] = value
    return flattened


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


GROUPS: dict[str, Any] = {
    name: kind for name, kind in typed(Config).items() if isinstance(kind, type) and issubclass(kind, Settings)
}


def settings() -> dict[str, Any]:
    """Map the dotted name of every setting to its type."""
    hints = {name: hint for name, hint in typed(Config).items() if name not in GROUPS}
    for group, options in GROUPS.items():
        hints.update({f"{group}.{name}": hint for name, hint in typed(options).items()})
    return hints


def parser() -> arguments.Parser:
    """Build the parser of train, with a flag per setting; the namespace holds only flags that were given."""
    result = arguments.parser("train", "Train a character-level text classifier in one or many processes.", EXAMPLES)
    result.show_common("[--config FILE] [--data DIR]", *COMMON)
    result.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML file of settings; flags take precedence"
    )
    result.add_argument("--print-config", action="store_true", help="print all settings as YAML and exit")
    cluster = result.add_argument_group("cluster", "Processes on a cluster, which restart after a failure.")
    cluster.add_argument("--on", choices=["ray"], help="train on a Ray cluster; default: this process alone")
    cluster.add_argument("--processes", type=whole(1, 1 << 16), metavar="N", help="number of processes; with --on")
    cluster.add_argument(
        "--max-restarts",
        type=whole(0, 10**9),
        metavar="N",
        help="restarts after failures; preemptions do not count; with --on; default: 10",
    )
    for group, options in {"": Config, **GROUPS}.items():
        about = docstring_parser.parse(options.__doc__ or "")
        texts = {param.arg_name: param.description or "" for param in about.params}
        flags = result.add_argument_group(group, about.description) if group else result
        for setting in fields(options):
            if setting.name not in GROUPS:
                _add(flags, f"{group}.{setting.name}" if group else setting.name, texts[setting.name], setting)
    return result


def _add(flags: argparse._ActionsContainer, name: str, text: str, field: Field[Any]) -> None:
    help = " ".join(text.replace("``", "").replace("%", "%%").split())
    hint = settings()[name]
    default = field.default_factory() if callable(field.default_factory) else field.default
    kinds = alternatives(hint)
    words = choices(hint) if len(kinds) == 1 else ()
    takes = f"default: {yaml.safe_dump(default).splitlines()[0]}"
    flags.add_argument(
        flag(name),
        dest=name,
        default=argparse.SUPPRESS,
        nargs="?" if hint is bool else None,
        const=True if hint is bool else None,
        type=_reader(hint),
        choices=words or None,
        metavar=None if words else "PATH" if Name in kinds else "true|false" if hint is bool else field.name.upper(),
        help=f"{help} ({takes if words else f'{wanted(hint)}; {takes}'})",
    )


def _reader(hint: Any) -> Callable[[str], Any]:
    """Return the function that reads a setting of a type from the text of its flag."""
    kinds = alternatives(hint)
    if kinds == (Name,) or (choices(hint) and len(kinds) == 1):
        return str
    return _name if {Name, Title}.intersection(kinds) else _value


def flag(name: str) -> str:
    """Return the flag of a setting, given its dotted name."""
    group, _, own = name.rpartition(".")
    return f"--{_hyphened(OWN_FLAGS.get(name) or (own if group in TYPED_OFTEN else name))}"


def _hyphened(name: str) -> str:
    return name.replace("_", "-")


def _name(text: str) -> Optional[str]:
    return None if text == "null" else text


def _value(text: str) -> Any:
    """Parse the value of a flag as YAML; leave invalid YAML to the check of the setting's type."""
    try:
        return load(text) if text.strip() else text
    except (yaml.YAMLError, ValueError):
        return text


def print_help(words: Sequence[str]) -> None:
    """Print the help or the version and exit if asked to; called before MXNet is imported."""
    if {"-h", "--help", "--help-all", "--version"}.intersection(words):
        parser().parse_known_args(words)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Number of the processes of a run on a cluster, and of the restarts after failures."""

    processes: int
    max_restarts: int = 10


def parse(words: Sequence[str]) -> Config:
    """Parse a command line into a configuration."""
    return parse_all(words)[0]


def parse_all(words: Sequence[str]) -> tuple[Config, Optional[Cluster]]:
    """Parse a command line into a configuration, and the cluster on which to train, if any."""
    flags, of_settings = parser(), {f"--{_hyphened(name)}": flag(name) for name in settings()}
    words = [SPELLED.sub(lambda found: of_settings.get(_hyphened(found[0]), found[0]), word) for word in words]
    values, rest = flags.parse_known_args(words)
    if rest and not rest[0].startswith("-"):
        meant = "--config" if rest[0].endswith((".yaml", ".yml")) else "--data"
        raise UserError(f"there is no option {rest[0]}", remedy=f"did you mean {meant} {rest[0]}?")
    if rest and (synonym := SYNONYMS.get(rest[0].lstrip("-").partition("=")[0])):
        raise UserError(f"there is no option {rest[0]}", remedy=f"did you mean {synonym}?")
    if rest:
        raise flags.unknown(rest[0])
    try:
        config = combined(vars(values), values.config)
    except UserError as error:
        raise _as_typed(error, words) from error.__cause__
    if values.print_config:
        print(config.to_yaml(), end="")
        sys.exit()
    return config, _cluster(values)


def _cluster(values: argparse.Namespace) -> Optional[Cluster]:
    if values.on is None:
        given = [flag for flag in ("processes", "max_restarts") if getattr(values, flag) is not None]
        if given:
            raise UserError(
                f"{flag(given[0])} without --on",
                "this process trains alone, or a launcher started it",
                f"give --on ray, or, on one machine, start with {invocation.typed('supervise')} -np N",
            )
        return None
    if values.processes is None:
        raise UserError(f"--on {values.on} without --processes", remedy="give the number of processes: --processes 4")
    return Cluster(values.processes) if values.max_restarts is None else Cluster(values.processes, values.max_restarts)


def combined(given: Mapping[str, Any], files: Sequence[str] = ()) -> Config:
    """Merge settings given by their dotted names, files and defaults, in this order of precedence."""
    values: dict[str, dict[str, Any]] = {"": {}, **{name: {} for name in GROUPS}}
    for path in files:
        for name, value in _known(read(Path(path)), path).items():
            values[name if name in GROUPS else ""].update(value if name in GROUPS else {name: value})
    known = settings()
    for dotted, value in given.items():
        if dotted in known:
            group, _, name = dotted.rpartition(".")
            values[group][name] = value
    groups = {name: options(**values[name]) for name, options in GROUPS.items()}
    return Config(**values[""], **groups)


def _known(values: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the settings of a file after a check that each exists."""
    known = settings()
    for name, value in values.items():
        if isinstance(value, dict) and name not in GROUPS and name not in known:
            raise UserError(
                f"there is no group of settings {shortened(name)}",
                f"the groups are {', '.join(sorted(GROUPS))}",
                near(str(name), GROUPS) or "start from a file in configs/",
            )
        if name in GROUPS and not isinstance(value, dict):
            raise UserError(
                f"the settings in {path} cannot be used",
                f"{name} is a group of settings, but has none in this file",
                "start from a file in configs/",
            )
        for key in [f"{name}.{key}" for key in value] if name in GROUPS else [str(name)]:
            if key not in known:
                remedy = near(key, known) or f"{invocation.typed('train')} --help-all lists the options"
                raise UserError(f"there is no setting {shortened(key)}", remedy=remedy)
    return values


def _as_typed(error: UserError, words: Sequence[str]) -> UserError:
    """Replace the names of settings by the short flags that the user typed."""
    typed = {argument.partition("=")[0] for argument in words}
    for dotted in settings():
        if flag(dotted) in typed:
            texts = (text.replace(dotted, flag(dotted)) for text in (error.what, error.why, error.remedy))
            error.what, error.why, error.remedy = texts
    return error
