"""PEP 517 build backend for Horovod 0.28.1 with MXNet and Gloo, without MPI.

Horovod is published as source only, and that source does not compile as it is with today's
compilers and CMake. This backend fetches the published archive through pip, checks its SHA-256,
mends a few places, sets the build's environment, has Horovod's own setup.py make the wheel, and keeps
that wheel in a cache, because the compile takes a minute or two and uv would repeat it for every
new clone.

Environment:

    CREPE_DIST_CACHE        folder of the wheel cache
    HOROVOD_MXNET_PACKAGE   MXNet flavour to compile against: mxnet (default) or mxnet-cu112, which takes nvcc of
                            CUDA 11, a compiler that this nvcc knows, and the NVIDIA driver's libcuda.so.1
    HOROVOD_GPU_OPERATIONS  NCCL with mxnet-cu112: gradients go from GPU to GPU
    CXX, CC, CXXFLAGS       as usual; a few flags are appended to CXXFLAGS
    HOROVOD_*, CMAKE_*      as Horovod and CMake read them; they win over the defaults below
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
MXNET_VERSION = "1.9.1"

DEFAULTS = {
    "HOROVOD_WITH_MXNET": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    # Gloo asks for a policy version that CMake 4 no longer has.
    "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
    # Ninja comes as a wheel, make does not.
    "CMAKE_GENERATOR": "Ninja",
}

# With mxnet-cu112: machine code for the GPUs that MXNet's wheel has code for.
CUDA_DEFAULTS = {
    "HOROVOD_BUILD_CUDA_CC_LIST": "50,60,70,80,86",
    "HOROVOD_WITHOUT_NVTX": "1",
    "HOROVOD_NCCL_LINK": "SHARED",
}

# What mxnet-cu112 takes to be imported, and NCCL's header; the versions of the group cu112.
CUDA_PACKAGES = [
    "nvidia-cublas-cu11==11.11.3.6",
    "nvidia-cuda-nvrtc-cu11==11.8.89",
    "nvidia-cuda-runtime-cu11==11.8.89",
    "nvidia-cudnn-cu11==8.9.6.50",
    "nvidia-cufft-cu11==10.9.0.58",
    "nvidia-curand-cu11==10.3.0.86",
    "nvidia-cusolver-cu11==11.4.1.48",
    "nvidia-nccl-cu11==2.21.5",
    "nvidia-nvtx-cu11==11.8.86",
]

# Headers that older libraries included by the way and Horovod's sources rely on.
CXXFLAGS = "-include cstdint -include string -include stdexcept"

# File, line, and what takes its place.
MENDED = (
    # An assignment to a const member: never instantiated, yet refused by g++ 14.
    (
        "third_party/flatbuffers/include/flatbuffers/stl_emulation.h",
        "    count_ = other.count_;\n",
        "    return *this;\n",
    ),
    # The library would look for others in the folders of this build, which are gone, and which somebody else could make
    # again where they lay under /tmp. It needs none of them: MXNet is loaded before it.
    ("CMakeLists.txt", "project(horovod CXX)\n", "project(horovod CXX)\nset(CMAKE_SKIP_RPATH ON)\n"),
    # `horovodrun` would import MXNet twice, in processes of its own, to find out what is known here: 3 s at each start.
    (
        "horovod/common/util.py",
        "def mpi_built(verbose=False):\n",
        "def mpi_built(verbose=False):\n    return False\n",
    ),
    (
        "horovod/common/util.py",
        "def gloo_built(verbose=False):\n",
        "def gloo_built(verbose=False):\n    return True\n",
    ),
    # A process that ends is a traceback of `horovodrun`, the last thing that a user reads.
    (
        "horovod/runner/launch.py",
        "    _run(args)\n\n\nif __name__",
        """    try:
        _run(args)
    except (RuntimeError, OSError) as error:
        try:
            from crepe_dist.distributed.job_end import explain_horovodrun_exit
        except ImportError:
            raise error
        sys.exit(explain_horovodrun_exit(error, sys.argv))


if __name__""",
    ),
)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [f"{_mxnet_package()}=={MXNET_VERSION}", *(CUDA_PACKAGES if _with_cuda() else [])]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    env = _environment()
    cache = _cache_directory() / _cache_key(env)
    wheel = next(cache.glob("*.whl"), None)
    if wheel is None:
        with tempfile.TemporaryDirectory(prefix="horovod-") as work:
            wheel = _compile(Path(work), env)
            shutil.copy(wheel, wheel_directory)
            _store(wheel, cache)
    else:
        print(f"Horovod: taking the wheel compiled before, {wheel}", file=sys.stderr)
        shutil.copy(wheel, wheel_directory)
    return wheel.name


def _mxnet_package() -> str:
    return os.environ.get("HOROVOD_MXNET_PACKAGE", "mxnet")


def _with_cuda() -> bool:
    return _mxnet_package() != "mxnet"


def _environment() -> dict[str, str]:
    """The environment of the compile: the caller's, completed."""
    # pip would take the hook variables of the pip that runs this for its own.
    env = {k: v for k, v in os.environ.items() if not k.startswith("_PYPROJECT_HOOKS_")}
    for name, value in {**DEFAULTS, **(CUDA_DEFAULTS if _with_cuda() else {})}.items():
        env.setdefault(name, value)
    env["CXXFLAGS"] = f"{env.get('CXXFLAGS', '')} {CXXFLAGS}".strip()
    if not env.get("CXX"):
        compiler = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None:
            raise SystemExit(
                "Horovod has to be compiled, and there is no C++ compiler on PATH.\n"
                "Install one (g++ 7 or later; on Debian and Ubuntu: apt-get install g++) "
                "or name it in CXX, and try again."
            )
        env["CXX"] = compiler
    return env


def _cache_directory() -> Path:
    if os.environ.get("CREPE_DIST_CACHE"):
        return Path(os.environ["CREPE_DIST_CACHE"])
    if os.environ.get("UV_CACHE_DIR"):  # so that an empty uv cache means a fresh compile
        return Path(os.environ["UV_CACHE_DIR"], "crepe_dist-wheels")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "crepe_dist", "wheels")


def _cache_key(env: dict[str, str]) -> str:
    """Names everything the wheel depends on, so that a cached one is never the wrong one."""
    here = Path(__file__).parent
    parts = [
        str(sysconfig.get_config_var("EXT_SUFFIX")),  # Python version and machine
        _cpu_flags(),
        _mxnet_package(),
        importlib.metadata.version(_mxnet_package()),
        _compiler_version(env["CXX"]),
        (here / "horovod_build.py").read_text(),
        (here / "pyproject.toml").read_text(),
    ]
    named = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")
    parts += [f"{k}={v}" for k, v in sorted(env.items()) if k in named or k.startswith(("HOROVOD_", "CMAKE_"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compiler_version(compiler: str) -> str:
    try:
        output = subprocess.run(
            [*shlex.split(compiler), "--version"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"Horovod has to be compiled, and the C++ compiler '{compiler}' does not run: {error}\n"
            "Set CXX to one that does (g++ 7 or later), or unset it, and try again."
        ) from None
    return output.splitlines()[0]


def _cpu_flags() -> str:
    """The instruction sets that Horovod compiles for if this machine has them."""
    with contextlib.suppress(OSError):
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return " ".join(flag for flag in ("avx", "f16c", "fma") if flag in found[1].split())
    return ""


def _compile(work: Path, env: dict[str, str]) -> Path:
    """Fetches, mends and compiles Horovod in the folder `work`; returns the wheel."""
    if _with_cuda():
        env = {**env, **_places_of_cuda(work, env)}
    # Horovod's CMake asks MXNet where it is, and hides the reason if that fails.
    advice = "mxnet-cu112 takes the NVIDIA driver's libcuda.so.1 (on Debian: libcuda1); both flavours take libgomp."
    _run([sys.executable, "-c", "import mxnet"], f"{_mxnet_package()} does not import", advice, env, work)

    tree = _fetch(work, env)
    for name, broken, mended in MENDED:
        text = (tree / name).read_text()
        if text.count(broken) != 1:
            raise SystemExit(f"Horovod: {name} does not hold the one line that horovod_build.py mends.")
        (tree / name).write_text(text.replace(broken, mended))

    # By itself Horovod starts eight compilers at a time, each of up to 1 GB.
    jobs = max(1, min(len(os.sched_getaffinity(0)), _memory_gib()))
    env = {"MAKEFLAGS": f"-j{jobs}", "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs), **env}
    # --quiet keeps setup.py from handing VERBOSE=1, which only make understands, to Ninja.
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(work)]
    print("Horovod: compiling, which takes a minute or two", file=sys.stderr, flush=True)
    advice = (
        f"Compiler: {env['CXX']}, {_compiler_version(env['CXX'])}\n"
        "It takes g++ 7 or later and its C compiler (CXX and CC name others), and about 1 GB of memory."
    )
    if _with_cuda():
        advice += "\nWith mxnet-cu112 it takes nvcc of CUDA 11 on PATH, and a CXX and CC that it knows: up to g++ 11."
    _run(command, "its compile failed", advice, env, tree)
    return next(work.glob("*.whl"))


def _places_of_cuda(work: Path, env: dict[str, str]) -> dict[str, str]:
    """Variables that lead to the libraries of ``CUDA_PACKAGES``; they differ from build to build."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in (found.submodule_search_locations or [])] if found else []
    libraries = [str(library) for folder in folders for library in sorted(folder.glob("*/lib"))]
    if env.get("LD_LIBRARY_PATH"):
        libraries.append(env["LD_LIBRARY_PATH"])
    places = {"LD_LIBRARY_PATH": ":".join(libraries)}
    for nccl in (folder / "nccl" for folder in folders if "HOROVOD_NCCL_HOME" not in env):
        # The package has no libnccl.so, the name by which a linker looks.
        (work / "nccl").mkdir(exist_ok=True)
        (work / "nccl" / "libnccl.so").symlink_to(nccl / "lib" / "libnccl.so.2")
        places.update(HOROVOD_NCCL_INCLUDE=str(nccl / "include"), HOROVOD_NCCL_LIB=str(work / "nccl"))
    return places


def _fetch(work: Path, env: dict[str, str]) -> Path:
    """Downloads and unpacks the source archive; returns its folder.

    pip does it, since it knows the machine's package index. It checks the SHA-256 before it runs
    anything out of the archive (it runs setup.py for the metadata), hence the requirements file.
    """
    requirements = work / "requirements.txt"
    requirements.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n")
    index = env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL")
    if index:
        env = {"PIP_INDEX_URL": index, **env}
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "horovod", "--dest", str(work), "--requirement", str(requirements)]
    advice = "pip fetches it: it takes a package index within reach, or one named as pip's settings do (PIP_INDEX_URL)."
    _run(command, "its source archive could not be fetched", advice, env, work)
    with tarfile.open(work / f"horovod-{VERSION}.tar.gz") as archive:
        archive.extractall(work)
    return work / f"horovod-{VERSION}"


def _memory_gib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30


def _run(command: list[str], complaint: str, advice: str, env: dict[str, str], cwd: Path) -> None:
    """Runs a step with its output in a log, which is kept and named only if the step fails."""
    handle, log = tempfile.mkstemp(prefix="horovod-build-", suffix=".log")
    with open(handle, "w") as output:
        status = subprocess.run(command, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT).returncode
    lines = Path(log).read_text(errors="replace").splitlines()
    if status == 0:
        os.unlink(log)
        return
    errors = [line.strip() for line in lines if re.search(r"error:|CMake Error", line, re.IGNORECASE)]
    raise SystemExit(
        "\n".join(
            [
                f"Horovod {VERSION} could not be built: {complaint}. The first errors:",
                *[f"    {line[:300]}" for line in errors[:3] or lines[-3:]],
                f"The whole output: {log}",
                advice,
            ]
        )
    )


def _store(wheel: Path, cache: Path) -> None:
    """Puts the wheel into the cache in one step; a cache that cannot be written costs time only."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            os.replace(shutil.copy(wheel, folder), cache / wheel.name)
    except OSError as error:
        print(f"Horovod: the wheel is not kept for next time: {error}", file=sys.stderr)
