"""Import everything that commands without extras need, and print the imported modules."""

import sys

from crepe_dist import cli

if __name__ == "__main__":
    for name in cli.COMMANDS:
        if name != "train":
            cli.command_class(name)
    print(*sys.modules)
