"""Checks of the facts: one function for each line of the diagnosis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crepe_dist import extras
from crepe_dist.cuda.driver import dotted
from crepe_dist.diagnosis.inventory import FOLDERS, Facts
from crepe_dist.diagnosis.networks import DEFAULT
from crepe_dist.diagnosis.outcome import Check
from crepe_dist.distributed import cuda, horovod_build
from crepe_dist.errors import UserError
from crepe_dist.machine import PACKAGES
from crepe_dist.wording import counted, listed, size

INSTALL = "reinstall with `uv sync --inexact --group horovod` (without uv see docs/install.md)"
NUMPY_TOO_NEW = (1, 24)
GRADIENT_BYTES = 46_000_000  # of the paper's small network; Crepe has less, because its tables are trained row by row
# Of Crepe, measured on the sample with batches of 64. A run keeps two states of 112 MB, and three checkpoints of 19 MB.
RUN_BYTES = 300_000_000
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
        cuda_kernels(facts),
        kernels(facts),
        Check("precision", f"CPU: {facts['plans']['CPU']}" if "CPU" in facts["plans"] else ""),
        *folders(facts),
        shared_memory(facts),
        limits(facts),
        hostname(facts),
    ]
    return [line for line in lines if line.shows]


def versions(facts: Facts) -> Check:
    names = ("crepe_dist", "Python", *PACKAGES)
    about = facts["machine"]
    line = Check("versions", ", ".join(f"{name} {about[name]}" for name in names if name in about))
    if "mxnet" in about and _version(about["numpy"]) >= NUMPY_TOO_NEW:
        return line.problem(
            f"numpy {about['numpy']} is too new", "MXNet 1.9.1 uses np.bool, which numpy 1.24 removed", INSTALL
        )
    if "mxnet" in about and "mxnet-cu112" in about:
        return line.note(
            "two flavours of MXNet are installed",
            "both install the module mxnet, so the order of installation decides which one is used",
            "recreate the environment with one of them (docs/install.md)",
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
    return (line.problem if facts["gpus"] and set(later) != {cuda.NVML} else line.note)(
        f"{listed(list(later))} cannot be loaded",
        f"cuDNN, NCCL and Horovod open them in the middle of a run: {'; '.join(later.values())}",
        "reinstall the packages (docs/install.md) and the driver; a container needs the driver's capabilities "
        "compute and utility (NVIDIA_DRIVER_CAPABILITIES)",
    )


def mxnet(facts: Facts) -> Check:
    about = facts["mxnet"]
    if facts["cuda"].get("troubles"):
        what, why = "MXNet could not be checked", "its GPU flavour needs the CUDA libraries"
        return Check("MXNet", "unknown").note(what, why, "fix the CUDA libraries first")
    if about["trouble"]:
        return Check("MXNet", "cannot be imported").problem("MXNet cannot be imported", about["trouble"], INSTALL)
    if not about["installed"]:
        return Check("MXNet", "not installed, and not needed for one process on the CPU")
    names = {"MKLDNN": "oneDNN", "CUDA": "CUDA", "CUDNN": "cuDNN", "NCCL": "NCCL", "OPENMP": "OpenMP"}
    parts = [name for key, name in names.items() if key in about["features"]]
    flavour = "GPU" if "CUDA" in about["features"] else "CPU"
    other = (
        ""
        if flavour == "CPU" or about["wheel"]
        else "; not PyPI's wheel, so it is not known for which GPUs it has code"
    )
    return Check("MXNet", f"{flavour} flavour, with {listed(parts)}{other}")


def horovod(facts: Facts) -> Check:
    about = facts["horovod"]
    if facts["mxnet"]["trouble"] and about["trouble"]:
        what, why = "Horovod could not be checked", "it imports MXNet, which fails"
        return Check("Horovod", "unknown").note(what, why, "fix MXNet first")
    if about["trouble"]:
        why = "it was built for another MXNet or Python, or without MXNet"
        what = f"Horovod cannot be imported: {about['trouble']}"
        return Check("Horovod", "cannot be imported").problem(what, why, INSTALL)
    if not about["installed"]:
        return Check("Horovod", "not installed").note(
            "Horovod is not installed: only one process can train",
            "several processes all-reduce their gradients with Horovod",
            horovod_build.how_to_install("CUDA" in facts["mxnet"].get("features", [])),
        )
    line = Check("Horovod", ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in about["features"].items()))
    if not about["features"]["gloo"]:
        return line.problem(
            "Horovod was built without Gloo",
            "supervise and horovodrun without MPI need it",
            "rebuild it with this project's settings: `uv sync --inexact --group horovod --reinstall-package horovod`",
        )
    if "CUDA" not in facts["mxnet"].get("features", []) or about["features"]["nccl"]:
        return line
    if not about["features"]["cuda"]:
        error = horovod_build.without_cuda()
        needed = any(each[DEFAULT]["kernels"] == "mxnet" for each in on_gpus(facts))
        return (line.problem if needed else line.note)(error.what, error.why, error.remedy)
    return line.note(
        "Horovod was built without NCCL",
        "gradients of GPUs pass through main memory, which is slower",
        horovod_build.BUILD,
    )


def launcher(facts: Facts) -> Check:
    about = facts["horovodrun"]
    if not about["found"]:
        return Check("horovodrun", "" if not facts["horovod"].get("installed") else "not found")
    if about["own"]:
        return Check("horovodrun", "in this environment" + ", and on the PATH" * about["by name"])
    return Check("horovodrun", "not in this environment").note(
        "the horovodrun on the PATH is another environment's",
        "it may start another Horovod than the installed one",
        "activate the environment, or use `uv run horovodrun`",
    )


def cores(facts: Facts) -> Check:
    about = facts["cores"]
    line = Check("cores", f"{about['allowed']} of {about['there']}")
    if about["quota"] is None or about["quota"] >= about["allowed"]:
        return line
    line = Check("cores", f"{line.shows}; the control group's CPU quota is {about['quota']:g} cores")
    whole = max(1, int(about["quota"]))
    return line.note(
        f"{counted(about['allowed'], 'core')} may be used, but only for {about['quota']:g} cores' time",
        "the container limits CPU time (cpu.max): threads on all cores use up the quota and are then throttled",
        f"set OMP_NUM_THREADS so that all processes together have {counted(whole, 'thread')}, "
        "or limit the container by cores (docker --cpuset-cpus)",
    )


def threads(facts: Facts) -> Check:
    about, allowed = facts["threads"], facts["cores"]["allowed"]
    if about["trouble"]:
        why = "it sets the number of threads of each process"
        return Check("threads", "unknown").problem(about["trouble"], why, about["remedy"])
    given = facts["machine"]["OMP_NUM_THREADS"]
    shows = f"{about['alone']} in one process, {about['of two']} in each of two"
    line = Check("threads", f"{shows} (OMP_NUM_THREADS {given})" if given else shows)
    if about["alone"] > allowed:
        return line.note(
            f"OMP_NUM_THREADS is {about['alone']}, on {counted(allowed, 'core')}",
            "threads compete for the cores, which slows down every step",
            "unset it; each process then uses its share of the cores",
        )
    return line


def memory(facts: Facts) -> Check:
    about = facts["memory"]
    line = Check("memory", f"{size(about['total'])}, {size(about['free'])} free")
    if about["free"] >= PROCESS_BYTES:
        return line
    return line.note(
        f"only {size(about['free'])} of memory are free",
        f"a process that trains the default network needs about {size(PROCESS_BYTES)}",
        "close other programs, raise the container's limit, or use a smaller network (model.network: ngrams)",
    )


def gpus(facts: Facts) -> Iterator[Check]:
    for number, (each, engines) in enumerate(zip(facts["gpus"], on_gpus(facts))):
        capability = each["capability"]
        shown = [each["name"] or "nameless"]
        shown.append(f"compute capability {'unknown' if capability is None else dotted(capability)}")
        shown += [f"{kind}: {about.get('plan', 'on the CPU')}" for kind, about in engines.items()]
        line, default = Check(f"GPU {number}", "; ".join(shown)), engines[DEFAULT]
        if not default["kernels"]:
            yield line.note(f"GPU {number} is not used: {default['what']}", default["why"], default["remedy"])
        elif default["why"]:
            what = f"GPU {number} computes by MXNet's operators, which are slower than our own kernels"
            yield line.note(what, default["why"], default["remedy"])
        else:
            yield line
    if not facts["gpus"]:
        yield Check("GPU", "none")


def on_gpus(facts: Facts) -> list[dict[str, Any]]:
    """Return what each GPU gets to compute each network, see ``probe.plans``."""
    about = facts["plans"]
    unknown = {"kernels": "", "what": "it is unknown what can compute on it", "why": about["trouble"], "remedy": ""}
    return about.get("GPUs") or [{DEFAULT: unknown}] * len(facts["gpus"])


def cuda_kernels(facts: Facts) -> Check:
    """Check the libraries that our own kernels for GPUs need; show nothing without a GPU."""
    about, gpus = facts["cuda"], len(facts["gpus"])
    if not gpus or "nccl" not in about:
        return Check("CUDA kernels", "")
    nvrtc = f"NVRTC {dotted(about['nvrtc'])}" if about["nvrtc"] else "NVRTC not found"
    line = Check("CUDA kernels", f"{nvrtc}, {'NCCL' if about['nccl'] else 'NCCL not found'}")
    if gpus == 1 or about["nccl"]:
        return line
    return line.note(
        "NCCL is not installed",
        "gradients of several GPUs pass through main memory, which is slower",
        extras.install("gpus"),
    )


def driver(facts: Facts) -> Check:
    about = facts["driver"]
    with_cuda = "CUDA" in facts["mxnet"].get("features", [])
    tool = f"nvidia-smi {'about' if about['nvidia-smi'] else 'not found'}"
    kind = "NVIDIA driver"
    parts = [about["version"]] * bool(about["version"])
    if version := facts["cuda"].get("driver"):
        parts.append(f"for CUDA {dotted(version)}")
    line = Check(kind, ", ".join([*(parts or ["not found"]), tool]))
    if about["trouble"]:
        why = "the driver is not loaded, or does not match the installed libraries"
        remedy = "reinstall the driver, or reboot if it was just updated"
        return line.note(f"nvidia-smi fails: {about['trouble']}", why, remedy)
    elsewhere = facts["gpus"] or facts["cuda"].get("troubles")
    if elsewhere or not (about["device files"] or about["version"] or with_cuda):
        return line
    return line.note(
        "no GPU can be used, although "
        + ("MXNet's GPU flavour is installed" if with_cuda else "a driver is installed"),
        "the driver's library (libcuda.so.1) is not found or sees no GPU; a container needs access to both",
        "to use a GPU, install the driver, start the container with --gpus all, and check CUDA_VISIBLE_DEVICES",
    )


def kernels(facts: Facts) -> Check:
    about = facts["kernels"]
    build = about.get("build", "")
    if not about["trouble"]:
        return Check("CPU kernels", f"own, {build}: the best build for this processor")
    if build:
        return Check("CPU kernels", f"own, {build}").note(
            f"the CPU kernels {build} are used, not the best ones for this processor",
            about["trouble"],
            "install a newer C++ compiler or a newer system, and reinstall",
        )
    remedy = "install a C++ compiler (g++), and reinstall"
    if not facts["mxnet"].get("installed", True):
        what = "there are no compiled kernels, and MXNet is not installed: nothing can train"
        return Check("CPU kernels", "none").problem(what, about["trouble"], remedy)
    what = "there are no compiled kernels: training on a CPU is slower"
    return Check("CPU kernels", "MXNet's operators").note(what, about["trouble"], remedy)


def folders(facts: Facts) -> Iterator[Check]:
    for name in FOLDERS:
        about = facts["folders"][name]
        line = Check(f"{name}/", f"{size(about['free'])} free of {size(about['total'])}, writable")
        if about["trouble"]:
            yield Check(f"{name}/", "not writable").problem(
                f"{name}/ is not writable: {about['trouble']}",
                "commands read and write runs/ and data/ in the current folder",
                "free some space or change the permissions, or run the commands in another folder",
            )
        elif about["free"] < RUN_BYTES:
            yield line.problem(
                f"the disk of {name}/ has only {size(about['free'])} left",
                f"a run of the default network writes about {size(RUN_BYTES)}: checkpoints and two states",
                "free some space, or run the commands in a folder on another disk",
            )
        else:
            yield line


def shared_memory(facts: Facts) -> Check:
    about = facts["shared memory"]
    trouble = about["trouble"]
    line = Check("/dev/shm", "not writable" if trouble else f"{size(about['free'])} free of {size(about['total'])}")
    if not trouble and about["free"] >= 2 * GRADIENT_BYTES:
        return line
    return line.note(
        f"/dev/shm cannot be used: {trouble}" if trouble else "/dev/shm is small",
        f"processes all-reduce their gradients in it, {size(GRADIENT_BYTES)} each for the paper's small network; "
        "otherwise they fall back to Horovod, which takes five to ten times as long",
        "enlarge it: docker --shm-size=2g; Kubernetes: an emptyDir of medium Memory; "
        "otherwise mount -o remount,size=2g /dev/shm",
    )


def limits(facts: Facts) -> Check:
    about = facts["limits"]
    shown = {name: "unlimited" if value is None else f"{value:,}" for name, value in about.items()}
    line = Check("limits", ", ".join(f"{name} {value}" for name, value in shown.items()))
    low = [
        name
        for name, least in (("open files", MIN_OPEN_FILES), ("processes", MIN_PROCESSES))
        if about[name] is not None and about[name] < least
    ]
    if low:
        return line.note(
            f"the limit of {listed(low)} is low",
            "shards, sockets and pipes count as open files, and every thread counts as a process",
            "raise them (ulimit -n 4096, ulimit -u 4096; /etc/security/limits.conf)",
        )
    if about["address space"] is None:
        return line
    return line.note(
        f"the address space of a process is limited to {size(about['address space'])}",
        "data sets are memory-mapped as a whole; they count although they use no memory",
        "remove the limit: ulimit -v unlimited",
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
    return line.problem(error.what, error.why, error.remedy)


def _version(text: str) -> tuple[int, int]:
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in text.split(".")[:2])
    return major, minor
