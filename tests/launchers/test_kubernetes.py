"""The Kubernetes manifests in launch/ are consistent; no cluster runs them here."""

from pathlib import Path
from typing import Any

import yaml

from crepe_dist.commands.serve import Serve
from crepe_dist.errors import ExitCode
from crepe_dist.serving import open_inference
from crepe_dist.settings.config import parse_with_cluster

LAUNCH = Path(__file__).parents[2] / "launch"
MODULE = "crepe_dist.train"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text(encoding="utf-8")))


_, JOB = documents("job.yaml")
_, GPU_JOB = documents("job_gpu.yaml")
(MPIJOB,) = documents("mpijob.yaml")
(INFERENCE_SERVICE,) = documents("inferenceservice.yaml")
(RAYJOB,) = documents("rayjob.yaml")


def words(job: dict[str, Any]) -> list[str]:
    (each,) = job["template"]["spec"]["containers"]
    return [*each["command"], *each["args"]]


def test_their_flags_are_train_s():
    for command in (
        words(JOB["spec"]),
        words(GPU_JOB["spec"]),
        words(MPIJOB["spec"]["mpiReplicaSpecs"]["Launcher"]),
        RAYJOB["spec"]["entrypoint"].split(),
    ):
        config, _ = parse_with_cluster(command[command.index(MODULE) + 1 :])
        assert (config.run_dir or "").startswith("/runs/")


def test_the_flags_of_the_service_are_serve_s_and_its_probes_paths_of_the_protocol():
    (words,) = INFERENCE_SERVICE["spec"]["predictor"]["containers"]
    args = Serve.parsed(words["args"])
    assert words["name"] == "kserve-container"  # KServe mounts or downloads STORAGE_URI for this name.
    assert {each["name"] for each in words["env"]} >= {"STORAGE_URI", "PROTOCOL"}
    assert args.checkpoint == "/mnt/models"
    assert words["ports"][0]["containerPort"] == args.port
    for probe in ("readinessProbe", "livenessProbe"):
        assert words[probe]["httpGet"]["path"] in open_inference.paths(args.model_name)
        assert words[probe]["httpGet"]["port"] == args.port
    name = INFERENCE_SERVICE["metadata"]["name"]
    assert all(host.startswith(f"{name}-predictor") for host in args.allow_host)


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
