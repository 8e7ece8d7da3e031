"""Supervisors of several nodes that run the ranks of one job. A launcher starts one supervisor on each node.

The supervisor of node 0 runs the elastic driver, and listens at ``MASTER_ADDR`` and ``MASTER_PORT``. The supervisors of
the other nodes connect to it, and start, poll, stop and kill the ranks of their nodes on request. Every request and
answer is authenticated with ``CREPE_DIST_SECRET`` (``handshake.py``). A request contains no command line: each
supervisor starts the command that its own user gave.

If the connection of a node is lost, the driver restarts the ranks without this node, unless the node connects again in
time. A supervisor that has lost node 0 stops its ranks, and connects again.
"""

import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from crepe_dist.distributed import endpoint as node0
from crepe_dist.distributed.caller_listener import CallerListener
from crepe_dist.distributed.channel import Channel, Schema, UnknownPeerError, int_check, string_check
from crepe_dist.distributed.endpoint import ADDRESS_ENV, PORT_ENV, Endpoint
from crepe_dist.distributed.handshake import SECRET_ENV, AuthenticatedCaller, LocalProcess
from crepe_dist.distributed.launch import NUM_THREADS_ENV
from crepe_dist.distributed.signals import SUPERVISION_ID_ENV, SignalHandler, StepAction, StopRequested
from crepe_dist.distributed.tcp_group import SOCKET_OPTIONS
from crepe_dist.elastic.cluster import MAX_PROCESSES, Cluster, NodeLostError, Slot, print_line
from crepe_dist.elastic.process import LINE_BYTES, MAX_POLL_BYTES, WorkerProcess
from crepe_dist.elastic.worker_group import KILL_SECONDS
from crepe_dist.errors import ExitCode, UserError
from crepe_dist.formatting import timestamp
from crepe_dist.version import __version__

POLL_SECONDS = 0.2  # Time limit of one poll for requests, after which a supervisor looks for signals.
# Variables that node 0 sets for the ranks of other nodes.
VARIABLES = {"RANK", "WORLD_SIZE", ADDRESS_ENV, PORT_ENV, SECRET_ENV, SUPERVISION_ID_ENV, NUM_THREADS_ENV}
START, POLL, STOP, KILL, END = "start", "poll", "stop", "kill", "end"
MAX_ANSWER_BYTES = 8 * (MAX_POLL_BYTES + LINE_BYTES)  # A byte of a line may need six bytes in JSON.

_is_count = int_check(0, 1 << 62)


def _are_variables(value: Any) -> bool:
    is_text = string_check(255)
    return isinstance(value, dict) and value.keys() <= VARIABLES and all(map(is_text, value.values()))


def _are_lines(value: Any) -> bool:
    streams = [["stdout", str], ["stderr", str]]
    return isinstance(value, list) and all(
        isinstance(line, list) and [*line[:1], *map(type, line[1:])] in streams for line in value
    )


HELLO_SCHEMA: Schema = {"host": string_check(255), "processes": int_check(1, MAX_PROCESSES)}
# A request of node 0. The rank counts the ranks of the node. END has an exit code in the place of the rank.
REQUEST_SCHEMA: Schema = {
    "method": lambda value: value in (START, POLL, STOP, KILL, END),
    "rank": _is_count,
    "number": _is_count,
    "variables": _are_variables,
}
# The answer to POLL: the result of ``WorkerProcess.poll``, and whether the supervisor will disconnect after it.
ANSWER_SCHEMA: Schema = {
    "number": _is_count,
    "lines": _are_lines,
    "code": lambda value: value is None or int_check(-255, 255)(value),
    "is_suspended": lambda value: isinstance(value, bool),
    "is_leaving": lambda value: isinstance(value, bool),
}


class _Node:
    """Connection of node 0 to the supervisor of another node.

    Attributes:
        host: Host name of the node.
        is_gone: True if the supervisor has disconnected, does not answer, or was asked to stop.
        heard_at: Time of the last answer.
        answers: Results of ``WorkerProcess.poll`` that have arrived, by the number of the request.
        pending: Numbers of the requests that have not been answered.
    """

    def __init__(self, caller: AuthenticatedCaller) -> None:
        self.host: str = caller.message["host"]
        self.is_gone = False
        self.heard_at = time.monotonic()
        self.answers: dict[int, tuple[list[Any], int | None, bool]] = {}
        self.pending: set[int] = set()
        self._number = 0
        self._channel = caller.channel

    def request(self, method: str, rank: int, variables: Mapping[str, str] | None = None) -> int:
        """Send a request, and return its number."""
        self._number += 1
        if method == POLL:
            self.pending.add(self._number)
        self._channel.send({"method": method, "rank": rank, "number": self._number, "variables": variables or {}})
        return self._number

    def receive(self) -> None:
        """Receive the answers that have arrived."""
        while not self.is_gone and self._channel.is_readable():
            try:
                answer = self._channel.receive(ANSWER_SCHEMA, max_bytes=MAX_ANSWER_BYTES)
            except (OSError, ValueError):
                self.close()
                return
            self.heard_at = time.monotonic()
            if answer["number"] in self.pending:
                self.pending.remove(answer["number"])
                self.answers[answer["number"]] = answer["lines"], answer["code"], answer["is_suspended"]
            self.is_gone = answer["is_leaving"]

    def take(self, number: int) -> tuple[list[Any], int | None, bool] | None:
        """Return the answer to a request; ``None`` if it has not arrived. Raise ``NodeLostError`` if it never will."""
        if number not in self.answers and self.is_gone:
            raise NodeLostError
        return self.answers.pop(number, None)

    def close(self) -> None:
        self.is_gone = True
        self._channel.peer.close()


class NodeCluster(Cluster):
    """Nodes of a job: this node, which is node 0, and the nodes whose supervisors have connected.

    Args:
        endpoint: Address at which the other supervisors connect.
        own: This supervisor.
        processes: Number of ranks of each node.
        seconds: Time limit in seconds for the return of a lost node.
    """

    poll_seconds = POLL_SECONDS

    def __init__(self, endpoint: Endpoint, own: LocalProcess, processes: int, seconds: float) -> None:
        super().__init__()
        self._endpoint, self._own, self._num_processes, self._seconds = endpoint, own, processes, seconds
        self._nodes: dict[int, _Node] = {}
        self._lost_at: dict[int, float] = {}
        self._allocated: list[_Node] = []
        self._listener = CallerListener(node0.listen_as_rank0(endpoint, own), own, range(1, own.size), HELLO_SCHEMA)
        self._callers = iter(self._listener)

    def pause(self, seconds: float) -> None:
        """Accept connections and answers of the other nodes, at least for the given time."""
        end = time.monotonic() + seconds
        for caller in self._callers:
            if caller is not None:
                self._admit(caller)
            elif time.monotonic() >= end:
                break
        for node in self._nodes.values():
            node.receive()
        self._remove_gone_nodes()

    def _remove_gone_nodes(self) -> None:
        for rank, node in list(self._nodes.items()):
            if node.is_gone:
                del self._nodes[rank]
                self._lost_at[rank] = time.monotonic()
                self.log(f"node {rank} on {node.host} has disconnected")

    def _admit(self, caller: AuthenticatedCaller) -> None:
        """Admit the supervisor of another node, or send it an error."""
        rank, size, processes = caller.rank, caller.size, caller.message["processes"]
        lines, code = None, ExitCode.ERROR
        if (size, processes) != (self._own.size, self._num_processes):
            lines = (
                f"node 0 is one of {self._own.size} nodes with {self._num_processes} processes each",
                f"node {rank} is one of {size} nodes with {processes} processes each",
                "pass the same --nnodes and -np on all nodes",
            )
        elif rank in self._nodes:  # The connection of the lost supervisor may still be open.
            lines, code = (f"node 0 still has a connection to node {rank}", "", ""), ExitCode.PEER_GONE
        caller.channel.send(node0.make_verdict(lines, code) if lines else node0.make_verdict())
        if lines:
            caller.channel.peer.close()
            if code == ExitCode.ERROR:  # The supervisor does not try again.
                self.log(f"node {rank} on {caller.message['host']} was refused: {lines[1]}, but {lines[0]}")
            return
        for option in SOCKET_OPTIONS:
            caller.channel.peer.setsockopt(*option)
        if not self._lost_at.pop(rank, 0.0):
            node0.warn_without_secret(self._own, [caller.host])
        self._nodes[rank] = _Node(caller)
        self.log(f"node {rank} on {caller.message['host']} has connected")

    def free_slots(self) -> int:
        return self._num_processes * (1 + len(self._nodes))

    def allocate(self, processes: int) -> list[Slot]:
        self._allocated = [node for _, node in sorted(self._nodes.items())]
        super().allocate(self._num_processes)
        hosts = [self._endpoint.host, *(node.host for node in self._allocated)]
        return [Slot(host, None) for host in hosts for _ in range(self._num_processes)]

    def has_changed(self) -> bool:
        return self._allocated != [node for _, node in sorted(self._nodes.items())]

    def seconds_for_return(self) -> float:
        last = max(self._lost_at.values(), default=-math.inf)
        return max(0.0, last + self._seconds - time.monotonic())

    def shortage(self, processes: str, slots: int) -> UserError:
        missing = [str(rank) for rank in range(1, self._own.size) if rank not in self._nodes]
        refused = self._listener.refused_host
        return UserError(
            f"{len(missing)} of {self._own.size} nodes did not connect in time",
            f"node {', '.join(missing)} did not connect to node 0 at {self._endpoint}"
            + f"; a process on {refused} has a different {SECRET_ENV} and was refused" * bool(refused),
            f"check the output of their supervisors, install the same crepe_dist and set the same {SECRET_ENV} on all "
            f"nodes; {node0.SECONDS_ENV} sets the time limit",
            code=ExitCode.PEER_GONE,
        )

    def call(self, rank: int, method: str, *arguments: Any) -> Any:
        place, rank = divmod(rank, self._num_processes)
        if place == 0:
            if method == START:
                command, folder, variables, version = arguments
                arguments = command, folder, derive_secret(variables, self._own), version
            return super().call(rank, method, *arguments)
        node = self._allocated[place - 1]
        return partial(node.take, node.request(method, rank, arguments[2] if method == START else None))

    def get_result(self, handle: Any) -> Any:
        return handle() if isinstance(handle, partial) else handle

    def release(self) -> None:
        for node in self._allocated:
            if node.pending and time.monotonic() - node.heard_at > KILL_SECONDS:
                node.close()  # The supervisor is suspended. If it is resumed, it stops its ranks and connects again.
                continue
            node.pending.clear()
            for rank in range(self._num_processes):
                node.request(KILL, rank)
        self._allocated = []
        self._remove_gone_nodes()
        super().release()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Ask the other supervisors to end with the exit code of this supervisor."""
        if error is None or isinstance(error, (UserError, StopRequested)):
            for node in self._nodes.values():
                node.request(END, error.code if error else ExitCode.DONE)


def derive_secret(variables: Mapping[str, str], own: LocalProcess) -> dict[str, str]:
    """Derive the secret of the ranks from the secret of the supervisors, which never passes the network."""
    return {**variables, SECRET_ENV: own.derive(variables.get(SECRET_ENV, "")).secret.hex()}


@dataclass
class NodeSupervisor:
    """Supervisor of a node other than node 0.

    Args:
        endpoint: Address of node 0.
        own: This supervisor.
        processes: Number of ranks of this node.
        arguments: Command-line arguments of Python, for each rank.
        control: Signal handler that receives requests to stop.
        grace: Seconds between the request to stop and the kill of a rank that has not exited.
    """

    endpoint: Endpoint
    own: LocalProcess
    processes: int
    arguments: Sequence[str]
    control: SignalHandler
    grace: float

    def __post_init__(self) -> None:
        self._ranks = [WorkerProcess() for _ in range(self.processes)]
        self._running: set[int] = set()  # Ranks whose exit codes have not been reported.

    def run(self) -> None:
        """Serve node 0 until the job ends, and connect again after a lost connection.

        Raises:
            UserError: Node 0 does not answer, or the job has failed.
            StopRequested: This supervisor or the supervisor of node 0 was asked to stop.
        """
        try:
            while True:
                if self.control.requested_action is StepAction.STOP:
                    raise self.control.stop_exception()
                channel = node0.retry(self.endpoint, self.own, self._join)
                print_line(f"{timestamp()} [{self.own}] connected to node 0 at {self.endpoint}", "stderr")
                with channel.peer, self.control.defer():
                    code = self._serve(channel)
                if code is not None:
                    break
                print_line(f"{timestamp()} [{self.own}] lost node 0; stopping the processes of this node", "stderr")
                with self.control.defer():
                    self._stop_ranks()
        finally:
            for process in self._ranks:
                process.kill()
        if code in (ExitCode.STOPPED, ExitCode.INTERRUPTED):
            raise StopRequested("node 0 was asked to stop", code)
        if code:
            raise UserError(f"node 0 has ended the job with exit code {code}", remedy="see its output", code=code)

    def _join(self, address: str) -> Channel:
        """Connect to node 0. Raise ``UnknownPeerError`` if this node must try again."""
        hello = {"host": socket.gethostname(), "processes": len(self._ranks)}
        try:
            channel, _ = node0.report_to_rank0(self.endpoint, address, self.own, hello)
        except UserError as error:
            if error.code == ExitCode.PEER_GONE:
                raise UnknownPeerError(error.what) from error
            raise
        for option in SOCKET_OPTIONS:
            channel.peer.setsockopt(*option)
        return channel

    def _serve(self, channel: Channel) -> int | None:
        """Serve the requests of node 0. Return the exit code of the job, or ``None`` if the connection is lost."""
        kill_at = math.inf
        while True:
            if channel.is_readable(POLL_SECONDS):
                try:
                    request = channel.receive(REQUEST_SCHEMA)
                except (OSError, ValueError):
                    return None
                if request["method"] == END:
                    return int(request["rank"])
                if request["rank"] >= len(self._ranks):
                    return None
                self._do(request, channel, is_leaving=kill_at < math.inf)
            now = time.monotonic()
            if self.control.requested_action is StepAction.STOP:
                if kill_at == math.inf:
                    kill_at = now + self.grace
                    for process in self._ranks:
                        process.stop()
                if now > kill_at:
                    for process in self._ranks:
                        process.kill()
                if not self._running or now > kill_at + KILL_SECONDS:
                    raise self.control.stop_exception()

    def _do(self, request: dict[str, Any], channel: Channel, *, is_leaving: bool) -> None:
        """Carry out a request of node 0 for a rank."""
        rank, process = request["rank"], self._ranks[request["rank"]]
        if request["method"] == START:
            process.start(self.arguments, os.getcwd(), derive_secret(request["variables"], self.own), __version__)
            self._running.add(rank)
        elif request["method"] == STOP:
            process.stop()
        elif request["method"] == KILL:
            process.kill()
        else:
            lines, code, is_suspended = process.poll()
            self._running -= {rank} if code is not None else set()
            answer = {"number": request["number"], "lines": lines, "code": code, "is_suspended": is_suspended}
            channel.send({**answer, "is_leaving": is_leaving and not self._running})

    def _stop_ranks(self) -> None:
        """Ask the ranks to stop, kill them after the grace, and print their output."""
        for rank in self._running:
            self._ranks[rank].stop()
        kill_at = time.monotonic() + self.grace
        while self._running:
            for rank in list(self._running):
                if time.monotonic() > kill_at:
                    self._ranks[rank].kill()
                lines, code, _ = self._ranks[rank].poll()
                for stream, line in lines:
                    print_line(line, stream)
                self._running -= {rank} if code is not None else set()
            time.sleep(POLL_SECONDS)
