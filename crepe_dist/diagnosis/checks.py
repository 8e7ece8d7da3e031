"""What the facts mean: a function a line of the diagnosis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from crepe_dist.diagnosis.inventory import FOLDERS, Facts
from crepe_dist.diagnosis.outcome import Check
from crepe_dist.distributed import cuda, horovod_build
from crepe_dist.errors import UserError
from crepe_dist.machine import PACKAGES
from crepe_dist.wording import counted, listed, size

INSTALL = "install again with `uv sync` (without uv see docs/install.md)"
PYTHONS = ((3, 9), (3, 11))
NUMPY_TOO_NEW = (1, 24)
# The paper's small network: 45 MB of parameters; with Adam a saved state is three times as much, and two are kept.
GRADIENT_BYTES = 46_000_000
RUN_BYTES = 500_000_000
PROCESS_BYTES = 600_000_000  # of the paper's small network with batches of 64, as measured
OPEN_FILES = 1024
PROCESSES = 1024


def checks(facts: Facts) -> list[Check]:
    """In the order in which they are shown."""
    lines = [
        versions(facts),
        cuda_libraries(facts),
        mxnet(facts),
        horovod(facts),
        launcher(facts),
        Check("system", facts["machine"]["system"]),
        Check("processor", facts["machine"]["processor"]),
        cores(facts),
        threads(facts),
        memory(facts),
        *gpus(facts),
        driver(facts),
        kernels(facts),
        Check("precision", "; ".join(f"{name}: {each}" for name, each in facts["mxnet"].get("plans", {}).items())),
        *folders(facts),
        shared_memory(facts),
        limits(facts),
        hostname(facts),
    ]
    return [line for line in lines if line.shows]


def versions(facts: Facts) -> Check:
    names = ("crepe_dist", "Python", *PACKAGES)
    found = facts["machine"]
    line = Check("versions", ", ".join(f"{name} {found[name]}" for name in names if name in found))
    low, high = PYTHONS
    if not low <= _version(found["Python"]) <= high:
        return replace(
            line,
            level="problem",
            what=f"Python {found['Python']} is not one of 3.9, 3.10 and 3.11",
            why="MXNet 1.9.1 and the pinned versions of the other packages are for these",
            remedy="make an environment with another Python (`uv sync --python 3.11`)",
        )
    if "numpy" in found and _version(found["numpy"]) >= NUMPY_TOO_NEW:
        return replace(
            line,
            level="problem",
            what=f"numpy {found['numpy']} is too new",
            why="MXNet 1.9.1 uses np.bool, which 1.24 took away",
            remedy=INSTALL,
        )
    if "mxnet" in found and "mxnet-cu112" in found:
        return replace(
            line,
            level="note",
            what="two flavours of MXNet are installed",
            why="both install the module mxnet; which one is there depends on their order",
            remedy="make the environment anew with one of them (docs/install.md)",
        )
    return line


def cuda_libraries(facts: Facts) -> Check:
    """Of MXNet's GPU flavour; shows nothing without it."""
    wanted, troubles = facts["cuda"].get("wanted", []), facts["cuda"].get("troubles", {})
    line = Check("CUDA libraries", f"{len(wanted) - len(troubles)} of {len(wanted)}" if wanted else "")
    error = cuda.missing(troubles)
    return _problem(line, error) if error else line


def mxnet(facts: Facts) -> Check:
    found = facts["mxnet"]
    if facts["cuda"].get("troubles"):
        what, why = "MXNet could not be looked at", "its GPU flavour takes CUDA's libraries"
        return Check("MXNet", "not known", "note", what, why, "see to the libraries first")
    if found["trouble"]:
        return Check("MXNet", "cannot be imported", "problem", "MXNet cannot be imported", found["trouble"], INSTALL)
    names = {"MKLDNN": "oneDNN", "CUDA": "CUDA", "CUDNN": "cuDNN", "NCCL": "NCCL", "OPENMP": "OpenMP"}
    parts = [name for key, name in names.items() if key in found["features"]]
    return Check("MXNet", f"{'GPU' if 'CUDA' in found['features'] else 'CPU'} flavour, with {listed(parts)}")


def horovod(facts: Facts) -> Check:
    found = facts["horovod"]
    if facts["mxnet"]["trouble"] and found["trouble"]:
        what, why = "Horovod could not be looked at", "it imports MXNet, which fails"
        return Check("Horovod", "not known", "note", what, why, "see to MXNet first")
    if found["trouble"]:
        why = "it was built for another MXNet or Python, or without MXNet"
        what = f"Horovod cannot be imported: {found['trouble']}"
        return Check("Horovod", "cannot be imported", "problem", what, why, INSTALL)
    if not found["installed"]:
        return Check(
            "Horovod",
            "not installed",
            "note",
            "Horovod is not installed: one process can train, not several",
            "several exchange their gradients through it",
            horovod_build.how_to_install("CUDA" in facts["mxnet"].get("features", [])),
        )
    line = Check("Horovod", ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in found["features"].items()))
    if not found["features"]["gloo"]:
        return replace(
            line,
            level="problem",
            what="Horovod was built without Gloo",
            why="python -m crepe_dist.supervise and horovodrun without MPI start their processes through it",
            remedy="build it with the backend of this project: `uv sync --reinstall-package horovod`",
        )
    if "CUDA" not in facts["mxnet"].get("features", []) or found["features"]["nccl"]:
        return line
    if not found["features"]["cuda"]:
        return replace(_problem(line, horovod_build.without_cuda()), level="problem" if facts["gpus"] else "note")
    return replace(
        line,
        level="note",
        what="Horovod was built without NCCL",
        why="gradients of GPUs pass through main memory, which takes longer",
        remedy=horovod_build.BUILD,
    )


def launcher(facts: Facts) -> Check:
    found = facts["horovodrun"]
    if not found["found"]:
        return Check("horovodrun", "" if not facts["horovod"].get("installed") else "not found")
    if found["own"] and found["by name"]:
        return Check("horovodrun", "beside this Python, and found by its name")
    if found["own"]:
        return Check("horovodrun", "beside this Python; found by name under `uv run` or in the activated environment")
    return Check(
        "horovodrun",
        "not beside this Python",
        "note",
        "the horovodrun that is found is another environment's",
        "it may start another Horovod than the one that is installed here",
        "activate the environment, or use `uv run horovodrun`",
    )


def cores(facts: Facts) -> Check:
    found = facts["cores"]
    line = Check("cores", f"{found['allowed']} of {found['there']}")
    if found["quota"] is None or found["quota"] >= found["allowed"]:
        return line
    whole = max(1, int(found["quota"]))
    return replace(
        line,
        shows=f"{line.shows}, of whose time a control group allows that of {found['quota']:g}",
        level="note",
        what=f"{counted(found['allowed'], 'core')} may be used, but only for {found['quota']:g} cores' time",
        why="a limit of the container (cpu.max): threads on all cores use it up, and then all stand still",
        remedy=f"set OMP_NUM_THREADS so that all processes together have {counted(whole, 'thread')}, "
        "or limit the container by cores (docker --cpuset-cpus)",
    )


def threads(facts: Facts) -> Check:
    found, allowed = facts["threads"], facts["cores"]["allowed"]
    if found["trouble"]:
        why = "it is the number of threads of each process"
        return Check("threads", "unknown", "problem", found["trouble"], why, found["remedy"])
    given = facts["machine"]["OMP_NUM_THREADS"]
    shows = f"{found['alone']} in one process, {found['of two']} in each of two"
    line = Check("threads", f"{shows} (OMP_NUM_THREADS {given})" if given else shows)
    if found["alone"] > allowed:
        return replace(
            line,
            level="note",
            what=f"OMP_NUM_THREADS is {found['alone']}, on {counted(allowed, 'core')}",
            why="threads that wait for each other's core make every step longer",
            remedy="unset it: each process then takes its share of the cores",
        )
    if found["OMP_PROC_BIND"].lower() not in ("", "false"):
        return replace(
            line,
            level="note",
            what=f"OMP_PROC_BIND is {found['OMP_PROC_BIND']}",
            why="every process of this machine binds its threads to the same first cores",
            remedy="unset it where several processes train on one machine",
        )
    return line


def memory(facts: Facts) -> Check:
    found = facts["memory"]
    line = Check("memory", f"{size(found['total'])}, {size(found['free'])} free")
    if found["free"] >= PROCESS_BYTES:
        return line
    return replace(
        line,
        level="note",
        what=f"only {size(found['free'])} of memory are free",
        why=f"a process that trains the paper's small network takes about {size(PROCESS_BYTES)}",
        remedy="end other programs, raise the container's limit, or take a smaller network (model.size: tiny)",
    )


def gpus(facts: Facts) -> Iterator[Check]:
    with_cuda = "CUDA" in facts["mxnet"].get("features", [])
    for number, each in enumerate(facts["gpus"]):
        capability = each["capability"] and tuple(each["capability"])
        shown = "unknown" if capability is None else ".".join(map(str, capability))
        line = Check(f"GPU {number}", f"{each['name'] or 'nameless'}, compute capability {shown}")
        if not with_cuda:
            yield replace(
                line,
                level="note",
                what=f"GPU {number} is not used: the CPU flavour of MXNet is installed",
                remedy="install the cu112 flavour (docs/install.md), if the GPU is to be used",
            )
        elif error := cuda.refusal(number, each["name"], capability):
            yield _problem(line, error)
        else:
            yield line
    if unusable := facts["mxnet"].get("unusable"):
        yield Check("GPUs", "cannot be used", "problem", **unusable)
    if not facts["gpus"]:
        yield Check("GPU", "none")


def driver(facts: Facts) -> Check:
    found = facts["driver"]
    with_cuda = "CUDA" in facts["mxnet"].get("features", [])
    tool = f"nvidia-smi {'found' if found['nvidia-smi'] else 'not found'}"
    kind = "NVIDIA driver"
    parts = [found["version"]] * bool(found["version"])
    if version := facts["cuda"].get("driver"):
        parts.append(f"for CUDA {version[0]}.{version[1]}")
    line = Check(kind, ", ".join([*(parts or ["none seen"]), tool]))
    if found["trouble"]:
        why = "the driver is not loaded, or does not fit the installed libraries"
        remedy = "install the driver anew, or restart the machine after its update"
        return replace(line, level="note", what=f"nvidia-smi fails: {found['trouble']}", why=why, remedy=remedy)
    elsewhere = facts["gpus"] or facts["mxnet"].get("unusable") or facts["cuda"].get("troubles")
    if elsewhere or not (found["device files"] or found["version"] or with_cuda):
        return line
    return replace(
        line,
        level="note",
        what="no GPU can be used, though " + ("MXNet's GPU flavour is installed" if with_cuda else "a driver is there"),
        why="the driver's library (libcuda.so.1) is not found or sees no GPU; in a container both must be passed on",
        remedy="if a GPU is to be used: install the driver, start the container with --gpus all, "
        "and look at CUDA_VISIBLE_DEVICES",
    )


def kernels(facts: Facts) -> Check:
    found = facts["kernels"]
    build = found.get("build", "")
    if not found["trouble"]:
        return Check("CPU kernels", f"own, {build}: the best there is for this processor")
    if build:
        return Check(
            "CPU kernels",
            f"own, {build}",
            "note",
            f"the CPU kernels {build} are used, not the best that this processor has instructions for",
            found["trouble"],
            "install again where a newer C++ compiler is, or on a newer system",
        )
    return Check(
        "CPU kernels",
        "none of our own; MXNet's operators",
        "note",
        "there are no compiled kernels: training on a CPU takes longer",
        found["trouble"],
        "install again where a C++ compiler (g++) is",
    )


def folders(facts: Facts) -> Iterator[Check]:
    for name in FOLDERS:
        found = facts["folders"][name]
        line = Check(f"{name}/", f"{size(found['free'])} free of {size(found['total'])}, can be written")
        if found["trouble"]:
            yield Check(
                f"{name}/",
                "cannot be written",
                "problem",
                f"nothing can be written to {name}/ here: {found['trouble']}",
                "every command reads and writes runs/ and data/ of the folder where it is typed",
                "make room or allow writing, or type the commands in another folder",
            )
        elif found["free"] < RUN_BYTES:
            yield replace(
                line,
                level="problem",
                what=f"the disk of {name}/ has only {size(found['free'])} left",
                why=f"a run of the paper's small network writes about {size(RUN_BYTES)}: checkpoints and two states",
                remedy="make room, or type the commands in a folder on another disk",
            )
        else:
            yield line


def shared_memory(facts: Facts) -> Check:
    found = facts["shared memory"]
    line = Check("/dev/shm", f"{size(found['free'])} free of {size(found['total'])}")
    if not found["trouble"] and found["free"] >= 2 * GRADIENT_BYTES:
        return line
    return replace(
        line,
        shows="cannot be written" if found["trouble"] else line.shows,
        level="note",
        what=f"/dev/shm cannot be used: {found['trouble']}" if found["trouble"] else "/dev/shm is small",
        why=f"processes sum their gradients in it, {size(GRADIENT_BYTES)} each for the paper's small network; "
        "without it they go through Horovod, which takes five to ten times as long",
        remedy="give the container more (docker --shm-size=2g; Kubernetes: an emptyDir of medium Memory), "
        "or mount -o remount,size=2g /dev/shm",
    )


def limits(facts: Facts) -> Check:
    found = facts["limits"]
    shown = {name: "unlimited" if value is None else f"{value:,}" for name, value in found.items()}
    line = Check("limits", ", ".join(f"{name} {value}" for name, value in shown.items()))
    low = [
        name
        for name, least in (("open files", OPEN_FILES), ("processes", PROCESSES))
        if found[name] is not None and found[name] < least
    ]
    if low:
        return replace(
            line,
            level="note",
            what=f"the limit of {listed(low)} is low",
            why="shards, sockets and pipes are open files; every thread counts as a process",
            remedy="raise them (ulimit -n 4096, ulimit -u 4096; /etc/security/limits.conf)",
        )
    if found["address space"] is None:
        return line
    return replace(
        line,
        level="note",
        what=f"the address space of a process is limited to {size(found['address space'])}",
        why="data are mapped as a whole, and count here though they take no memory",
        remedy="take the limit away: ulimit -v unlimited",
    )


def hostname(facts: Facts) -> Check:
    trouble = facts["hostname"]["trouble"]
    if not trouble:
        return Check("host name", "resolves")
    return Check(
        "host name",
        "does not resolve",
        "problem" if facts["horovod"].get("installed") else "note",
        f"this machine's name has no IPv4 address: {trouble}",
        "Gloo asks for it in every process, and crashes without an answer",
        'add it to /etc/hosts: echo "127.0.1.1 $(hostname)" | sudo tee -a /etc/hosts',
    )


def _problem(line: Check, error: UserError) -> Check:
    return replace(line, level="problem", what=error.what, why=error.why, remedy=error.remedy)


def _version(text: str) -> tuple[int, int]:
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in text.split(".")[:2])
    return major, minor
