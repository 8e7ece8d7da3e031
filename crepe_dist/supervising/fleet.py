"""The hosts and their agents: which ones answer, and when to retry the others."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

from crepe_dist.distributed.environment import allowed
from crepe_dist.distributed.hosts import Host
from crepe_dist.distributed.messages import Message
from crepe_dist.errors import UserError
from crepe_dist.supervising.link import Link

HELLO_SECONDS = 15.0
RETRY_SECONDS = 30.0  # between attempts at a host that does not answer
PING_SECONDS = 5.0
LEASE_SECONDS = 120.0  # without a ping for this long, the agent of a remote host ends its workers
LOCAL_ATTEMPTS = 3
# Without the last two, the loss of a host's power would go unnoticed for hours.
REMOTE = (
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
# Exit codes of a shell that cannot start a command; also those of our command if its working directory is missing.
NOT_STARTED = (126, 127)
ALIKE = "install the same checkout at the same path on every host, and create the current folder there"
# Errors of a host that only a person can fix: text of OpenSSH and Python, which is English in every locale.
REMEDIES = {
    "Permission denied": "let this user log in there by an agent or a key without a passphrase (`ssh-copy-id {host}`)",
    "Host key verification failed": "check and accept the host's key: run `ssh {host} true` once by hand",
    "Could not resolve hostname": "correct -H, or make the name resolve here, for instance in /etc/hosts",
    "No module named": ALIKE,
}


@dataclass
class _Member:
    host: Host
    link: Link | None = None
    next_try: float = 0.0
    attempts: int = 0  # since the last answer
    why: str = ""  # reason why the host does not answer


class Fleet:
    """All hosts of a training run.

    Args:
        hosts: the hosts in the order of ranks.
        remote, environment, cwd, deliver: as for ``Link``.
        grace: seconds that an agent gives its workers before it kills them.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        remote: Sequence[str],
        environment: Mapping[str, str],
        cwd: str,
        grace: float,
        deliver: Callable[[Link, Message | str], None],
    ) -> None:
        self._members = {host.name: _Member(host) for host in hosts}
        self._remote = remote
        self._environment = environment
        self._cwd = cwd
        self._grace = grace
        self._deliver = deliver
        self._next_ping = math.inf

    def ready(self) -> list[Host]:
        """Return the hosts that have answered, in the order of ranks."""
        return [member.host for member in self._members.values() if member.link and member.link.ready]

    def missing(self) -> dict[str, str]:
        """Map the names of the other hosts to the reason why they do not answer."""
        members = self._members.items()
        return {name: member.why for name, member in members if not (member.link and member.link.ready)}

    def trying(self) -> bool:
        """Return whether a first attempt is under way; retries of a remote host do not count."""
        links = [(member, member.link) for member in self._members.values() if member.link is not None]
        return any(not link.ready and (member.host.local or member.attempts <= 1) for member, link in links)

    def link(self, host: str) -> Link:
        link = self._members[host].link
        assert link is not None
        return link

    def tick(self, now: float) -> None:
        """Start the attempts that are due, end those that take too long, and ping the remote agents.

        Raises:
            UserError: the agent of this machine does not start.
        """
        for member in self._members.values():
            if member.link is None and now >= member.next_try:
                self._attempt(member)
            elif member.link and not member.link.ready and now >= member.link.began + HELLO_SECONDS:
                member.link.kill()
        if now >= self._next_ping:
            self._next_ping = now + PING_SECONDS
            for member in self._members.values():
                if member.link and member.link.ready and not member.host.local:
                    member.link.send({"kind": "ping", "lease": LEASE_SECONDS})

    def next_time(self) -> float:
        """Return the time of the next action of ``tick``."""
        times = [self._next_ping]
        for member in self._members.values():
            if member.link is None:
                times.append(member.next_try)
            elif not member.link.ready and member.link.process.poll() is None:
                times.append(member.link.began + HELLO_SECONDS)
        return min(times)

    def answered(self, link: Link) -> None:
        """Record the first message of an agent."""
        link.ready = True
        link.send({"kind": "grace", "seconds": self._grace})
        member = self._members[link.host]
        member.attempts = 0
        if not member.host.local:
            self._next_ping = 0.0

    def lost(self, link: Link, why: str, now: float) -> bool:
        """Record the loss of a link; return whether its agent had answered, in which case it is retried at once."""
        member = self._members[link.host]
        if member.link is not link:
            return False
        member.link, member.why = None, why
        member.next_try = now if link.ready or member.host.local else now + RETRY_SECONDS
        return link.ready

    def close(self) -> None:
        """End all agents; workers that still run get the grace period."""
        links = [member.link for member in self._members.values() if member.link is not None]
        for link in links:
            link.close()
            if not link.ready:
                link.kill()
        until = time.monotonic() + self._grace + 5
        for link in links:
            if not link.wait(max(0.0, until - time.monotonic())):
                link.kill()

    def _attempt(self, member: _Member) -> None:
        local = member.host.local
        member.attempts += 1
        if local and member.attempts > LOCAL_ATTEMPTS:
            raise UserError("the agent of this machine does not start", remedy="read its output above")
        # ssh needs our whole environment to log in, and does not pass it on.
        environment = allowed(self._environment) if local else self._environment
        try:
            member.link = Link(member.host.name, () if local else self._remote, environment, self._cwd, self._deliver)
        except OSError as error:
            what = "the agent of this machine" if local else f"--rsh {self._remote[0]}"
            raise UserError(
                f"{what} cannot be started",
                str(error),
                "give another --rsh" if not local else "make sure that Python can start processes here",
            ) from error


def mistake(host: str, code: int, last_line: str) -> UserError | None:
    """Return the error for a host whose agent has never answered; ``None`` if a retry may succeed.

    Args:
        code: exit code of ssh (or of --rsh), which passes on that of the command on the host.
        last_line: last line that it printed.
    """
    remedy = ALIKE if code in NOT_STARTED else next((REMEDIES[text] for text in REMEDIES if text in last_line), None)
    return UserError(f"{host} cannot be used", last_line, remedy.format(host=host)) if remedy else None
