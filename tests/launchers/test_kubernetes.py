"""The Kubernetes manifests in launch/ are valid and consistent; no cluster runs them here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from crepe_dist import serve
from crepe_dist.errors import ExitCode
from crepe_dist.serving import open_inference
from crepe_dist.settings.config import parse, parse_all

LAUNCH = Path(__file__).parents[2] / "launch"
VERSIONS = ("1.31", "1.37")
MODULE = "crepe_dist.train"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text(encoding="utf-8")))


SERVICE, JOB = documents("job.yaml")
(MPIJOB,) = documents("mpijob.yaml")
(INFERENCE_SERVICE,) = documents("inferenceservice.yaml")
PREDICTOR = INFERENCE_SERVICE["spec"]["predictor"]
REPLICAS = MPIJOB["spec"]["mpiReplicaSpecs"]
(RAYJOB,) = documents("rayjob.yaml")
RAY = RAYJOB["spec"]["rayClusterSpec"]
(RAY_WORKERS,) = RAY["workerGroupSpecs"]
TEMPLATES = {
    "job": JOB["spec"]["template"],
    **{role: each["template"] for role, each in REPLICAS.items()},
    "head": RAY["headGroupSpec"]["template"],
    "ray": RAY_WORKERS["template"],
    "predictor": {"spec": {name: each for name, each in PREDICTOR.items() if not name.endswith("Replicas")}},
}


def container(template: dict[str, Any]) -> dict[str, Any]:
    (found,) = template["spec"]["containers"]
    return dict(found)


def words(template: dict[str, Any]) -> list[str]:
    each = container(template)
    return [*each["command"], *each["args"]]


def environment(template: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(template)["env"]}


def as_job(template: dict[str, Any]) -> dict[str, Any]:
    """A Job around the template, because the schema of the package has whole objects only."""
    template = copy.deepcopy(template)
    template["spec"].setdefault("restartPolicy", "Never")
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"template": template}}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "manifest",
    [SERVICE, JOB, *map(as_job, TEMPLATES.values())],
    ids=["Service", "Job", *TEMPLATES],
)
def test_they_are_of_the_form_that_kubernetes_takes(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("role", ["job", "Launcher"])
def test_their_flags_are_train_s(role):
    template = TEMPLATES[role]
    command = words(template)
    config = parse(command[command.index(MODULE) + 1 :])
    assert config.run_dir is not None
    assert config.run_dir.startswith("/runs/")


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_no_pod_runs_as_root_or_is_told_no_limits(template):
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    each = container(template)
    assert each["securityContext"]["allowPrivilegeEscalation"] is False
    assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert each["resources"]["limits"].keys() >= {"cpu", "memory"}
    assert each["image"] == "crepe-dist:cpu"


@pytest.mark.parametrize("role", ["job", "Worker", "head", "ray"])
def test_those_that_compute_have_data_runs_and_shared_memory(role):
    template = TEMPLATES[role]
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in container(template)["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    for path in ("/data", "/runs"):
        assert "persistentVolumeClaim" in volumes[mounts[path]]


class TestInferenceService:
    def test_its_flags_are_serve_s_and_its_probes_paths_of_the_protocol(self):
        words = container(TEMPLATES["predictor"])
        args = serve.parser().parse_args(words["args"])
        assert words["name"] == "kserve-container"  # whose STORAGE_URI KServe mounts or downloads
        assert environment(TEMPLATES["predictor"]).keys() >= {"STORAGE_URI", "PROTOCOL"}
        assert args.checkpoint == "/mnt/models"
        assert words["ports"][0]["containerPort"] == args.port
        paths = open_inference.paths(args.model_name)
        for probe in ("readinessProbe", "livenessProbe"):
            assert words[probe]["httpGet"]["path"] in paths
            assert words[probe]["httpGet"]["port"] == args.port

    def test_it_answers_to_the_names_of_its_service(self):
        args = serve.parser().parse_args(container(TEMPLATES["predictor"])["args"])
        name = INFERENCE_SERVICE["metadata"]["name"]
        assert all(host.startswith(f"{name}-predictor") for host in args.allow_host)


class TestJob:
    def test_its_numbers_of_processes_agree(self):
        spec = JOB["spec"]
        processes = spec["completions"]
        assert spec["completionMode"] == "Indexed"
        assert spec["parallelism"] == processes
        assert environment(TEMPLATES["job"])["WORLD_SIZE"] == str(processes)
        assert spec["backoffLimit"] == 10 * processes

    def test_its_pods_meet_at_the_first(self):
        name, service = JOB["metadata"]["name"], SERVICE["metadata"]["name"]
        given = environment(TEMPLATES["job"])
        assert given["MASTER_ADDR"] == f"{name}-0.{service}"
        assert TEMPLATES["job"]["spec"]["subdomain"] == service
        assert SERVICE["spec"]["selector"] == {"job-name": name}
        assert SERVICE["spec"]["clusterIP"] == "None"
        assert SERVICE["spec"]["publishNotReadyAddresses"] is True
        assert given["MASTER_PORT"] == str(SERVICE["spec"]["ports"][0]["port"])
        assert "job-completion-index" in given["RANK"]["fieldRef"]["fieldPath"]

    @pytest.mark.parametrize(
        ("code", "action"),
        [
            (ExitCode.STOPPED, "Ignore"),
            (ExitCode.ERROR, "FailJob"),
            (2, "FailJob"),
            (ExitCode.PEER_GONE, "Count"),
            (ExitCode.FAILURE, "Count"),
            (ExitCode.HUNG, "Count"),
            (137, "Count"),
        ],
    )
    def test_what_the_end_of_a_process_means(self, code, action):
        rules = [each for each in JOB["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in each]
        assert all(each["onExitCodes"]["operator"] == "In" for each in rules)
        assert all(each["onExitCodes"]["containerName"] == container(TEMPLATES["job"])["name"] for each in rules)
        taken = [each["action"] for each in rules if code in each["onExitCodes"]["values"]]
        assert (taken or ["Count"]) == [action]
        assert TEMPLATES["job"]["spec"]["restartPolicy"] == "Never"  # without it there is no such policy

    def test_a_pod_that_was_taken_away_counts_nothing(self):
        rules = JOB["spec"]["podFailurePolicy"]["rules"]
        assert {"type": "DisruptionTarget", "status": "True"} in [
            condition for each in rules if each["action"] == "Ignore" for condition in each.get("onPodConditions", [])
        ]


class TestRayJob:
    def test_its_command_is_train_s_and_its_workers_have_room_for_the_processes(self):
        command = RAYJOB["spec"]["entrypoint"].split()
        config, cluster = parse_all(command[command.index(MODULE) + 1 :])
        assert config.run_dir is not None
        assert config.run_dir.startswith("/runs/")
        assert cluster is not None
        threads = int(yaml.safe_load(RAYJOB["spec"]["runtimeEnvYAML"])["env_vars"]["OMP_NUM_THREADS"])
        cores = int(container(TEMPLATES["ray"])["resources"]["limits"]["cpu"])
        assert cluster.processes == RAY_WORKERS["replicas"] * (cores // threads)

    def test_nothing_but_crepe_dist_restarts_the_run(self):
        assert RAYJOB["spec"]["backoffLimit"] == 0

    def test_its_version_is_the_one_that_is_tested(self):
        assert f'"ray=={RAY["rayVersion"]} ; ' in (LAUNCH.parent / "pyproject.toml").read_text(encoding="utf-8")
        page = (LAUNCH.parent / "docs" / "how-to" / "clusters.md").read_text(encoding="utf-8")
        assert f"ray[default]=={RAY['rayVersion']}" in page


class TestMpiJob:
    def test_its_numbers_of_processes_agree(self):
        spec = MPIJOB["spec"]
        processes = spec["slotsPerWorker"] * REPLICAS["Worker"]["replicas"]
        assert f"--np={processes}" in words(TEMPLATES["Launcher"])
        cores = int(container(TEMPLATES["Worker"])["resources"]["limits"]["cpu"])
        assert environment(TEMPLATES["Launcher"])["OMP_NUM_THREADS"] == str(cores // spec["slotsPerWorker"])

    def test_its_processes_meet_at_the_first_worker_and_know_where(self):
        name = MPIJOB["metadata"]["name"]
        given = environment(TEMPLATES["Launcher"])
        assert given["MASTER_ADDR"] == f"{name}-worker-0.{name}"
        command = words(TEMPLATES["Launcher"])
        passed = {command[place + 1] for place, word in enumerate(command) if word == "-x"}
        assert given.keys() <= passed
