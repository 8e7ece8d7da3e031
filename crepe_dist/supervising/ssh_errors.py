"""Errors of a host that only a person can fix, so that a retry is useless."""

from __future__ import annotations

from crepe_dist.errors import UserError

# Exit codes of a shell that cannot start a command; also those of our command if its working directory is missing.
NOT_STARTED = (126, 127)
ALIKE = "install the same checkout at the same path on every host, and create the current folder there"
# Text in the messages of OpenSSH and Python, which are English in every locale.
REMEDIES = {
    "Permission denied": "let this user log in there by an agent or a key without a passphrase (`ssh-copy-id {host}`)",
    "Host key verification failed": "check and accept the host's key: run `ssh {host} true` once by hand",
    "Could not resolve hostname": "correct -H, or make the name resolve here, for instance in /etc/hosts",
    "No module named": ALIKE,
}


def mistake(host: str, code: int, last_line: str) -> UserError | None:
    """Return the error for a host whose agent has never answered; ``None`` if a retry may succeed.

    Args:
        code: exit code of ssh (or of --rsh), which passes on that of the command on the host.
        last_line: last line that it printed.
    """
    remedy = ALIKE if code in NOT_STARTED else next((REMEDIES[text] for text in REMEDIES if text in last_line), None)
    if remedy is None:
        return None
    return UserError(f"{host} cannot be used", last_line, remedy.format(host=host))
