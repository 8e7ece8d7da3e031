"""Checks of the facts: one function for each line of the diagnosis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from crepe_dist.diagnosis.inventory import FOLDERS, Facts
from crepe_dist.diagnosis.outcome import Check
from crepe_dist.distributed import cuda, horovod_build
from crepe_dist.errors import UserError
from crepe_dist.machine import PACKAGES
from crepe_dist.wording import counted, listed, size

INSTALL = "reinstall with `uv sync` (without uv see docs/install.md)"
PYTHONS = (3, 9), (3, 11)  # the lowest and the highest version with a wheel of MXNet
NUMPY_TOO_NEW = (1, 24)
GRADIENT_BYTES = 46_000_000  # of the paper's small network; Crepe has less, because its tables are trained row by row
# Of Crepe, measured on the sample with batches of 64. A run keeps two states of 250 MB, and three checkpoints.
RUN_BYTES = 800_000_000
PROCESS_BYTES = 700_000_000
MIN_OPEN_FILES = 1024
MIN_PROCESSES = 1024


def checks(facts: Facts) -> list[Check]:
    """Run all checks, in the order of their output."""
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
            why="training needs MXNet 1.9.1, which has wheels for these versions",
            remedy="create an environment with another Python (`uv sync -p 3.11`)",
        )
    if "numpy" in found and _version(found["numpy"]) >= NUMPY_TOO_NEW:
        return replace(
            line,
            level="problem",
            what=f"numpy {found['numpy']} is too new",
            why="MXNet 1.9.1 uses np.bool, which numpy 1.24 removed",
            remedy=INSTALL,
        )
    if "mxnet" in found and "mxnet-cu112" in found:
        return replace(
            line,
            level="note",
            what="two flavours of MXNet are installed",
            why="both install the module mxnet, so the order of installation decides which one is used",
            remedy="recreate the environment with one of them (docs/install.md)",
        )
    return line


def cuda_libraries(facts: Facts) -> Check:
    """Check the CUDA libraries of MXNet's GPU flavour; show nothing for the CPU flavour."""
    wanted, troubles = facts["cuda"].get("wanted", []), facts["cuda"].get("troubles", {})
    line = Check("CUDA libraries", f"{len(wanted) - len(troubles)} of {len(wanted)}" if wanted else "")
    if error := cuda.missing(troubles):
        return _problem(line, error)
    later = facts["cuda"].get("later", {})
    if not later:
        return line
    return replace(
        line,
        level="problem" if facts["gpus"] and set(later) != {cuda.NVML} else "note",
        what=f"{listed(list(later))} cannot be loaded",
        why=f"cuDNN, NCCL and Horovod open them in the middle of a run: {'; '.join(later.values())}",
        remedy="reinstall the packages (docs/install.md) and the driver; a container needs the driver's capabilities "
        "compute and utility (NVIDIA_DRIVER_CAPABILITIES)",
    )


def mxnet(facts: Facts) -> Check:
    found = facts["mxnet"]
    if facts["cuda"].get("troubles"):
        what, why = "MXNet could not be checked", "its GPU flavour needs the CUDA libraries"
        return Check("MXNet", "unknown", "note", what, why, "fix the CUDA libraries first")
    if found["trouble"]:
        return Check("MXNet", "cannot be imported", "problem", "MXNet cannot be imported", found["trouble"], INSTALL)
    names = {"MKLDNN": "oneDNN", "CUDA": "CUDA", "CUDNN": "cuDNN", "NCCL": "NCCL", "OPENMP": "OpenMP"}
    parts = [name for key, name in names.items() if key in found["features"]]
    flavour = "GPU" if "CUDA" in found["features"] else "CPU"
    other = (
        ""
        if flavour == "CPU" or found["wheel"]
        else "; not PyPI's wheel, so it is not known for which GPUs it has code"
    )
    return Check("MXNet", f"{flavour} flavour, with {listed(parts)}{other}")


def horovod(facts: Facts) -> Check:
    found = facts["horovod"]
    if facts["mxnet"]["trouble"] and found["trouble"]:
        what, why = "Horovod could not be checked", "it imports MXNet, which fails"
        return Check("Horovod", "unknown", "note", what, why, "fix MXNet first")
    if found["trouble"]:
        why = "it was built for another MXNet or Python, or without MXNet"
        what = f"Horovod cannot be imported: {found['trouble']}"
        return Check("Horovod", "cannot be imported", "problem", what, why, INSTALL)
    if not found["installed"]:
        return Check(
            "Horovod",
            "not installed",
            "note",
            "Horovod is not installed: only one process can train",
            "several processes all-reduce their gradients with Horovod",
            horovod_build.how_to_install("CUDA" in facts["mxnet"].get("features", [])),
        )
    line = Check("Horovod", ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in found["features"].items()))
    if not found["features"]["gloo"]:
        return replace(
            line,
            level="problem",
            what="Horovod was built without Gloo",
            why="supervise and horovodrun without MPI need it",
            remedy="rebuild Horovod with this project's settings: `uv sync --reinstall-package horovod`",
        )
    if "CUDA" not in facts["mxnet"].get("features", []) or found["features"]["nccl"]:
        return line
    if not found["features"]["cuda"]:
        return replace(_problem(line, horovod_build.without_cuda()), level="problem" if facts["gpus"] else "note")
    return replace(
        line,
        level="note",
        what="Horovod was built without NCCL",
        why="gradients of GPUs pass through main memory, which is slower",
        remedy=horovod_build.BUILD,
    )


def launcher(facts: Facts) -> Check:
    found = facts["horovodrun"]
    if not found["found"]:
        return Check("horovodrun", "" if not facts["horovod"].get("installed") else "not found")
    if found["own"] and found["by name"]:
        return Check("horovodrun", "in this environment, and on the PATH")
    if found["own"]:
        return Check("horovodrun", "in this environment; on the PATH under `uv run` or in the activated environment")
    return Check(
        "horovodrun",
        "not in this environment",
        "note",
        "the horovodrun on the PATH is another environment's",
        "it may start another Horovod than the installed one",
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
        shows=f"{line.shows}; the control group's CPU quota is {found['quota']:g} cores",
        level="note",
        what=f"{counted(found['allowed'], 'core')} may be used, but only for {found['quota']:g} cores' time",
        why="the container limits CPU time (cpu.max): threads on all cores use up the quota and are then throttled",
        remedy=f"set OMP_NUM_THREADS so that all processes together have {counted(whole, 'thread')}, "
        "or limit the container by cores (docker --cpuset-cpus)",
    )


def threads(facts: Facts) -> Check:
    found, allowed = facts["threads"], facts["cores"]["allowed"]
    if found["trouble"]:
        why = "it sets the number of threads of each process"
        return Check("threads", "unknown", "problem", found["trouble"], why, found["remedy"])
    given = facts["machine"]["OMP_NUM_THREADS"]
    shows = f"{found['alone']} in one process, {found['of two']} in each of two"
    line = Check("threads", f"{shows} (OMP_NUM_THREADS {given})" if given else shows)
    if found["alone"] > allowed:
        return replace(
            line,
            level="note",
            what=f"OMP_NUM_THREADS is {found['alone']}, on {counted(allowed, 'core')}",
            why="threads compete for the cores, which slows down every step",
            remedy="unset it; each process then uses its share of the cores",
        )
    if found["OMP_PROC_BIND"].lower() not in ("", "false"):
        return replace(
            line,
            level="note",
            what=f"OMP_PROC_BIND is {found['OMP_PROC_BIND']}",
            why="every process on this machine then binds its threads to the same cores",
            remedy="unset it when several processes train on one machine",
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
        why=f"a process that trains the default network needs about {size(PROCESS_BYTES)}",
        remedy="close other programs, raise the container's limit, or use a smaller network (model.network: ngrams)",
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
                remedy="to use the GPU, install the cu112 flavour (docs/install.md)",
            )
        elif facts["mxnet"].get("wheel") and (error := cuda.refusal(number, each["name"], capability)):
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
    line = Check(kind, ", ".join([*(parts or ["not found"]), tool]))
    if found["trouble"]:
        why = "the driver is not loaded, or does not match the installed libraries"
        remedy = "reinstall the driver, or reboot if it was just updated"
        return replace(line, level="note", what=f"nvidia-smi fails: {found['trouble']}", why=why, remedy=remedy)
    elsewhere = facts["gpus"] or facts["mxnet"].get("unusable") or facts["cuda"].get("troubles")
    if elsewhere or not (found["device files"] or found["version"] or with_cuda):
        return line
    return replace(
        line,
        level="note",
        what="no GPU can be used, although "
        + ("MXNet's GPU flavour is installed" if with_cuda else "a driver is installed"),
        why="the driver's library (libcuda.so.1) is not found or sees no GPU; a container needs access to both",
        remedy="to use a GPU, install the driver, start the container with --gpus all, and check CUDA_VISIBLE_DEVICES",
    )


def kernels(facts: Facts) -> Check:
    found = facts["kernels"]
    build = found.get("build", "")
    if not found["trouble"]:
        return Check("CPU kernels", f"own, {build}: the best build for this processor")
    if build:
        return Check(
            "CPU kernels",
            f"own, {build}",
            "note",
            f"the CPU kernels {build} are used, not the best ones for this processor",
            found["trouble"],
            "install a newer C++ compiler or a newer system, and reinstall",
        )
    return Check(
        "CPU kernels",
        "MXNet's operators",
        "note",
        "there are no compiled kernels: training on a CPU is slower",
        found["trouble"],
        "install a C++ compiler (g++), and reinstall",
    )


def folders(facts: Facts) -> Iterator[Check]:
    for name in FOLDERS:
        found = facts["folders"][name]
        line = Check(f"{name}/", f"{size(found['free'])} free of {size(found['total'])}, writable")
        if found["trouble"]:
            yield Check(
                f"{name}/",
                "not writable",
                "problem",
                f"{name}/ is not writable: {found['trouble']}",
                "commands read and write runs/ and data/ in the current folder",
                "free some space or change the permissions, or run the commands in another folder",
            )
        elif found["free"] < RUN_BYTES:
            yield replace(
                line,
                level="problem",
                what=f"the disk of {name}/ has only {size(found['free'])} left",
                why=f"a run of the default network writes about {size(RUN_BYTES)}: checkpoints and two states",
                remedy="free some space, or run the commands in a folder on another disk",
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
        shows="not writable" if found["trouble"] else line.shows,
        level="note",
        what=f"/dev/shm cannot be used: {found['trouble']}" if found["trouble"] else "/dev/shm is small",
        why=f"processes all-reduce their gradients in it, {size(GRADIENT_BYTES)} each for the paper's small network; "
        "otherwise they fall back to Horovod, which takes five to ten times as long",
        remedy="enlarge it: docker --shm-size=2g; Kubernetes: an emptyDir of medium Memory; "
        "otherwise mount -o remount,size=2g /dev/shm",
    )


def limits(facts: Facts) -> Check:
    found = facts["limits"]
    shown = {name: "unlimited" if value is None else f"{value:,}" for name, value in found.items()}
    line = Check("limits", ", ".join(f"{name} {value}" for name, value in shown.items()))
    low = [
        name
        for name, least in (("open files", MIN_OPEN_FILES), ("processes", MIN_PROCESSES))
        if found[name] is not None and found[name] < least
    ]
    if low:
        return replace(
            line,
            level="note",
            what=f"the limit of {listed(low)} is low",
            why="shards, sockets and pipes count as open files, and every thread counts as a process",
            remedy="raise them (ulimit -n 4096, ulimit -u 4096; /etc/security/limits.conf)",
        )
    if found["address space"] is None:
        return line
    return replace(
        line,
        level="note",
        what=f"the address space of a process is limited to {size(found['address space'])}",
        why="data sets are memory-mapped as a whole; they count although they use no memory",
        remedy="remove the limit: ulimit -v unlimited",
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
        "Gloo looks it up in every process, and crashes without an address",
        'add it to /etc/hosts: echo "127.0.1.1 $(hostname)" | sudo tee -a /etc/hosts',
    )


def _problem(line: Check, error: UserError) -> Check:
    return replace(line, level="problem", what=error.what, why=error.why, remedy=error.remedy)


def _version(text: str) -> tuple[int, int]:
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in text.split(".")[:2])
    return major, minor
