"""Check of the time that a scheduler leaves between asking to stop and killing."""

from __future__ import annotations

from crepe_dist.distributed.collectives import Collectives
from crepe_dist.errors import UserError
from crepe_dist.training.state_saver import Saver

SAVE_SECONDS = 4.0  # for a save and the end of the process, unless writing the last state took longer


def check_grace(grace: float | None, step: float, saver: Saver, ranks: Collectives) -> None:
    """Check before the first step that a stop leaves time to save; every rank calls it.

    Args:
        grace: ``safety.grace_s``, in seconds.
        step: seconds of a step, which is finished first.
        saver: has perhaps written a state, which tells how long that takes.

    Raises:
        UserError: on every rank, if ``safety.grace_s`` is given and is too short.
    """
    if grace is None:
        return
    saver.wait()
    # A state may be in writing when it is asked, and comes first.
    save = max(SAVE_SECONDS, 2 * ranks.broadcast(saver.seconds, "seconds of a save"))
    if step + save > grace:
        raise UserError(
            f"safety.grace_s is {grace:g}, and stopping may take {step + save:.1f} s",
            f"a step takes {step:.1f} s, then saving up to {save:.1f} s: what is killed earlier loses the steps since "
            "the last save",
            "have the scheduler wait longer between SIGTERM and the kill, and set --safety.grace_s to that; or make "
            "steps shorter, by a smaller --data.batch_size or more processes",
            on_all_ranks=True,
        )
