#!/usr/bin/env python3
"""Looks up the installed packages among the known vulnerabilities, by pip-audit.

    uv run tools/audit.py

Ends with 0 if nothing but what is waived below was found, with 1 if something was, and with 3 if no source of
advisories answered: then no audit was made, and that is said. pip-audit itself would end with 0, because a package that
is not known to its source counts as one without vulnerabilities.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SOURCES = ("pypi", "osv")  # pip-audit's names; the first that answers is taken
SECONDS = 300
NO_AUDIT = 3
# Horovod 0.28.1 is the last release, so neither is mended anywhere; SECURITY.md tells what is used of it.
WAIVERS = {
    "CVE-2024-10190": "Horovod's elastic rendezvous unpickles what anyone sends to it; crepe_dist never starts it: "
    "plain horovodrun does not, and the supervisor has a rendezvous of its own that unpickles nothing",
    "CVE-2026-31234": "Horovod's func mode (horovod.run) fetches pickles over HTTP; crepe_dist starts its processes by "
    "command lines, never by functions",
}

Report = list[dict[str, Any]]


def ask(source: str) -> tuple[Report, str]:
    """What pip-audit found in one source, an entry a package, and why there is none if it did not answer."""
    command = (sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "-s", source)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        return list(json.loads(done.stdout)["dependencies"]), ""
    except subprocess.TimeoutExpired:
        return [], f"no answer within {SECONDS} s"
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"]
        return [], lines[-1][:300]


def judge(report: Report) -> tuple[list[str], list[str], list[str], list[str]]:
    """Lines for what is vulnerable, what is waived, and which waivers nothing needs; and the packages not looked up."""
    bad, waived, unknown = [], [], []
    met: set[str] = set()
    for package in report:
        name = f"{package['name']} {package.get('version', '')}".strip()
        if "skip_reason" in package:
            unknown.append(name)
        for found in package.get("vulns", ()):
            names = [found["id"], *found.get("aliases", ())]
            reasons = [each for each in names if each in WAIVERS]
            met.update(reasons)
            if reasons:
                waived.append(f"{name}: {reasons[0]} is waived: {WAIVERS[reasons[0]]}")
            else:
                versions = ", ".join(found.get("fix_versions", ())) or "no version"
                bad.append(f"{name}: {' = '.join(names)}; mended in {versions}")
    return bad, waived, [each for each in WAIVERS if each not in met], unknown


def main() -> None:
    for source in SOURCES:
        report, problem = ask(source)
        bad, waived, unneeded, unknown = judge(report)
        if len(unknown) == len(report):
            print(f"audit: {source}: {problem or 'it knows none of the installed packages'}")
            continue
        for line in (*bad, *waived):
            print(f"audit: {line}")
        for each in unneeded:
            print(f"audit: nothing that is installed needs the waiver of {each}")
        if unknown:
            print(f"audit: not looked up, as {source} does not know them: {', '.join(unknown)}")
        print(f"audit: {len(report) - len(unknown)} packages looked up in {source}, {len(bad)} vulnerabilities")
        sys.exit(1 if bad else 0)
    print("audit: NO AUDIT WAS MADE: no source of advisories can be reached from here")
    sys.exit(NO_AUDIT)


if __name__ == "__main__":
    main()
