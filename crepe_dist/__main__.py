"""The same as the console command: `python -m crepe_dist COMMAND`."""

from crepe_dist.cli import start

if __name__ == "__main__":
    start()
