"""Code that every command runs at its start and end: early signal handlers, exit codes and error messages."""

import errno
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from crepe_dist import invocation
from crepe_dist.errors import SIGNALS, ExitCode, PeerLostError, UserError, is_memory_error

# Remedies for errors of files and folders, by error number.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
REMEDIES = {
    **dict.fromkeys(DISK, "free some space, or change the permissions"),
    **dict.fromkeys(NAMES, "choose another name"),
    errno.EIO: "check the disk; dmesg shows its errors",
}


def end_on_signals() -> None:
    """Install signal handlers that end this process with a message and the exit code of a stopped command.

    These handlers are active until the command installs its own handlers.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    os.write(2, f"stopped by {name} before the command started\n".encode())
    os._exit(ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED)


def run(main: Callable[[], None], interrupted: str = "interrupted") -> NoReturn:
    """Run the ``main`` of a command, and exit with an ``ExitCode``.

    Args:
        interrupted: Message after Ctrl-C, unless ``KeyboardInterrupt`` has a message.
    """
    # Imported here because the signal handlers must be installed before these slow imports.
    from crepe_dist.distributed.signals import StopRequested
    from crepe_dist.formatting import timestamp

    code: int = ExitCode.ERROR
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # For terminals without Unicode, and for lone surrogates.
    try:
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
        main()
        code = ExitCode.DONE
    except UserError as error:
        _print_error(str(error))
        code = error.code
    except StopRequested as stopped:
        # When the first process ends, some launchers send a signal to the other processes. This signal must not change
        # their exit codes.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if not stopped.on_all_ranks:
            _print_error(f"stopped: {stopped}")
        code = stopped.code
    except KeyboardInterrupt as error:
        print(str(error) or interrupted, file=sys.stderr)
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The program that reads the output has closed the pipe (`… | head`). This is not an error.
        silence_stdout()
        code = ExitCode.DONE
    except PeerLostError as error:
        _print_error(
            f"stopped because another process ended or did not answer ({error}), at {timestamp()}; see the messages of "
            "that process. "
            "Run the same command again to resume"
        )
        code = ExitCode.PEER_GONE
    except Exception as error:
        if is_memory_error(error):
            _print_error(
                str(UserError("out of memory", str(error), "use smaller batches, or a machine with more memory"))
            )
        elif isinstance(error, OSError) and error.errno in REMEDIES:
            name = error.filename if isinstance(error.filename, str) else "a file"
            _print_error(str(UserError(f"{name} cannot be used", error.strerror or str(error), REMEDIES[error.errno])))
        else:
            code = ExitCode.FAILURE
            traceback.print_exc()
            summary = f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
            _print_error(
                str(
                    UserError(
                        f"unexpected failure: {summary}",
                        "crepe_dist or one of its libraries has a bug",
                        f"run {invocation.command_line('doctor')}; if it finds no problem, open an issue",
                    )
                )
            )
    sys.exit(code)


def _print_error(message: str) -> None:
    from crepe_dist.distributed.launch import read_launcher_env

    launch = read_launcher_env()
    prefix = f"[rank {launch.rank}] " if launch.size > 1 else ""
    print(f"{prefix}{message}", file=sys.stderr, flush=True)


def silence_stdout() -> None:
    """Redirect standard output to ``/dev/null``. Otherwise, the flush at exit would raise ``BrokenPipeError``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
