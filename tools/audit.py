#!/usr/bin/env python3
"""Check the installed packages for known vulnerabilities with pip-audit.

    uv run --group dev tools/audit.py

Exit codes: 0 if nothing but the waivers below was found, 1 for other vulnerabilities, 3 if no source of advisories
answered, so that no audit was made. In that case pip-audit itself would exit with 0, because it counts packages
unknown to its source as free of vulnerabilities.
"""

import json
import subprocess
import sys
from typing import Any

SOURCES = ("pypi", "osv")  # pip-audit's names, in order of preference
SECONDS = 300
NO_AUDIT = 3
# Horovod 0.28.1 is the last release, so neither is fixed upstream. SECURITY.md lists the parts of Horovod that we use.
WAIVERS = {
    "CVE-2024-10190": "Horovod's elastic rendezvous unpickles unauthenticated data. crepe_dist never starts it: "
    "horovodrun without elastic options does not, and the supervisor's own rendezvous never unpickles",
    "CVE-2026-31234": "Horovod's func mode (horovod.run) fetches pickles over HTTP. crepe_dist starts processes by "
    "command lines, never by functions",
}

Report = list[dict[str, Any]]


def ask(source: str) -> tuple[Report, str]:
    """Return pip-audit's report from a source, one entry per package, and the reason if there is none."""
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
    """Sort a report into lines about vulnerabilities, lines about waived ones, unused waivers, and unknown packages."""
    bad, waived, unknown = [], [], []
    used: set[str] = set()
    for package in report:
        name = f"{package['name']} {package.get('version', '')}".strip()
        if "skip_reason" in package:
            unknown.append(name)
        for found in package.get("vulns", ()):
            names = [found["id"], *found.get("aliases", ())]
            reasons = [each for each in names if each in WAIVERS]
            used.update(reasons)
            if reasons:
                waived.append(f"{name}: {reasons[0]} is waived: {WAIVERS[reasons[0]]}")
            else:
                versions = ", ".join(found.get("fix_versions", ())) or "no version"
                bad.append(f"{name}: {' = '.join(names)}; fixed in {versions}")
    return bad, waived, [each for each in WAIVERS if each not in used], unknown


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
            print(f"audit: no installed package needs the waiver of {each}")
        if unknown:
            print(f"audit: not checked, because {source} does not know them: {', '.join(unknown)}")
        print(f"audit: {len(report) - len(unknown)} packages checked with {source}, {len(bad)} vulnerabilities")
        sys.exit(1 if bad else 0)
    print("audit: NO AUDIT WAS MADE: no source of advisories can be reached")
    sys.exit(NO_AUDIT)


if __name__ == "__main__":
    main()
