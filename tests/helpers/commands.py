"""The commands of the package, and the parser of each, built once."""

from __future__ import annotations

from functools import cache

from crepe_dist import cli
from crepe_dist.settings.flags import Parser

COMMANDS = sorted(cli.COMMANDS)


@cache
def parser_of(name: str) -> Parser:
    return cli.parser_of(name)
