"""Execution of a Dockerfile without Docker: each stage runs by chroot in its own root made by debootstrap.

Enough of the format for this project's files: FROM, COPY, RUN, ENV, WORKDIR, USER, HEALTHCHECK and CMD, the last two as
lists. What a container has beyond a root (its own network, limits, a read-only image) is not tried.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

RELEASES = {"12": "bookworm"}
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Of the machine: how its package indexes are reached.
INDEXES = re.compile(r"(PIP_|UV_).*(INDEX|TIMEOUT)|.*_proxy|.*_PROXY", re.ASCII)
ENTER = 'mount -t proc proc "$0/proc" && mount -t tmpfs -o mode=1777 tmpfs "$0/dev/shm" && exec chroot "$@"'


def steps(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of each line, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"(?<=[:=])\\\n", "", dockerfile.read_text(encoding="utf-8")))
    lines = [line.strip() for line in text.splitlines()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line and not line.startswith("#")]


def context(root: Path) -> list[Path]:
    """Return the files that Docker sends to the build; the last matching pattern of .dockerignore decides."""
    patterns = [
        line for line in (root / ".dockerignore").read_text(encoding="utf-8").split("\n") if line[:1] not in "#"
    ]
    found = []
    for path in sorted(root.rglob("*")):
        names = path.relative_to(root).parts
        if names[0] in (".git", ".venv") or not path.is_file():
            continue
        ignored = False
        for pattern in patterns:
            wanted = pattern.lstrip("!").removeprefix("**/")
            heads = ["/".join(names[:length]) for length in range(1, len(names) + 1)]
            hit = any(fnmatch.fnmatchcase(head, wanted) and head.count("/") == wanted.count("/") for head in heads)
            if pattern.lstrip("!").startswith("**/"):
                hit = any(fnmatch.fnmatchcase(name, wanted) for name in names)
            ignored = not pattern.startswith("!") if hit else ignored
        if not ignored:
            found.append(path)
    return found


@dataclass
class Stage:
    """A root, and what the instructions so far have set for the commands in it."""

    root: Path
    folder: str = "/"
    user: str = "0:0"
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    health: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def run(self, command: list[str], seconds: float, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs it in the root, in namespaces that end with it; nothing of this machine's environment is seen."""
        return subprocess.run(
            self.entered(command, **more), stdout=-1, stderr=-2, text=True, timeout=seconds, check=False
        )

    def entered(self, command: list[str], **more: str) -> list[str]:
        given = [f"{name}={value}" for name, value in {**self.environment, **more}.items()]
        inside = ["env", "-i", "-C", self.folder, *given, *command]
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return [*spaces, "sh", "-c", ENTER, str(self.root), f"--userspec={self.user}", str(self.root), *inside]


def base(folder: Path, image: str) -> None:
    """A root like that of the image `debian:<version>-slim`."""
    release = RELEASES[image.partition(":")[2].split(".")[0]]
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", release, str(folder)], stdout=-1, stderr=-2, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stdout
    shutil.copy("/etc/hosts", folder / "etc" / "hosts")
    shutil.copy(CERTIFICATES, folder / "usr" / "local" / "share" / "certificates.crt")


def build(dockerfile: Path, root: Path, folder: Path, seconds: float) -> Stage:
    """Carries out all of it; the last stage.

    Args:
        root: of the checkout, the context.
        folder: where the roots are made.
        seconds: that a RUN may take.
    """
    reached = {name: value for name, value in os.environ.items() if INDEXES.fullmatch(name)}
    certificates = dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), "/usr/local/share/certificates.crt")
    stages: dict[str, Stage] = {}
    stage = Stage(folder)
    for instruction, rest in steps(dockerfile):
        if instruction == "FROM":
            image, _, name = rest.partition(" AS ")
            if not (folder / "base").exists():
                base(folder / "base", image)
            stage = stages[name] = Stage(folder / (name or "final"))
            subprocess.run(["cp", "-a", str(folder / "base"), str(stage.root)], check=True)
        elif instruction == "COPY":
            _copy(rest, stage, stages, root)
        elif instruction == "RUN":
            done = stage.run(["sh", "-c", rest], seconds, **reached, **certificates)
            assert done.returncode == 0, f"RUN {rest}: {done.stdout[-5000:]}"
        elif instruction == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", rest):
                stage.environment[name] = Template(value).substitute(stage.environment)
        elif instruction == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "USER":
            stage.user = rest
        elif instruction == "HEALTHCHECK":
            stage.health = json.loads(rest.partition(" CMD ")[2])
        elif instruction == "CMD":
            stage.command = json.loads(rest)
        else:
            raise AssertionError(f"{instruction} is not known here")
    return stage


def _copy(rest: str, stage: Stage, stages: dict[str, Stage], root: Path) -> None:
    words = rest.split()
    if words[0].startswith("--from="):
        source, target = (
            stages[words[0].partition("=")[2]].root / words[1].lstrip("/"),
            stage.root / words[2].lstrip("/"),
        )
        subprocess.run(["cp", "-a", str(source), str(target)], check=True)
        return
    source_name, target_name = words
    target = stage.root / target_name.lstrip("/") if target_name != "." else stage.root / stage.folder.lstrip("/")
    for path in context(root):
        name = str(path.relative_to(root))
        if source_name == ".":
            place = target / name
        elif name == source_name:
            place = target / path.name if target_name.endswith("/") else target
        else:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
