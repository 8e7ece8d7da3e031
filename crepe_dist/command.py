"""How every command starts and ends: exit codes, a sentence for what a user can mend, and a report of all else."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Callable, NoReturn

from crepe_dist.distributed import crash_report
from crepe_dist.distributed.control import SIGNALS, Stopped
from crepe_dist.distributed.launch import detect
from crepe_dist.distributed.peer_loss import hosts, is_peer_gone
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.terminal import silence

OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
# A name that cannot be one.
OF_THE_NAME = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}


def run(main: Callable[[], None], interrupted: str = "interrupted") -> NoReturn:
    """Runs a command's ``main`` and exits as ``ExitCode`` says.

    Args:
        interrupted: what is said after Ctrl-C.
    """
    code: int = ExitCode.ERROR
    crash_report.expect(crash_report.Context())
    try:
        main()
        code = ExitCode.DONE
    except UserError as error:
        _say(str(error))
        code = error.code
    except MemoryError as error:
        _say(str(UserError("out of memory", str(error), "use smaller batches, or a machine with more memory")))
    except Stopped as stopped:
        # A launcher that ends the others when the first one has ended must not change the exit code.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if not stopped.on_all_ranks:
            _say(f"stopped: {stopped}")
        code = stopped.code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (`… | head`): not an error, and nothing more can be written.
        silence()
        code = ExitCode.DONE
    except Exception as error:
        if detect().size > 1 and is_peer_gone(error):
            where = f" on {', '.join(behind)}" if (behind := hosts.behind(error)) else ""
            _say(f"stopped because another process{where} ended or did not answer; if it left a message, that says why")
            code = ExitCode.PEER_GONE
        elif isinstance(error, OSError) and error.errno in OF_THE_DISK | OF_THE_NAME:
            name = error.filename if isinstance(error.filename, str) else "a file"
            remedy = "make room, or see to it that it may be written"
            if error.errno in OF_THE_NAME:
                remedy = "choose another name"
            _say(str(UserError(f"{name} cannot be used", error.strerror or str(error), remedy)))
        else:
            code = ExitCode.FAILURE
            _say(str(crash_report.unexpected(error, code)))
    sys.exit(code)


def _say(message: str) -> None:
    launch = detect()
    prefix = f"[rank {launch.rank}] " if launch.size > 1 else ""
    print(f"{prefix}{message}", file=sys.stderr, flush=True)
