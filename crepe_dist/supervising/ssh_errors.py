"""Why a host cannot be used where only a person can change it, so that to try again or to wait is no use."""

from __future__ import annotations

from crepe_dist.errors import UserError

# Exit codes of a shell that cannot start what it is told to, and with which our command ends without its folder.
NOT_STARTED = (126, 127)
ALIKE = "every host needs the same checkout, installed at the same path, and the folder in which this was started"
# What OpenSSH and Python say, in English in whatever language the rest is.
REMEDIES = {
    "Permission denied": "let this user log in there by a key without a passphrase, or an agent (`ssh-copy-id {host}`)",
    "Host key verification failed": "look at the host's key and accept it: `ssh {host} true`, once by hand",
    "Could not resolve hostname": "correct -H, or make the name known here, for instance in /etc/hosts",
    "No module named": ALIKE,
}


def mistake(host: str, code: int, said: str) -> UserError | None:
    """The error for an attempt to start the agent on a host that has never answered; ``None``: it may yet answer.

    Args:
        code: exit code of ssh, or what --rsh names instead, which is that of the command on the host.
        said: its last words.
    """
    remedy = ALIKE if code in NOT_STARTED else next((REMEDIES[text] for text in REMEDIES if text in said), None)
    if remedy is None:
        return None
    return UserError(f"{host} cannot be used", said, remedy.format(host=host))
