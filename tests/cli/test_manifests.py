"""What is sent to a cluster: a golden file a stage, the schema of several versions, and rules that no schema knows.

``UPDATE_GOLDEN=1 pytest tests/cli/test_manifests.py`` writes the golden files anew; look at the difference then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli import manifests
from cli.clusters.base import JobRequest, job_name
from cli.kustomize import KUEUE, build, kueue_version, objects, quantity, quota_of, s3_egress
from cli.settings import ClusterSection, Settings, load
from jobs.specs import (
    FATAL_CODES,
    STAGES,
    ConfigError,
    ExitCode,
    GenerateSpec,
    PreprocessSpec,
    ScrapeSpec,
    SpecError,
    TrainSpec,
)
from tests.cli.fake_cluster import cluster_settings
from tests.cli.fake_kubernetes import expand

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ("1.33", "1.34", "1.35", "1.36", "1.37")
POSTS, DATASET, MODEL, BATCH = (f"{kind}/{'0123456789abcdef0123'}" for kind in ("posts", "dataset", "model", "batch"))
Object = dict[str, Any]

SPECS: dict[str, tuple[Object, str | None, int]] = {
    "driver": ({"run": "made-up"}, None, 1),
    "scrape": (ScrapeSpec(channel="@made_up_channel").model_dump(mode="json"), POSTS, 1),
    "preprocess": (PreprocessSpec(posts=POSTS).model_dump(mode="json"), DATASET, 1),
    "train": (TrainSpec(dataset=DATASET, model="scratch:small").model_dump(mode="json"), MODEL, 1),
    "generate": (GenerateSpec(model=MODEL, prompts=("ПОШЁЛ В МАГАЗИН",)).model_dump(mode="json"), BATCH, 1),
    "generate-shards": (GenerateSpec(model=MODEL, count=5000, shards=25).model_dump(mode="json"), BATCH, 25),
}
#: settings under which everything must be valid, too
SETTINGS: dict[str, Object] = {
    "plain": {},
    "all": {
        "queue": "team-queue",
        "registry": "registry.example.org/team/",
        "tag": "1.2.3",
        "image_pull_secret": "pull",
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "ml", "effect": "NoSchedule"}],
        "hub": True,
        "train": {
            "gpu": 2,
            "nodes": 3,
            "memory": "48Gi",
            "cpu": "8",
            "node_selector": {"gpu": "a100"},
            "runtime_class": "nvidia",
            "priority_class": "bugurt-high",
            "image": "registry.example.org/other/train@sha256:" + "0" * 64,
        },
        "generate": {"gpu": 0, "parallelism": 4, "priority_class": "bugurt-low"},
    },
    "no queue": {
        "train": {"gpu": 0, "priority_class": "urgent"},
        "s3_secret": "",
        "telegram_secret": "own",
    },
}


def request(name: str, **changes: Any) -> JobRequest:
    spec, ref, shards = SPECS[name]
    component: Any = name.partition("-")[0]
    values = {"name": job_name("made-up", component, ref, 1), "run": "made-up", "component": component, "spec": spec}
    owner = None if component == "driver" else "made-up-driver"
    return JobRequest(**{**values, "shards": shards, "artifact": ref, "owner": owner, **changes})


def render(name: str, settings: Settings | None = None, **changes: Any) -> Object:
    found = manifests.render(
        request(name, **changes), settings or cluster_settings(owner="me"), namespace="bugurt", owner_uid="uid-1"
    )
    return found[0]


def container_of(job: Object) -> Object:
    found: Object = job["spec"]["template"]["spec"]["containers"][0]
    return found


def env_of(job: Object) -> dict[str, str]:
    """A container's variables as the kubelet would resolve them."""
    env: dict[str, str] = {}
    for entry in container_of(job)["env"]:
        env[entry["name"]] = expand(entry["value"], env)
    return env


# -- golden files


@pytest.mark.parametrize("name", SPECS)
def test_golden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "__version__", "0.0.0")  # the files do not change with each release
    spec = {"stage": name, "note": "a stage's fields are not what this file is about"}
    if name == "scrape":
        spec["channel"] = "@made_up"  # with a session, then
    text = manifests.to_yaml([render(name, spec=spec)])
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == render(name, spec=spec)  # and YAML does not change what is meant


# -- the schema


def strict(thing: Object, version: str) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize(
    ("settings", "version"),
    [*(("all", v) for v in VERSIONS), *((s, VERSIONS[0]) for s in SETTINGS if s != "all")],
)
def test_every_job_is_valid(settings: str, version: str) -> None:
    for name in SPECS:
        strict(render(name, cluster_settings(**SETTINGS[settings])), version)


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_everything_installed_is_valid(version: str) -> None:
    for thing in objects(cluster_settings(hub=True, image_pull_secret="pull"), "team-a", ["kueue", "dev"]):
        if not thing["apiVersion"].startswith("kueue"):
            strict(thing, version)
    for thing in yaml.safe_load_all((manifests.builtin_folder() / "secrets.example.yaml").read_text(encoding="utf-8")):
        strict(thing, version)
        assert not any(thing["stringData"].values())


# -- rules that a schema does not know


def all_jobs() -> Iterator[tuple[str, Object]]:
    for title, fields in SETTINGS.items():
        for name in SPECS:
            yield f"{name}, {title}", render(name, cluster_settings(**fields))


@pytest.mark.parametrize(("name", "job"), list(all_jobs()), ids=lambda v: v if isinstance(v, str) else "")
def test_pods_would_do_under_restricted_pod_security(name: str, job: Object) -> None:
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in pod["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
    allowed = {"emptyDir", "configMap"}
    assert all(set(v) - {"name"} <= allowed for v in pod["volumes"])
    assert pod["automountServiceAccountToken"] is (job["metadata"]["labels"]["app.kubernetes.io/component"] == "driver")
    assert pod["enableServiceLinks"] is False and pod["restartPolicy"] == "Never"


@pytest.mark.parametrize(("name", "job"), list(all_jobs()), ids=lambda v: v if isinstance(v, str) else "")
def test_job_rules(name: str, job: Object) -> None:
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["podReplacementPolicy"] == "Failed" and spec["ttlSecondsAfterFinished"] == 7 * 86_400
    assert not {"suspend", "managedBy"} & set(spec)  # they are Kueue's
    rules = spec["podFailurePolicy"]["rules"]
    by_code = {c: r["action"] for r in reversed(rules) if "onExitCodes" in r for c in r["onExitCodes"]["values"]}
    for rule in rules:
        assert rule.get("onExitCodes", {}).get("operator", "In") == "In"  # an unknown code is worth another try
        values = rule.get("onExitCodes", {}).get("values", [])
        assert values == sorted(values)  # the API server insists
        assert not (rule["action"] == "Ignore" and values)  # an out-of-memory pod would loop for ever
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} in rules
    indexed = spec.get("completionMode") == "Indexed"
    if name.startswith("driver"):
        # What `cli.driver.drive` answers with. All else is a pod's end and not the run's: 255 is what containerd says
        # of a container whose node was started again, 128 that it could not be started.
        assert by_code == dict.fromkeys((*sorted(FATAL_CODES), int(ExitCode.INTERNAL)), "FailJob")
    else:
        per_index = "backoffLimitPerIndex" in spec
        assert by_code == {64: "FailJob", 65: "FailIndex" if per_index else "FailJob", 78: "FailJob"}
        assert set(by_code) == set(FATAL_CODES)
    if indexed:
        assert spec["parallelism"] <= spec["completions"]
        host = f"{job['metadata']['name']}-{spec['completions'] - 1}"
        assert len(host) <= 63
    else:
        assert not {"completions", "parallelism", "backoffLimitPerIndex", "maxFailedIndexes"} & set(spec)
    assert ("backoffLimit" in spec) != ("backoffLimitPerIndex" in spec)
    resources = container_of(job)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert not any(k.endswith("/gpu") for k in resources["requests"])
    disk = sum(
        quantity(v["emptyDir"]["sizeLimit"])
        for v in pod["volumes"]
        if "emptyDir" in v and "medium" not in v["emptyDir"]
    )
    assert disk <= quantity(resources["limits"]["ephemeral-storage"])
    shm = [quantity(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"] if "medium" in v.get("emptyDir", {})]
    assert sum(shm) < quantity(resources["limits"]["memory"])  # it counts as the pod's memory
    mounts = {m["mountPath"] for m in container_of(job)["volumeMounts"]}
    places = [v for k, v in env_of(job).items() if k in FOLDERS]
    assert all(any(p == m or p.startswith(f"{m}/") for m in mounts) for p in places)
    assert job["spec"]["template"]["metadata"]["labels"].items() <= job["metadata"]["labels"].items()


FOLDERS = (
    "HOME",
    "TMPDIR",
    "BUGURT_WORKDIR",
    "HF_HOME",
    "XDG_CACHE_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
)


def test_longest_names_still_fit() -> None:
    run = "a" * 31
    for component in manifests.COMPONENTS:
        name = job_name(run, component, BATCH if component != "driver" else None, 99)
        assert len(f"{name}-9999") <= 63


def test_each_stage_gets_its_own_secrets_only() -> None:
    def secrets(name: str, **cluster: Any) -> list[str]:
        sources = container_of(render(name, cluster_settings(**cluster))).get("envFrom", [])
        return [s["secretRef"]["name"] for s in sources]

    assert secrets("scrape") == ["bugurt-s3", "bugurt-telegram"]
    for name in ("preprocess", "train", "generate", "driver"):
        assert secrets(name) == ["bugurt-s3"]
    assert secrets("scrape", s3_secret="a", telegram_secret="b") == ["a", "b"]
    export = {"stage": "scrape", "source": "source/" + "0" * 20, "channel": None}
    sources = container_of(render("scrape", spec=export))["envFrom"]
    assert [s["secretRef"]["name"] for s in sources] == ["bugurt-s3"], "an export needs no session"
    assert secrets("train", s3_secret="") == []


def test_no_credentials_are_sent() -> None:
    settings = cluster_settings()
    s3 = settings.s3.model_copy(update={"access_key_id": "KEY-ID", "secret_access_key": "VERY-SECRET"})
    settings = settings.model_copy(update={"s3": s3})
    for name in SPECS:
        text = json.dumps(manifests.render(request(name), settings, namespace="bugurt"))
        assert "KEY-ID" not in text and "VERY-SECRET" not in text


def test_the_pod_is_told_what_the_stage_reads() -> None:
    job = render("generate", force=True, env={"BUGURT_DEBUG": "1"})
    env = env_of(job)
    assert GenerateSpec.model_validate_json(env["BUGURT_SPEC"]).prompts == ("ПОШЁЛ В МАГАЗИН",)
    assert (env["BUGURT_RUN"], env["BUGURT_FORCE"], env["BUGURT_DEBUG"]) == ("made-up", "1", "1")
    assert (env["BUGURT_S3_BUCKET"], env["BUGURT_S3_PREFIX"]) == ("bucket", "team")
    assert env["BUGURT_S3_ENDPOINT"] == "http://s3.data.svc:9000"  # as pods reach it, not as the laptop does
    assert env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in env_of(render("generate", cluster_settings(hub=True)))
    assert "HF_HUB_OFFLINE" not in env_of(render("scrape"))
    assert "\n" in env["BUGURT_SPEC"]  # `kubectl describe` shows it over several lines


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200))
def test_any_text_reaches_the_stage_as_it_is(text: str) -> None:
    assert expand(manifests.escape_env(text), {"BUGURT_S3_BUCKET": "b"}) == text


def test_a_prompt_cannot_read_the_environment() -> None:
    spec = GenerateSpec(model=MODEL, prompts=("$(BUGURT_S3_BUCKET) $$(X) $HOME",)).model_dump(mode="json")
    env = env_of(render("generate", spec=spec))
    assert json.loads(env["BUGURT_SPEC"])["prompts"] == ["$(BUGURT_S3_BUCKET) $$(X) $HOME"]


def test_a_spec_that_no_job_can_hold_is_refused_with_a_way_out() -> None:
    spec = GenerateSpec(model=MODEL, prompts=("Б" * 9000,) * 10).model_dump(mode="json")
    with pytest.raises(SpecError, match="prompts_file"):
        render("generate", spec=spec)


def test_the_driver_reads_the_same_settings_in_its_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = cluster_settings(owner="me", **SETTINGS["all"], context="laptop-only")
    env = env_of(render("driver", given))
    for name in [n for n in os.environ if n.startswith("BUGURT_")]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        if name.startswith("BUGURT_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    found = load()
    assert found.cluster == given.cluster.model_copy(update={"context": None, "namespace": "bugurt"})
    assert (found.owner, found.s3.bucket, found.s3.prefix) == ("me", "bucket", "team")
    for name in SPECS:  # so the driver renders what the laptop would
        if name != "driver":
            assert render(name, found) == render(name, given)


# -- what the settings ask for


def test_resources_and_places_follow_the_settings() -> None:
    settings = cluster_settings(**SETTINGS["all"])
    train, generate, scrape = (render(n, settings) for n in ("train", "generate-shards", "scrape"))
    resources = container_of(train)["resources"]
    assert (resources["limits"]["nvidia.com/gpu"], resources["limits"]["memory"]) == (2, "48Gi")
    assert resources["requests"]["cpu"] == "8"
    assert container_of(train)["image"].startswith("registry.example.org/other/train@sha256:")
    assert container_of(scrape)["image"] == "registry.example.org/team/scrape:1.2.3"
    pod = train["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert pod["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in scrape["spec"]["template"]["spec"]
    assert [t["key"] for t in pod["tolerations"]] == ["nvidia.com/gpu", "dedicated"]
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert train["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
    assert train["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "bugurt-high"
    assert "priorityClassName" not in pod
    assert "kueue.x-k8s.io/queue-name" not in render("driver", settings)["metadata"]["labels"]  # it holds no quota
    assert (generate["spec"]["parallelism"], generate["spec"]["maxFailedIndexes"]) == (4, 3)
    assert render("train", cluster_settings(train={"priority_class": "urgent"}))["spec"]["template"]["spec"][
        "priorityClassName"
    ] == "urgent"  # fmt: skip
    bare = render("train", cluster_settings(train={"gpu": 0}))
    assert "nvidia.com/gpu" not in container_of(bare)["resources"]["limits"]


def test_disk_is_one_number_for_all_that_a_pod_writes() -> None:
    """More than the template's, and less: a small node of a trial takes no pod that asks for 40Gi."""
    for disk in ("3Gi", "200Gi"):
        job = render("train", cluster_settings(train={"disk": disk}))
        resources = container_of(job)["resources"]
        assert resources["requests"]["ephemeral-storage"] == resources["limits"]["ephemeral-storage"] == disk
        sizes = {v["name"]: v["emptyDir"] for v in job["spec"]["template"]["spec"]["volumes"]}
        assert sizes["tmp"] == sizes["work"] == sizes["cache"] == {"sizeLimit": disk}
        assert sizes["shm"] == {"medium": "Memory", "sizeLimit": "4Gi"}  # that is memory
        strict(job, VERSIONS[0])


def test_several_nodes_that_train_together() -> None:
    job = render("train", cluster_settings(train={"nodes": 3}))
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["template"]["spec"]["subdomain"] == manifests.RENDEZVOUS_SERVICE
    env = env_of(job)
    host, _, port = env["BUGURT_TRAIN_RENDEZVOUS"].partition(":")
    assert host == f"{job['metadata']['name']}-0.bugurt-train" and port == "29500"
    assert env["BUGURT_TRAIN_NODES"] == "3"
    service = next(o for o in objects(cluster_settings(), "bugurt") if o["kind"] == "Service")
    assert service["metadata"]["name"] == manifests.RENDEZVOUS_SERVICE
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    from jobs.train.topology import Topology  # the stage understands it

    found = Topology.from_env({**env, "JOB_COMPLETION_INDEX": "2"})
    assert (found.nodes, found.node, found.host, found.port) == (3, 2, host, 29500)


def test_a_child_belongs_to_its_driver_but_is_not_managed_by_it() -> None:
    owner = render("train")["metadata"]["ownerReferences"]
    assert owner == [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": "made-up-driver",
            "uid": "uid-1",
            "controller": False,
            "blockOwnerDeletion": False,
        }
    ]
    assert "ownerReferences" not in render("driver")["metadata"]
    assert "ownerReferences" not in manifests.render(request("train"), cluster_settings(), namespace="b")[0]["metadata"]


@given(st.text(max_size=100))
def test_any_owner_makes_a_label(owner: str) -> None:
    found = render("scrape", cluster_settings(owner=owner))["metadata"]["labels"].get(manifests.OWNER_LABEL)
    assert found is None or re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", found)


def test_a_stage_that_holds_gpus_is_told_how_many(tmp_path: Path) -> None:
    """A pod that asks for GPUs and sees none (no runtime class on k3s) is to end with a sentence and not to crawl."""

    def told(name: str, **cluster: Any) -> str | None:
        return env_of(render(name, cluster_settings(**cluster))).get("BUGURT_GPUS")

    assert told("train") == "1"
    assert told("train", train={"gpu": 4}) == "4"
    assert told("train", train={"gpu": 0}) is None
    assert [told(name) for name in ("driver", "scrape", "preprocess", "generate")] == [None] * 4
    assert told("generate-shards", generate={"gpu": 2}) == "2"
    text = (manifests.builtin_folder() / "jobs" / "train.yaml").read_text(encoding="utf-8")
    (tmp_path / "train.yaml").write_text(text.replace("nvidia.com/gpu: 1", 'amd.com/gpu: "3"'), encoding="utf-8")
    assert told("train", templates=str(tmp_path)) == "3"


def test_an_image_without_a_registry_is_never_pulled(tmp_path: Path) -> None:
    """docker.io/bugurt is anybody's: a node that lacks the image must not fetch one from there and give it the key."""

    def policy(name: str, **cluster: Any) -> str:
        return str(container_of(render(name, cluster_settings(**cluster)))["imagePullPolicy"])

    assert {policy(name) for name in SPECS} == {"Never"}
    assert {policy(name, tag="1.2.3") for name in SPECS} == {"Never"}
    assert {policy(name, registry="registry.example.org/team") for name in SPECS} == {"IfNotPresent"}
    assert policy("train", registry="docker.io/bugurt") == "IfNotPresent"  # who says so means it
    assert policy("train", train={"image": "me/train:7"}) == "IfNotPresent"
    text = (manifests.builtin_folder() / "jobs" / "train.yaml").read_text(encoding="utf-8")
    (tmp_path / "train.yaml").write_text(text.replace("bugurt/train #", "me/train:7 #"), encoding="utf-8")
    assert policy("train", templates=str(tmp_path)) == "IfNotPresent"
    (tmp_path / "scrape.yaml").write_text(
        (manifests.builtin_folder() / "jobs" / "scrape.yaml")
        .read_text(encoding="utf-8")
        .replace("IfNotPresent", "Always")
    )
    assert policy("scrape", templates=str(tmp_path)) == "Always"

    def server(**cluster: Any) -> str:
        (found,) = [o for o in objects(cluster_settings(**cluster), "bugurt", ["dev"]) if o["kind"] == "Deployment"]
        return str(container_of({"spec": found["spec"]})["imagePullPolicy"])

    assert (server(), server(registry="registry.example.org/team")) == ("Never", "IfNotPresent")


# -- a bucket whose certificate is of one's own authority


def authorities(path: Path, count: int = 1) -> Path:
    """A file with certificates that a TLS library takes: the first ones of botocore's own."""
    import botocore

    text = (Path(botocore.__file__).parent / "cacert.pem").read_text(encoding="utf-8")
    found = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", text, re.DOTALL)
    path.write_text("".join(found[:count]))
    return path


def trusting(path: Path, **cluster: Any) -> Settings:
    settings = cluster_settings(**cluster)
    s3 = {"ca_bundle": str(path), "endpoint": "https://s3.example.org", "endpoint_in_cluster": None}
    return settings.model_copy(update={"s3": settings.s3.model_copy(update=s3)})


def test_certificate_authorities_reach_every_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = trusting(authorities(tmp_path / "ca.pem"))
    (config,) = [o for o in objects(settings, "team-a", ["dev"]) if o["kind"] == "ConfigMap"]
    assert config["metadata"]["name"] == "bugurt-ca" and config["metadata"]["namespace"] == "team-a"
    assert config["data"] == {"ca.crt": (tmp_path / "ca.pem").read_text()}
    strict(config, VERSIONS[0])
    for name in SPECS:
        job = render(name, settings)
        strict(job, VERSIONS[0])
        assert env_of(job)["BUGURT_S3_CA_BUNDLE"] == "/etc/bugurt/ca/ca.crt"
        assert {"name": "bugurt-ca", "configMap": {"name": "bugurt-ca"}} in job["spec"]["template"]["spec"]["volumes"]
        mount = {"name": "bugurt-ca", "mountPath": "/etc/bugurt/ca", "readOnly": True}
        assert mount in container_of(job)["volumeMounts"]
        assert "BUGURT_S3_CA_BUNDLE" not in env_of(render(name))
    inside = settings.s3.model_copy(update={"endpoint_in_cluster": "http://minio.storage.svc:9000"})
    plain = settings.model_copy(update={"s3": inside})
    assert "BUGURT_S3_CA_BUNDLE" not in env_of(render("train", plain))
    assert "bugurt-ca" not in json.dumps(render("train", plain))
    assert "ConfigMap" not in {o["kind"] for o in objects(plain, "team-a")}
    for name, value in env_of(render("driver", settings)).items():
        monkeypatch.setenv(name, value)
    found = load()  # in the driver's pod, which makes the stages' Jobs
    assert render("train", found) == render("train", settings.model_copy(update={"owner": found.owner}))


def test_a_template_with_certificates_of_its_own_keeps_them(tmp_path: Path) -> None:
    text = (manifests.builtin_folder() / "jobs" / "train.yaml").read_text(encoding="utf-8")
    text = text.replace(
        "          volumeMounts:\n", "          volumeMounts:\n            - {name: mine, mountPath: /etc/bugurt/ca}\n"
    )
    text = text.replace("      volumes:\n", "      volumes:\n        - {name: mine, secret: {secretName: my-ca}}\n")
    (tmp_path / "train.yaml").write_text(text, encoding="utf-8")
    job = render("train", trusting(authorities(tmp_path / "ca.pem"), templates=str(tmp_path)))
    assert [m["name"] for m in container_of(job)["volumeMounts"] if m["mountPath"] == "/etc/bugurt/ca"] == ["mine"]
    strict(job, VERSIONS[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read "),
        (b"\x30\x82\x01\x0a", "holds no certificates in PEM"),
        (b"hello\n", "holds no certificates in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nhello\n-----END CERTIFICATE-----\n", "holds no certificates in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\n", "holds a private key"),
        ("large", "pods get at most 900000"),
    ],
)
def test_a_file_that_pods_cannot_be_given_is_one_sentence(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "ca.pem"
    if content == "large":
        authorities(path)
        path.write_text(path.read_text() + "# a comment\n" * 80_000)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^s3\.ca_bundle: .*{words}"):
        objects(trusting(path), "bugurt")


# -- templates of one's own


def test_own_templates_win_and_travel_with_the_driver(tmp_path: Path) -> None:
    text = (manifests.builtin_folder() / "jobs" / "train.yaml").read_text(encoding="utf-8")
    text = text.replace("bugurt/train #", "my.registry/my-train:7 #").replace("4Gi", "8Gi")
    (tmp_path / "train.yaml").write_text(text, encoding="utf-8")
    settings = cluster_settings(templates=str(tmp_path))
    assert container_of(render("train", settings))["image"] == "my.registry/my-train:7"
    assert container_of(render("scrape", settings))["image"].startswith("bugurt/scrape:")
    driver, config = manifests.render(request("driver"), settings, namespace="bugurt")
    assert config["data"] == {"train.yaml": text}
    assert json.loads(env_of(driver)["BUGURT_CLUSTER"])["templates"] == "/etc/bugurt/templates"
    pod = driver["spec"]["template"]["spec"]
    assert {"name": "templates", "configMap": {"name": config["metadata"]["name"]}} in pod["volumes"]
    for thing in (driver, config):
        strict(thing, VERSIONS[-1])


def test_a_template_may_give_its_stage_a_key_of_its_own(tmp_path: Path) -> None:
    text = (manifests.builtin_folder() / "jobs" / "scrape.yaml").read_text(encoding="utf-8")
    text = text.replace("name: bugurt-s3", "name: bugurt-s3-scrape").replace("bugurt-stage", "scrape-role")
    (tmp_path / "scrape.yaml").write_text(text, encoding="utf-8")
    settings = cluster_settings(templates=str(tmp_path))
    job = render("scrape", settings)
    names = [e["secretRef"]["name"] for e in container_of(job)["envFrom"]]
    assert names == ["bugurt-s3-scrape", settings.cluster.telegram_secret]
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == "scrape-role"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: [", "is not valid YAML"),
        ("kind: Pod\napiVersion: v1", "kind Job"),
        ("[]", "kind Job"),
        ("apiVersion: batch/v1\nkind: Job\nspec: {}", "containers: is missing"),
        (
            "apiVersion: batch/v1\nkind: Job\nspec: {template: {spec: {containers: [{name: other}]}}}",
            "must have the name 'stage'",
        ),
    ],
)
def test_a_broken_template_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "scrape.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        render("scrape", cluster_settings(templates=str(tmp_path)))
    assert sentence in str(caught.value) and str(tmp_path / "scrape.yaml") in str(caught.value)


def test_a_missing_template_folder_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no folder /nowhere"):
        render("scrape", cluster_settings(templates="/nowhere"))


def test_a_cluster_without_a_bucket_is_refused() -> None:
    settings = Settings.model_construct(cluster=ClusterSection(kind="kubernetes"))
    with pytest.raises(ConfigError, match="name one in bugurt"):
        render("scrape", settings)


def test_templates_are_in_the_wheel() -> None:
    """By setuptools' own rules for what pyproject.toml says, without building a wheel."""
    from fnmatch import fnmatch

    from setuptools import find_namespace_packages

    root = Path(__file__).resolve().parents[2]
    tool = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = set(find_namespace_packages(str(root), include=tool["packages"]["find"]["include"]))
    patterns = tool["package-data"]["*"]
    for path in (root / "k8s").rglob("*.yaml"):
        assert ".".join(path.parent.relative_to(root).parts) in packages, path
        assert any(fnmatch(path.name, p) for p in patterns), path


# -- what install applies

KUBECTL = shutil.which("kubectl")


def by_name(things: list[Object]) -> dict[tuple[str, str], Object]:
    return {(t["kind"], t["metadata"]["name"]): t for t in things}


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["base", "overlays/kueue", "overlays/kueue-roles", "overlays/dev", "overlays/hub"])
@pytest.mark.parametrize("namespace", [None, "team-a"])
def test_kustomize_is_understood_as_kubectl_does(folder: str, namespace: str | None, tmp_path: Path) -> None:
    place = manifests.builtin_folder() / folder
    target = place
    if namespace is not None:
        target = tmp_path / "k8s"
        shutil.copytree(manifests.builtin_folder(), target)
        (target / "mine").mkdir()
        (target / "mine" / "kustomization.yaml").write_text(f"namespace: {namespace}\nresources: [../{folder}]\n")
        target = target / "mine"
    assert KUBECTL is not None
    done = subprocess.run([KUBECTL, "kustomize", str(target)], capture_output=True, text=True, check=True)
    theirs = [o for o in yaml.safe_load_all(done.stdout) if o]
    for thing in theirs:
        if thing["kind"] in ("ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass"):
            thing["metadata"].pop("namespace", None)  # kustomize cannot know that they have none; the server drops it
    assert by_name(build(place, namespace)) == by_name(theirs)


def test_network_policies_close_all_but_what_is_needed() -> None:
    found = objects(cluster_settings(), "bugurt")
    policies = {o["metadata"]["name"]: o["spec"] for o in found if o["kind"] == "NetworkPolicy"}
    deny = policies["bugurt-default-deny"]
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"} and "egress" not in deny and "ingress" not in deny
    labels = {s: render(s)["spec"]["template"]["metadata"]["labels"] for s in (*STAGES, "driver")}

    def reach(stage: str) -> set[str]:
        names = set()
        for name, spec in policies.items():
            wanted = spec["podSelector"].get("matchLabels", {})
            among = all(labels[stage][e["key"]] in e["values"] for e in spec["podSelector"].get("matchExpressions", []))
            if wanted.items() <= labels[stage].items() and among and spec.get("egress"):
                names.add(name)
        return names

    ports = {
        name: {p["port"] for rule in spec.get("egress", []) for p in rule.get("ports", [])}
        for name, spec in policies.items()
    }
    assert ports["bugurt-dns"] == {53, 5353} and {443, 6443, 8443, 16443} == ports["bugurt-driver"]
    common = {"bugurt-dns", "bugurt-s3"}
    assert reach("scrape") == common | {"bugurt-telegram"}
    assert reach("preprocess") == reach("generate") == common
    assert reach("train") == common | {"bugurt-train-peers"}
    assert reach("driver") == common | {"bugurt-driver"}
    assert deny["podSelector"]["matchLabels"].items() <= labels["scrape"].items()


@pytest.mark.parametrize(
    ("endpoint", "egress"),
    [
        (None, {"ports": [{"protocol": "TCP", "port": 443}]}),
        ("https://s3.example.com", {"ports": [{"protocol": "TCP", "port": 443}]}),
        ("http://minio.example.com:9000", {"ports": [{"protocol": "TCP", "port": 9000}]}),
        (
            "http://10.1.2.3:9000",
            {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"protocol": "TCP", "port": 9000}]},
        ),
        ("http://minio.data.svc:9000", "data"),
        ("http://minio.data.svc.cluster.local", "data"),
        ("http://bugurt-bucket:9000", "bugurt"),
    ],
)
def test_the_way_to_the_bucket_is_narrow(endpoint: str | None, egress: Any) -> None:
    settings = cluster_settings()
    s3 = settings.s3.model_copy(update={"endpoint": endpoint, "endpoint_in_cluster": None})
    found = s3_egress(settings.model_copy(update={"s3": s3}), "bugurt")
    if isinstance(egress, str):
        labels = {"kubernetes.io/metadata.name": egress}
        egress = {"to": [{"namespaceSelector": {"matchLabels": labels}, "podSelector": {}}]}
    assert found == egress


@pytest.mark.parametrize(
    ("group", "version"),
    [
        ({"preferredVersion": {"version": "v1beta1"}, "versions": [{"version": "v1beta1"}]}, "v1beta1"),
        ({"preferredVersion": {"version": "v1beta2"}, "versions": [{"version": "v1beta2"}]}, "v1beta2"),
        ({"preferredVersion": {"version": "v1"}, "versions": [{"version": "v1"}, {"version": "v1beta2"}]}, "v1beta2"),
        ({"preferredVersion": {"version": "v1"}, "versions": [{"version": "v1"}]}, "v1"),
        ({}, ""),
    ],
)
def test_kueues_objects_are_told_in_the_version_they_are_written_in(group: Object, version: str) -> None:
    """A newer version that is preferred some day may name its fields otherwise."""
    assert kueue_version(group) == version


def test_pods_without_a_secret_reach_what_gives_them_the_keys_of_a_role() -> None:
    def egress(secret: str) -> list[Object]:
        found = objects(cluster_settings(s3_secret=secret), "bugurt")
        return list(next(o for o in found if o["metadata"]["name"] == "bugurt-s3")["spec"]["egress"])

    way, *more = egress("")
    assert egress("bugurt-s3") == [way]
    assert [b["ipBlock"]["cidr"] for b in more[0]["to"]] == ["169.254.169.254/32", "169.254.170.23/32"]


def test_the_drivers_role_is_no_wider_than_what_it_calls() -> None:
    """Run a whole driver's life on the fake and compare its calls with the Role."""
    from tests.cli.fake_cluster import FakeCluster, request_for

    cluster = FakeCluster(kueue=True, settings=cluster_settings(queue="bugurt"))
    cluster.plane.queue_open = False
    cluster.create(request_for("driver"))
    cluster.plane.calls.clear()
    made = cluster.create(request_for("train", owner="run-a-driver-0123abcd"))
    cluster.plane.queue_open = True
    cluster.plane.fault("train", "exit", code=75)
    for _ in cluster.watch(made.name):
        pass
    cluster.annotate(made.name, {"artifact": MODEL})
    cluster.create(request_for("train", owner="run-a-driver-0123abcd"))
    found = [o for o in objects(cluster_settings(queue="bugurt"), "bugurt") if o["kind"] == "Role"]
    rules = [r for o in found if o["metadata"]["name"].startswith("bugurt-driver") for r in o["rules"]]
    allowed = {(r, v) for rule in rules for r in rule["resources"] for v in rule["verbs"]}
    verbs = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
    used = set()
    for call in cluster.plane.calls:
        method, path = call.split(" ")[:2]
        match = re.search(r"/namespaces/[\w-]+/(\w+)(/[\w.-]+)?", path)
        if match is None:
            continue  # discovery: everybody may
        verb = verbs.get(method) or ("watch" if "stream" in call else "get" if match[2] else "list")
        used.add((match[1], verb))
    assert used <= allowed
    assert allowed - used <= {("pods", "get"), ("events", "get"), ("workloads", "get")}  # the singular of a list


def test_rights_on_queues_are_roles_of_their_own() -> None:
    """Nobody can give a right that they do not hold, and an administrator of a namespace holds none on Kueue's."""

    def on_queues(**cluster: Any) -> set[str]:
        roles = [o for o in objects(cluster_settings(**cluster), "bugurt") if o["kind"] == "Role"]
        return {o["metadata"]["name"] for o in roles for r in o["rules"] if KUEUE in r["apiGroups"]}

    assert on_queues() == set()
    assert on_queues(queue="bugurt") == {"bugurt-driver-kueue", "bugurt-user-kueue"}
    for thing in objects(cluster_settings(queue="bugurt"), "bugurt"):
        if thing["metadata"]["name"].endswith("-kueue") and thing["kind"] == "Role":
            assert all(rule["apiGroups"] == [KUEUE] for rule in thing["rules"])


def test_a_user_may_look_at_the_certificates_and_at_no_other_config_map() -> None:
    (role,) = [
        o for o in objects(cluster_settings(), "b") if (o["kind"], o["metadata"]["name"]) == ("Role", "bugurt-user")
    ]
    rules = [r for r in role["rules"] if r["resources"] == ["configmaps"] and r["verbs"] != ["create"]]
    assert rules == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [manifests.CA_CONFIG_MAP], "verbs": ["get"]}
    ]


def test_quotas_are_what_the_nodes_have() -> None:
    def node(cpu: str, memory: str, gpu: str | None = None, **spec: Any) -> Object:
        found = {"cpu": cpu, "memory": memory, "ephemeral-storage": "100Gi", **({"nvidia.com/gpu": gpu} if gpu else {})}
        return {"spec": spec, "status": {"allocatable": found, "conditions": [{"type": "Ready", "status": "True"}]}}

    nodes = [node("3500m", "16303612Ki", "2"), node("4", "8Gi"), node("64", "1Ti", unschedulable=True)]
    assert quota_of(nodes) == {"cpu": "7", "memory": "23Gi", "ephemeral-storage": "200Gi", "nvidia.com/gpu": "2"}
    lost = node("8", "8Gi")
    lost["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    assert quota_of([lost])["cpu"] == "0"
