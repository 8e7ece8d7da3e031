"""YAML files of settings, which may come from elsewhere: mappings of plain values, and nothing more.

jsonargparse, left alone, waits for a FIFO, imports what a group's ``class_path`` names, and prints what aliases of
aliases expand to.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, get_loader, set_loader

from crepe_dist.errors import UserError
from crepe_dist.files import read_bytes
from crepe_dist.settings.limits import near

MAX_BYTES = 1 << 18
MAX_EVENTS = 10_000
MAX_DEPTH = 8
NO_SETTINGS = ("class_path", "init_args", "dict_kwargs", "config", "print_config")  # jsonargparse's own
PLAIN = (str, int, float, bool, type(None))
_EVENTS = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_load_yaml = get_loader("yaml")


def load(text: str) -> Any:
    """The value of some YAML, after a look at its structure; what builds the value recurses and follows aliases.

    Raises:
        yaml.YAMLError: not YAML, or with anchors, aliases or tags, nested too deep, or too long.
    """
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"longer than {MAX_BYTES:,} characters")
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_EVENTS)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if getattr(event, "anchor", None):  # an alias has one too
            raise yaml.YAMLError(f"an anchor or alias in line {line}: write out what is meant")
        if tag := getattr(event, "tag", None):
            raise yaml.YAMLError(f"the tag {tag[:40]} in line {line}: plain values only")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or count > MAX_EVENTS:
            raise yaml.YAMLError("deeper or more than settings are")
    return _load_yaml(text)


set_loader("yaml", load, (yaml.YAMLError,))


class ConfigFile(ActionConfigFile):
    """``--config FILE``: settings, and groups of settings, with plain values or lists of them.

    Raises:
        UserError: no regular file, too long, not UTF-8, not YAML, or something else than that.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        groups = {action.dest.split(".")[0] for action in parser._actions if "." in action.dest}
        settings = read(Path(values), groups)
        # No file is called like this, so it is taken for what it says.
        super().__call__(parser, cfg, "\n" + json.dumps(settings), option_string)


def read(path: Path, groups: Collection[str]) -> dict[str, Any]:
    """The settings in a file, of which some are groups; see ``ConfigFile``."""
    try:
        settings = load(read_bytes(path, MAX_BYTES).decode("utf-8"))
        _check(settings, groups)
    except UnicodeDecodeError as error:
        raise UserError(
            f"the settings in {path} cannot be used", "they are not UTF-8", "save the file as UTF-8"
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or " ".join(str(error).split())
        raise UserError(f"the settings in {path} cannot be used", why, "configs/ has files to begin with") from error
    return dict(settings or {})


def _check(settings: Any, groups: Collection[str]) -> None:
    if settings is None:
        return
    if not isinstance(settings, dict):
        raise ValueError("it holds no settings of the form `name: value`")
    for name, value in settings.items():
        # A name where a group of settings belongs would be imported.
        if isinstance(value, dict) and name not in groups:
            raise UserError(
                f"there is no group of settings {str(name)[:80]}",
                f"the groups are {', '.join(sorted(groups))}",
                near(str(name), groups) or "configs/ has files to begin with",
            )
        if name in groups and not isinstance(value, dict):
            raise ValueError(f"{name} is a group of settings, and holds none here")
        for key, one in value.items() if isinstance(value, dict) else [(name, value)]:
            if key in NO_SETTINGS:
                raise ValueError(f"{key} is no setting")
            if not isinstance(key, str) or not all(isinstance(each, PLAIN) for each in _listed(one)):
                raise ValueError(f"{str(key)[:80]} is no plain value")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
