"""The Kubernetes manifests in launch/ are consistent; no cluster runs them here."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from crepe_dist.errors import ExitCode
from crepe_dist.settings.config import parse_with_cluster

LAUNCH = Path(__file__).parents[2] / "launch"
MODULE = "crepe_dist.train"
VERSION = "1.37"  # Of Kubernetes.


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text(encoding="utf-8")))


SERVICE, JOB = documents("job.yaml")
GPU_SERVICE, GPU_JOB = documents("job_gpu.yaml")
(MPIJOB,) = documents("mpijob.yaml")
(RAYJOB,) = documents("rayjob.yaml")


def words(job: dict[str, Any]) -> list[str]:
    (each,) = job["template"]["spec"]["containers"]
    return [*each["command"], *each["args"]]


def test_they_are_of_the_form_that_kubernetes_takes():
    for manifest in (SERVICE, JOB, GPU_SERVICE, GPU_JOB):
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_their_flags_are_train_s():
    for command in (
        words(JOB["spec"]),
        words(GPU_JOB["spec"]),
        words(MPIJOB["spec"]["mpiReplicaSpecs"]["Launcher"]),
        RAYJOB["spec"]["entrypoint"].split(),
    ):
        config, _ = parse_with_cluster(command[command.index(MODULE) + 1 :])
        assert (config.run_dir or "").startswith("/runs/")


def test_what_the_end_of_a_process_of_a_job_means():
    policy, pod = JOB["spec"]["podFailurePolicy"]["rules"], JOB["spec"]["template"]["spec"]
    rules = [each for each in policy if "onExitCodes" in each]
    assert all(each["onExitCodes"]["operator"] == "In" for each in rules)
    assert all(each["onExitCodes"]["containerName"] == pod["containers"][0]["name"] for each in rules)
    actions = {code: each["action"] for each in rules for code in each["onExitCodes"]["values"]}
    assert actions == {ExitCode.STOPPED: "Ignore", ExitCode.ERROR: "FailJob", 2: "FailJob"}
    assert pod["restartPolicy"] == "Never"  # Required by podFailurePolicy.
    ignored = [each for rule in policy if rule["action"] == "Ignore" for each in rule.get("onPodConditions", [])]
    assert {"type": "DisruptionTarget", "status": "True"} in ignored
