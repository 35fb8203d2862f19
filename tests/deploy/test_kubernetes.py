"""deploy/kubernetes against the code: ports, paths and options that exist, drain times that fit, confined pods.

Kubernetes' own schemas are asked in tests/chaos/test_manifests.py.
"""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from server.config import ServeConfig
from tests.deploy.commands import parse
from tests.deploy.dockerfile import stages
from tests.deploy.manifests import ROOT, base, documents, job, kustomization, settings

BASE = base()
DEPLOYMENT = BASE["Deployment", "seta"]
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]
JOB_POD: dict[str, Any] = job()["spec"]["template"]["spec"]
PORTS = {port["name"]: port["containerPort"] for port in SERVER["ports"]}
LABELS: dict[str, str] = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
CONTAINERS = [SERVER, *JOB_POD["initContainers"], *JOB_POD["containers"]]


def environment() -> dict[str, str]:
    """As the container sees it."""
    config = settings()
    found = {}
    for one in SERVER["env"]:
        reference = one.get("valueFrom", {}).get("configMapKeyRef")
        found[one["name"]] = one["value"] if reference is None else config[reference["key"]]
    return found


def served() -> dict[str, Any]:
    """The options that the container starts with."""
    arguments = [re.sub(r"\$\((\w+)\)", lambda match: environment()[match[1]], word) for word in SERVER["args"]]
    return parse(stages()["cpu"].words("ENTRYPOINT") + arguments)


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_every_file_is_listed_and_there() -> None:
    for folder in ("base", "cuda", "monitoring"):
        listed = kustomization(folder)
        names = [*listed["resources"], *(one["path"] for one in listed.get("patches", []))]
        assert all((ROOT / folder / name).exists() for name in names)
        assert {path.name for path in (ROOT / folder).glob("*.yaml")} - {"kustomization.yaml"} <= set(names)


def test_the_ports_are_those_that_the_server_listens_on() -> None:
    options = served()
    assert {"http": options["port"], "admin": options["admin_port"]} == PORTS
    assert options["admin_host"] == "0.0.0.0"
    assert options["api_keys_file"] and options["admin_keys_file"], "without keys it would refuse such hosts"


def test_what_the_server_reads_and_writes_is_mounted() -> None:
    options, mounts = served(), {one["mountPath"]: one for one in SERVER["volumeMounts"]}
    assert mounts[options["model"]]["readOnly"] and not mounts[str(options["bank"])].get("readOnly")
    for option in ("api_keys_file", "admin_keys_file"):
        assert mounts[str(options[option].parent)]["readOnly"] and "subPath" not in mounts[str(options[option].parent)]
    writable = {path for path, one in mounts.items() if not one.get("readOnly")}
    assert writable == {"/bank", "/tmp", f"{stages()['cpu'].last('WORKDIR')}", "/dev/shm"}


@pytest.mark.parametrize("pod", [POD, JOB_POD], ids=["server", "job"])
def test_mounts_volumes_and_claims_belong_together(pod: dict[str, Any]) -> None:
    volumes = {one["name"]: one for one in pod["volumes"]}
    used = {m["name"] for c in [*pod.get("initContainers", []), *pod["containers"]] for m in c["volumeMounts"]}
    assert used == set(volumes)
    claims = {one["persistentVolumeClaim"]["claimName"] for one in volumes.values() if "persistentVolumeClaim" in one}
    assert claims == {name for kind, name in BASE if kind == "PersistentVolumeClaim"}


def test_probes_ask_routes_that_need_no_key() -> None:
    from server.auth import OPEN_PATHS  # imports FastAPI

    probes = {name: SERVER[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    asked = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert asked == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert set(asked.values()) <= OPEN_PATHS
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"http"}
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 600


def test_a_roll_out_drops_no_request() -> None:
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    pause = int(SERVER["lifecycle"]["preStop"]["exec"]["command"][1])
    readiness = SERVER["readinessProbe"]["periodSeconds"]
    assert pause >= readiness, "a replica that ends has to be out of the service's list first"
    assert POD["terminationGracePeriodSeconds"] >= pause + served()["shutdown_seconds"] + 15


def test_environment_variables_are_ones_that_are_read() -> None:
    """Ours are arguments; what is left are OpenMP's and vLLM's own."""
    vllm = importlib.util.find_spec("vllm")  # not imported: that takes seconds
    assert vllm is not None and vllm.submodule_search_locations
    known = (Path(vllm.submodule_search_locations[0]) / "envs.py").read_text()
    names = {name for name in environment() if f"$({name})" not in " ".join(SERVER["args"])}
    assert names == {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"}
    assert '"VLLM_CPU_OMP_THREADS_BIND"' in known
    assert settings()["threads"] == SERVER["resources"]["limits"]["cpu"]
    assert settings()["shutdown-seconds"] != str(ServeConfig.model_fields["shutdown_seconds"].default)


@pytest.mark.parametrize("container", CONTAINERS, ids=[one["name"] for one in CONTAINERS])
def test_containers_are_confined(container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("pod", [POD, JOB_POD], ids=["server", "job"])
def test_pods_run_as_the_images_user(pod: dict[str, Any]) -> None:
    user = int(stages()["cpu"].last("USER"))
    context = pod["securityContext"]
    assert (context["runAsUser"], context["fsGroup"], context["runAsNonRoot"]) == (user, user, True)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"} and pod["automountServiceAccountToken"] is False
    enforced = BASE["Namespace", "seta"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"


def test_clients_and_administrators_have_services_of_their_own() -> None:
    clients, admin = BASE["Service", "seta"]["spec"], BASE["Service", "seta-admin"]["spec"]
    assert [(one["port"], one["targetPort"]) for one in clients["ports"]] == [(PORTS["http"], "http")]
    assert [(one["port"], one["targetPort"]) for one in admin["ports"]] == [(PORTS["admin"], "admin")]
    assert admin["clusterIP"] == "None", "its name has to have every replica's address"
    assert matches(clients["selector"], LABELS) and matches(admin["selector"], LABELS)


def test_the_admin_port_is_open_to_administrators_alone() -> None:
    policy = BASE["NetworkPolicy", "seta"]["spec"]
    assert matches(policy["podSelector"]["matchLabels"], LABELS)
    open_to = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}
    assert set(open_to) == set(PORTS) and open_to["http"] is None
    (peer,) = open_to["admin"]
    allowed = peer["podSelector"]["matchLabels"]
    assert matches(allowed, job()["spec"]["template"]["metadata"]["labels"]) and not matches(allowed, LABELS)
    assert set(peer) == {"podSelector"}  # of this namespace


def test_selectors_find_the_servers_and_nothing_else() -> None:
    job_labels = job()["spec"]["template"]["metadata"]["labels"]
    for kind, name in (("Deployment", "seta"), ("PodDisruptionBudget", "seta")):
        selector = BASE[kind, name]["spec"]["selector"]["matchLabels"]
        assert matches(selector, LABELS) and not matches(selector, job_labels)
    assert not matches(BASE["Service", "seta"]["spec"]["selector"], job_labels)


def test_secrets_are_named_and_never_held() -> None:
    for path in ROOT.rglob("*.yaml"):
        text = path.read_text()
        assert all(one["kind"] != "Secret" for one in documents(path)) and "sha256:" not in text
    keys = {one["name"]: one for one in POD["volumes"]}["keys"]["secret"]
    assert keys["defaultMode"] & 0o002 == 0, "a file that everybody may write to is refused as a keys file"


def test_metrics_come_from_the_clients_service_as_job_seta() -> None:
    (monitor,) = documents(ROOT / "monitoring" / "servicemonitor.yaml")
    service = BASE["Service", "seta"]
    assert matches(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "seta"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["authorization"]["credentials"]


def test_the_job_learns_and_activates_everywhere() -> None:
    (learn,), (activate,) = JOB_POD["initContainers"], JOB_POD["containers"]
    options = parse([*learn["command"], *learn["args"]])
    assert options["activate"] == f"http://seta-admin:{PORTS['admin']}" and ("Service", "seta-admin") in BASE
    (script,) = activate["args"]
    words = shlex.split(script.replace('"$(cat /bank/CURRENT)"', "5"))
    everywhere = parse(words)
    assert everywhere["every"] and everywhere["generation"] == 5 and everywhere["url"] == options["activate"]
    assert everywhere["key_file"] == options["key_file"]
    paths = [str(options[name]) for name in ("bank", "model", "key_file")] + [str(options["task"][0])]
    mounts = [one["mountPath"] for one in learn["volumeMounts"]]
    assert all(any(path == mount or path.startswith(mount + "/") for mount in mounts) for path in paths)
    assert job()["metadata"]["namespace"] == kustomization("base")["namespace"]


def test_the_cuda_overlay_changes_the_image_and_adds_a_gpu() -> None:
    overlay, (patch,) = kustomization("cuda"), documents(ROOT / "cuda" / "gpu.yaml")
    assert overlay["images"] == [{"name": SERVER["image"], "newTag": "cuda"}]
    assert patch["metadata"]["name"] == DEPLOYMENT["metadata"]["name"]
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    assert container["name"] == SERVER["name"] and container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {one["name"] for one in patch["spec"]["template"]["spec"]["volumes"]} <= {v["name"] for v in POD["volumes"]}
