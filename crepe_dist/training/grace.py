"""Whether the time from being asked to stop to being killed is enough to save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crepe_dist.errors import UserError

if TYPE_CHECKING:
    from crepe_dist.training.loop import Loop

SAVE_SECONDS = 4.0  # for a save and the end of the process, unless writing the last state took longer


def check_grace(loop: Loop, step: float) -> None:
    """All ranks call it, before the first step.

    Args:
        step: seconds of one, which is finished first.

    Raises:
        UserError: on every rank, if ``safety.grace_s`` is given and is too short.
    """
    grace = loop.config.safety.grace_s
    if grace is None:
        return
    written = 0.0
    if loop.saver is not None:
        loop.saver.wait()
        written = loop.saver.seconds
    # A state may be in writing when it is asked, and comes first.
    save = max(SAVE_SECONDS, 2 * loop.world.broadcast(written, "seconds of a save"))
    if step + save > grace:
        raise UserError(
            f"safety.grace_s is {grace:g}, and stopping may take {step + save:.1f} s",
            f"a step takes {step:.1f} s, then saving up to {save:.1f} s: what is killed earlier loses the steps since "
            "the last save",
            "have the scheduler wait longer between SIGTERM and the kill, and set --safety.grace_s to that; or make "
            "steps shorter, by a smaller --data.batch_size or more processes",
            on_all_ranks=True,
        )
