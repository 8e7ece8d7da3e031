"""Start ``crepe`` with these arguments, and print the imported modules at the end."""

import sys

from crepe_dist.__main__ import start

if __name__ == "__main__":
    sys.argv[0] = "crepe"
    try:
        start()
    finally:
        print("imported:", *sorted(sys.modules))
