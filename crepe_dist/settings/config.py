"""One configuration, composed of the dataclasses that the sub-packages own: defaults < YAML file < dotted flags."""

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Optional

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from crepe_dist.errors import UserError
from crepe_dist.settings.data_options import DataOptions
from crepe_dist.settings.limits import Settings, near, remedy, shortened, typed
from crepe_dist.settings.model_options import ModelOptions
from crepe_dist.settings.training_options import (
    CheckpointOptions,
    EvaluationOptions,
    LoggingOptions,
    OptimizerOptions,
    SafetyOptions,
    TrainingOptions,
)
from crepe_dist.settings.yaml_file import ConfigFile
from crepe_dist.version import __version__

Device = Literal["auto", "gpu", "cpu"]
HELP = "python -m crepe_dist.train --help lists every option with its type and default"
# Short forms of flags that are typed often.
ALIASES = {
    "--data": "--data.source",
    "--batch-size": "--data.batch_size",
    "--epochs": "--training.epochs",
    "--seed": "--training.seed",
    "--init-from": "--training.init_from",
    "--start-epoch": "--training.start_epoch",
    "--overfit-batches": "--training.overfit_batches",
}
SWITCHES = {"--profile": "--logging.profile=true"}
EXAMPLES = """
examples:
  python -m crepe_dist.train                                    the sample, on this machine
  horovodrun -np 2 python -m crepe_dist.train                   the same by two processes
  python -m crepe_dist.train --data data/reviews --device gpu   prepared data, one GPU
  python -m crepe_dist.train --config configs/smoke.yaml --epochs 3
  python -m crepe_dist.train --data data/mine --init-from runs/reviews-1f2e3d4c5b
                                                                other classes, on what that run has learnt
  python -m crepe_dist.train --dry-run                          shapes, memory, time; one step, nothing written
  python -m crepe_dist.train --overfit-batches 2                can it learn 128 documents by heart?

short forms: --data DIR is --data.source DIR; --batch-size, --epochs, --seed, --init-from, --start-epoch and
--overfit-batches are --data.batch_size, --training.epochs and so on; --profile is --logging.profile true. The same
command run again goes on with an unfinished run.
"""


@dataclass
class Config(Settings):
    """Everything that a training run is told.

    Args:
        device: auto (a GPU if there is one), gpu or cpu.
        run_dir: folder of the run; none: ``runs/<data>-<hash of what decides the result>``.
        fresh: start another run even if this one was begun or finished before.
        dry_run: only try what would be done: shapes, memory, and one step on every process; nothing is written.
    """

    device: Device = "auto"
    run_dir: Optional[str] = None
    fresh: bool = False
    dry_run: bool = False
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
        """What is saved with the run; so that ``--config`` on it comes back to the run."""
        values = {name: value for name, value in self.to_dict().items() if name not in ("fresh", "dry_run")}
        return yaml.safe_dump(values, sort_keys=False)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result; a run is resumed only under equal ones."""
        return {
            "batch_size": self.data.batch_size,
            # Only where there are any: runs from before there was this setting keep their hash.
            **({"typos": self.data.typos} if self.data.typos else {}),
            "model": asdict(self.model),
            "optimizer": asdict(self.optimizer),
            "training": asdict(self.training),
        }


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


GROUPS = {
    "data": DataOptions,
    "model": ModelOptions,
    "optimizer": OptimizerOptions,
    "training": TrainingOptions,
    "evaluation": EvaluationOptions,
    "checkpoint": CheckpointOptions,
    "safety": SafetyOptions,
    "logging": LoggingOptions,
}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Types and defaults of every option, and the examples line by line."""


def parser() -> ArgumentParser:
    result = ArgumentParser(
        prog="python -m crepe_dist.train",
        description="Train a character-level text classifier, in one process or in many.",
        epilog=EXAMPLES,
        formatter_class=_HelpFormatter,
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    result.add_argument("--config", action=ConfigFile, help="YAML file of settings; flags override it")
    result.add_argument("--device", type=Device, default="auto", help="auto (a GPU if there is one), gpu or cpu")
    result.add_argument("--run-dir", type=Optional[str], help="folder of the run (none: runs/<data>-<hash>)")
    result.add_argument("--fresh", action="store_true", help="start another run even if this one exists")
    result.add_argument("--dry-run", action="store_true", help="try one step on every process; write nothing")
    for name, options in GROUPS.items():
        result.add_class_arguments(options, name)
    for action in result._actions:
        if action.dest in GROUPS:
            action.help = argparse.SUPPRESS  # a file for one group, of jsonargparse's own; `--data` is ours
    return result


def parse(arguments: Sequence[str]) -> Config:
    """The configuration that a command line means.

    Raises:
        UserError: an unknown option or key, a value of the wrong kind, a file that cannot be read.
    """
    spelled = [_spelled_out(argument) for argument in arguments]
    try:
        values = parser().parse_args(spelled)
        groups = {name: options(**vars(values[name])) for name, options in GROUPS.items()}
        return Config(
            device=values.device, run_dir=values.run_dir, fresh=values.fresh, dry_run=values.dry_run, **groups
        )
    except (argparse.ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise _as_typed(_mistake(str(error)), arguments) from error
    except UserError as error:
        raise _as_typed(error, arguments) from None


def settings() -> dict[str, tuple[Any, Any]]:
    """Type and limits of every setting, by its dotted name."""
    found = {name: kind for name, kind in typed(Config).items() if name not in GROUPS}
    for group, options in GROUPS.items():
        found.update({f"{group}.{name}": kind for name, kind in typed(options).items()})
    return found


def _mistake(message: str) -> UserError:
    """What jsonargparse complains of, in our words."""
    known = settings()
    name = re.match(r'Parser key "([\w.]+)"', message)
    value = re.search(r"(?:Got|Given) value: (.*)", message, re.DOTALL)
    if name and name[1] in known:
        given = value[1] if value else ""
        what = f"{name[1]} is {shortened(given)}" if value else f"{name[1]} cannot be used"
        return UserError(what, remedy=remedy(given, *known[name[1]]))
    if flag := re.match(r"argument (--[\w.-]+): (.*)", message):
        why = "a value must follow it" if flag[2] == "expected one argument" else flag[2]
        return UserError(f"{flag[1]} cannot be used", why, HELP)
    if flags := re.match(r"unrecognized arguments: (\S*)", message):
        if not flags[1].startswith("-"):
            meant = "--config" if flags[1].endswith((".yaml", ".yml")) else "--data"
            return UserError(f"there is no option {flags[1]}", remedy=f"did you mean {meant} {flags[1]}?")
        options = [
            *ALIASES,
            *SWITCHES,
            "--config",
            "--help",
            "--run-dir",
            "--version",
            *(f"--{each}" for each in known),
        ]
        return UserError(f"there is no option {flags[1]}", remedy=near(flags[1].split("=")[0], options) or HELP)
    if inner := re.match(r"Group '([\w.]+)' does not accept option '(.*)'", message):
        return UserError(
            f"there is no setting {inner[1]}.{inner[2]}", remedy=near(f"{inner[1]}.{inner[2]}", known) or HELP
        )
    if outer := re.match(r"Option '(.*)' is not accepted", message):
        return UserError(f"there is no setting {outer[1]}", remedy=near(outer[1], known) or HELP)
    return UserError("the settings cannot be used", " ".join(message.split())[:500], HELP)


def _as_typed(error: UserError, arguments: Sequence[str]) -> UserError:
    """The same with the short forms of flags, where those were typed."""
    flags = {argument.partition("=")[0] for argument in arguments}
    for short, spelled in ALIASES.items():
        if short in flags:
            error.what = error.what.replace(spelled, short).replace(spelled[2:], short)
            error.why = error.why.replace(spelled, short)
    return error


def _spelled_out(argument: str) -> str:
    if argument in SWITCHES:
        return SWITCHES[argument]
    flag, equals, value = argument.partition("=")
    return ALIASES.get(flag, flag) + equals + value
