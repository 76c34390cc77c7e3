"""``bugurt install``: put into a cluster what runs need there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options

if TYPE_CHECKING:
    from cli.clusters.kubernetes_api import Access, Api
    from cli.settings import Settings

FIELD_MANAGER = "bugurt"


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("install")(install)


def install(
    queue: Annotated[bool, typer.Option("--queue", help="Kueue's queue and quotas, too.")] = False,
    dev: Annotated[bool, typer.Option("--dev", help="An S3 server in the cluster, too, for a trial.")] = False,
    s3_secret: Annotated[
        bool, typer.Option("--s3-secret", help="Put this machine's S3 credentials into the cluster's Secret.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Take back what others have changed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the objects as YAML and send nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Put into the cluster what runs need: namespace, accounts, a Role, network policies. Twice changes nothing."""
    from cli.clusters.kubernetes_api import connect
    from cli.kustomize import objects
    from cli.manifests import to_yaml
    from cli.output import next_commands, print_json, print_table, say
    from jobs.specs import ConfigError

    settings = options.settings()
    if settings.cluster.kind != "kubernetes":
        raise ConfigError('install is for clusters: set kind = "kubernetes" in the [cluster] section of bugurt.toml')
    if s3_secret and not settings.cluster.s3_secret:
        raise ConfigError("--s3-secret: [cluster] s3_secret is empty, so no pod would read it; take that line out")
    overlays = (["kueue"] if queue else []) + (["dev"] if dev else [])
    if dry_run:
        namespace = settings.cluster.namespace or "bugurt"
        typer.echo(to_yaml(objects(settings, namespace, overlays)), nl=False)
        if s3_secret or dev:
            say(f"and the Secret {settings.cluster.s3_secret or 'bugurt-s3'}, which is not printed", err=True)
        if not queue and not settings.cluster.queue:
            say("and, where Kueue is installed, the rights on its objects: k8s/overlays/kueue-roles", err=True)
        return
    access = connect(settings.cluster.context, settings.cluster.namespace)
    if _kueue_version(access.api):
        overlays.append("kueue-roles")
    done = apply_all(access, objects(settings, access.namespace, overlays), force=force)
    if not settings.cluster.hub:
        done += remove_hub(access)
    if s3_secret or dev:
        done.append(write_s3_secret(access, settings, random=dev and not s3_secret))
    if as_json:
        print_json(done)
    else:
        rows = [(d["what"], d["kind"], d["name"], d["note"]) for d in done]
        print_table(("what", "kind", "name", "note"), rows)
    if any(d["what"] == "fail" for d in done):
        say("error: not everything could be installed; see above", err=True)
        raise typer.Exit(78)
    if not as_json:
        next_commands("bugurt doctor")


def apply_all(access: Access, things: list[dict[str, Any]], *, force: bool) -> list[dict[str, str]]:
    """Apply objects server-side; one line each: created, changed, unchanged, kept or fail."""
    from cli.kustomize import KUEUE

    api = access.api
    done = []
    for thing in things:
        if thing["apiVersion"].startswith(KUEUE):
            version = _kueue_version(api)
            if not version:
                done.append(
                    _line("fail", thing, "Kueue is not installed: https://kueue.sigs.k8s.io/docs/installation/")
                )
                continue
            thing["apiVersion"] = f"{KUEUE}/{version}"
        done.append(apply(api, thing, force=force))
    return done


def _kueue_version(api: Api) -> str:
    from cli.clusters.kubernetes_api import find
    from cli.kustomize import KUEUE, kueue_version

    return kueue_version(find(api, "looking for Kueue", "GET", f"/apis/{KUEUE}"))


def apply(api: Api, thing: dict[str, Any], *, force: bool) -> dict[str, str]:
    """Apply one object and tell what that did."""
    from cli.clusters.kubernetes_api import APPLY_PATCH, ApiError, Unreachable, fail
    from cli.kustomize import ENFORCE, is_ours, path_of

    doing = f"applying {thing['kind']} {thing['metadata']['name']}"
    path = path_of(thing)
    query = {"fieldManager": FIELD_MANAGER, **({"force": "true"} if force else {})}
    try:
        before = _look(api, path)
        if thing["kind"] == "ClusterQueue":
            if before is not None and not force:
                return _line("kept", thing, "its quotas are yours to change")
            _fit_quota(api, thing)
        if thing["kind"] == "Namespace" and before is not None and not force:
            marks = before["metadata"].get("labels") or {}
            if not is_ours(before) and ENFORCE not in marks:
                how = f"kubectl label namespace {thing['metadata']['name']} {ENFORCE}=restricted"
                return _line("kept", thing, f"restricted would hold for other people's pods, too: {how}, or --force")
        after = api.request("PATCH", path, query=query, body=thing, content_type=APPLY_PATCH)
    except Unreachable as error:
        fail(error, doing, api.host)
    except ApiError as error:
        if error.status == 409:
            return _line("kept", thing, f"changed by others; --force takes it back ({error.message[:200]})")
        if error.status == 403 and thing["kind"] == "Namespace":
            return _line("kept", thing, "you may not change namespaces; ask an administrator if it is not there")
        if error.status in (403, 404) and _is_on_queues(thing):  # 404: a RoleBinding whose Role was refused
            return _line(
                "kept",
                thing,
                "only somebody who may read Kueue's Workloads can give that right; without it nobody is told why a run "
                "waits in its queue",
            )
        if error.status in (401, 429) or error.status >= 500:
            fail(error, doing, api.host)
        return _line("fail", thing, error.message[:300])
    if before is None:
        return _line("created", thing, "")
    return _line("unchanged" if _same(before, after) else "changed", thing, "")


def _is_on_queues(thing: dict[str, Any]) -> bool:
    return thing["kind"] in ("Role", "RoleBinding") and thing["metadata"]["name"].endswith("-kueue")


def remove_hub(access: Access) -> list[dict[str, str]]:
    """Close the way to the hub that an earlier `hub = true` has opened; a line if there was one of ours."""
    from cli.clusters.kubernetes_api import ApiError, Unreachable, fail
    from cli.kustomize import is_ours, path_of

    meta = {"name": "bugurt-hub", "namespace": access.namespace}
    thing = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta}
    path, doing = path_of(thing), "removing NetworkPolicy bugurt-hub"
    try:
        found = _look(access.api, path)
        if found is None or not is_ours(found):
            return []
        access.api.request("DELETE", path)
    except Unreachable as error:
        fail(error, doing, access.api.host)
    except ApiError as error:
        if error.status == 404:  # somebody else was faster
            return []
        if error.status in (401, 429) or error.status >= 500:
            fail(error, doing, access.api.host)
        return [_line("fail", thing, f"hub is not set, and pods may still reach it: {error.message[:300]}")]
    return [_line("removed", thing, "hub is not set any more")]


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether our applying changed nothing. Controllers write annotations and fields at any moment, before it, too.

    What we apply is recorded with its time in the object's managedFields, and a server leaves that record as it is
    where applying changes nothing.
    """
    ours = _our_record(before)
    return _content(before) == _content(after) or (ours is not None and ours == _our_record(after))


def _our_record(thing: dict[str, Any]) -> dict[str, Any] | None:
    records = thing["metadata"].get("managedFields") or ()
    return next((r for r in records if (r.get("manager"), r.get("operation")) == (FIELD_MANAGER, "Apply")), None)


def _content(thing: dict[str, Any]) -> dict[str, Any]:
    """What people say of an object. Its controller may write the status, and so raise the version, at any moment."""
    meta = {k: v for k, v in thing["metadata"].items() if k not in ("resourceVersion", "managedFields")}
    return {**{k: v for k, v in thing.items() if k != "status"}, "metadata": meta}


def _look(api: Api, path: str) -> dict[str, Any] | None:
    from cli.clusters.kubernetes_api import ApiError

    try:
        return api.request("GET", path)
    except ApiError as error:
        if error.status in (403, 404):
            return None
        raise


def _fit_quota(api: Api, thing: dict[str, Any]) -> None:
    """Quotas of all that the nodes have, where nodes may be listed; else the template's."""
    from cli.clusters.kubernetes_api import ApiError
    from cli.kustomize import quota_of, with_quota

    try:
        nodes = api.request("GET", "/api/v1/nodes").get("items") or []
    except ApiError:
        return
    if nodes:
        with_quota(thing, quota_of(nodes))


def write_s3_secret(access: Access, settings: Settings, *, random: bool) -> dict[str, str]:
    """The Secret with the bucket's credentials: this machine's, or made-up ones where there is no Secret yet."""
    import base64
    import secrets as randomness

    from cli.kustomize import PART_OF
    from jobs.specs import ConfigError

    name = settings.cluster.s3_secret or "bugurt-s3"
    meta = {"name": name, "namespace": access.namespace, "labels": dict(PART_OF)}
    thing: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque"}
    key: str | None
    secret: str | None
    token: str | None = None
    if random:
        if _look(access.api, f"/api/v1/namespaces/{access.namespace}/secrets/{name}") is not None:
            return _line("kept", thing, "it is there already")
        key, secret = randomness.token_hex(8), randomness.token_hex(20)
    else:
        key, secret, token = _own_credentials(settings)
    if not key or not secret:
        raise ConfigError(
            "--s3-secret: this machine has no S3 credentials: set BUGURT_S3_ACCESS_KEY_ID and "
            "BUGURT_S3_SECRET_ACCESS_KEY, or the AWS environment or profile"
        )
    values = {"ACCESS_KEY_ID": key, "SECRET_ACCESS_KEY": secret, **({"SESSION_TOKEN": token} if token else {})}
    thing["data"] = {f"BUGURT_S3_{n}": base64.b64encode(v.encode()).decode() for n, v in values.items()}
    line = apply(access.api, thing, force=True)
    return {**line, "note": "a session token ends some day; make the Secret anew then"} if token else line


def _own_credentials(settings: Settings) -> tuple[str | None, str | None, str | None]:
    s3 = settings.s3
    if s3.access_key_id and s3.secret_access_key:
        return s3.access_key_id, s3.secret_access_key, s3.session_token
    import boto3

    found = boto3.session.Session(profile_name=s3.profile).get_credentials()
    if found is None:
        return None, None, None
    frozen = found.get_frozen_credentials()
    return frozen.access_key, frozen.secret_key, frozen.token


def _line(what: str, thing: dict[str, Any], note: str) -> dict[str, str]:
    return {"what": what, "kind": thing["kind"], "name": thing["metadata"]["name"], "note": " ".join(note.split())}
