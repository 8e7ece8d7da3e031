"""Worker of the supervisor in place of a training: ``python worker.py ACTION FOLDER``.

The worker writes notes for the test into the folder, one of which counts the starts of each rank. The module imports
only the standard library, because it starts often.
"""

import os
import signal
import sys
import time
from pathlib import Path

RANK = int(os.environ["RANK"])


def note(name: str, text: object = "") -> None:
    (FOLDER / name).write_text(str(text))


def suspend() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def print_to_both_streams() -> None:
    print("out", RANK)
    print("[rank 9] own", file=sys.stderr)


def print_bytes_and_lines() -> None:
    sys.stdout.buffer.write(b"\xff" * 20000 + b"\n")
    sys.stdout.flush()
    for number in range(50_000):
        print(number, "x" * 50)


def fail() -> None:
    sys.exit(70)


def mistake() -> None:
    sys.exit(1)


def mistake_of_one() -> None:
    time.sleep(1000 if RANK == 0 else 0)
    mistake()


def suspend_once() -> None:
    if START == 0:
        suspend()


def suspend_or_fail_once() -> None:
    if START == 0:
        suspend() if RANK == 0 else fail()


def hang_until_a_watchdog_kills() -> None:
    """Do as rank 0's watchdog does: kill the other rank, and exit with the code of a hang."""
    if START == 0:
        note(f"pid-{RANK}", os.getpid())
        while RANK == 1 or not (FOLDER / "pid-1").exists():
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(int((FOLDER / "pid-1").read_text()), signal.SIGKILL)
        time.sleep(0.2)
        sys.exit(76)


def kill_itself_once() -> None:
    if START == 0 and RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if START == 0:
        sys.exit(69)


def wait_for_the_end() -> None:
    note("up", os.getpid())
    while not (FOLDER / "end").exists():
        time.sleep(0.05)


def stop_on_request() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    note(f"up-{RANK}", os.getpid())
    time.sleep(1000)


def ignore_requests() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(f"up-{RANK}")
    time.sleep(1000)


def note_requests() -> None:
    signal.signal(signal.SIGTERM, lambda *_: note("asked"))
    note(f"up-{RANK}")
    while True:
        time.sleep(1)


def note_launcher_variables() -> None:
    note(f"seen-{RANK}", [name for name in os.environ if name.startswith(("HOROVOD", "OMPI"))])


if __name__ == "__main__":
    FOLDER = Path(sys.argv[2])
    START = len(list(FOLDER.glob(f"start-*-{RANK}")))
    note(f"start-{START}-{RANK}")
    globals()[sys.argv[1]]()
