"""How every command starts and ends: exit codes, and errors without tracebacks for what a user can mend."""

from __future__ import annotations

import os
import sys
from typing import Callable, NoReturn

from crepe_dist.cluster.launch import detect
from crepe_dist.errors import PeerGone, UserError

# Texts of MXNetError by which a rank learns that a peer is gone (horovod/common/common.h; Gloo's socket errors).
PEER_GONE = (
    "Horovod has been shut down",
    "Connection reset by peer",
    "Connection closed by peer",
    "Broken pipe",
    "Read error",
    "Write error",
)


def run(main: Callable[[], None], interrupted: str = "interrupted") -> NoReturn:
    """Runs a command's ``main`` and exits: 0 done, 1 an error, 130 interrupted (which is said as given)."""
    code = 1
    try:
        main()
        code = 0
    except UserError as error:
        launch = detect()
        prefix = f"[rank {launch.rank}] " if launch.size > 1 else ""
        print(f"{prefix}{error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output has left (`… | head`): not an error, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        launch = detect()
        gone = isinstance(error, PeerGone) or any(text in str(error) for text in PEER_GONE)
        if launch.size == 1 or not gone:
            raise
        print(
            f"[rank {launch.rank}] stopped because another process ended; its message says why",
            file=sys.stderr,
            flush=True,
        )
    sys.exit(code)
