"""Reader of YAML files of settings. The files may be untrusted, so only plain values, lists and mappings are read."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import yaml

from crepe_dist.errors import UserError
from crepe_dist.files.json_file import MAX_DIGITS
from crepe_dist.files.safe_read import read_bytes

MAX_BYTES = 1 << 18  # Maximum size of a file of settings, in bytes.
MAX_EVENTS = 10_000  # Maximum number of parser events: about one for each value, and two for each list or mapping.
MAX_DEPTH = 8  # Maximum nesting depth of lists and mappings.


class _SafeLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.1 loader that reads dates as strings. It also accepts the number syntax of YAML 1.2, such as 1e-3."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        letter: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:timestamp"]
        for letter, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _number(construct: Callable[[Any, Any], Any], loader: _SafeLoader, node: yaml.ScalarNode) -> Any:
    """Construct a number, and reject numbers with too many characters.

    Python raises an error when it prints a very long hexadecimal integer, or converts a very long sexagesimal number to
    a float.
    """
    if len(node.value) > MAX_DIGITS:
        raise yaml.YAMLError(f"a number of {len(node.value):,} characters in line {node.start_mark.line + 1}")
    return construct(loader, node)


_SafeLoader.add_constructor("tag:yaml.org,2002:int", partial(_number, yaml.SafeLoader.construct_yaml_int))
_SafeLoader.add_constructor("tag:yaml.org,2002:float", partial(_number, yaml.SafeLoader.construct_yaml_float))


def load(text: str) -> Any:
    """Parse YAML after a check of its structure.

    The check is necessary because PyYAML parses nested values recursively and expands aliases: a small file could
    overflow the stack or exhaust the memory.

    Raises:
        yaml.YAMLError: The YAML is invalid, has anchors, aliases or tags, is nested too deeply, or has too many values
            or a long number.
        ValueError: A value looks like a number and cannot be converted.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_SafeLoader)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if getattr(event, "anchor", None):  # Both anchors and aliases have this attribute.
            raise yaml.YAMLError(f"an anchor or alias in line {line}: write out the value instead")
        if tag := getattr(event, "tag", None):
            raise yaml.YAMLError(f"the tag {tag[:40]} in line {line}: only plain values are allowed")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or count > MAX_EVENTS:
            raise yaml.YAMLError("nested too deeply, or too many values")
    return yaml.load(text, _SafeLoader)


def read(path: Path) -> dict[str, Any]:
    """Read a file of settings into a mapping."""
    try:
        settings = load(read_bytes(path, MAX_BYTES).decode("utf-8"))
        if settings is None:
            return {}
        if not isinstance(settings, dict):
            raise ValueError("it has no settings of the form `name: value`")
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or " ".join(str(error).split())
        raise UserError(f"the settings in {path} cannot be used", why, "start from a file in configs/") from error
    return settings
