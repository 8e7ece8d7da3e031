"""Check of the time that a scheduler leaves between SIGTERM and SIGKILL."""

from __future__ import annotations

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.errors import UserError
from crepe_dist.training.state_saver import Saver

SAVE_SECONDS = 4.0  # least time to allow for a save and the end of the process


def check_grace(grace: float | None, step: float, saver: Saver, ranks: Collectives) -> None:
    """Check before the first step that a request to stop leaves enough time to save; every rank calls it.

    Args:
        grace: ``safety.grace_s``, in seconds.
        step: seconds per step; a step in progress is finished first.
        saver: saver of this rank, which knows how long its last save took.

    Raises:
        UserError: on every rank, if ``safety.grace_s`` is given and is too short.
    """
    if grace is None:
        return
    saver.wait()
    # Twice: a save may already be in progress when the request arrives.
    save = max(SAVE_SECONDS, 2 * ranks.broadcast(saver.seconds, "seconds of a save"))
    if step + save > grace:
        raise UserError(
            f"safety.grace_s is {grace:g}, but stopping may take {step + save:.1f} s",
            f"a step takes {step:.1f} s and saving up to {save:.1f} s; a process killed earlier loses the steps since "
            "its last save",
            "configure more time between SIGTERM and SIGKILL in the scheduler, and set --safety.grace_s to that; or "
            "shorten the steps by a smaller --data.batch_size or more processes",
            on_all_ranks=True,
        )
