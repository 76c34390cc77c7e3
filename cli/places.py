"""Where things are, by the settings: the bucket and the cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from cli.clusters.base import Cluster
from cli.options import OPTIONS
from cli.settings import Settings

if TYPE_CHECKING:
    from jobs.artifacts import ArtifactStore


log = logging.getLogger(__name__)


def is_embedded(settings: Settings) -> bool:
    """Whether the bucket is that of the embedded S3 server: one machine, and no other bucket is named."""
    return settings.cluster.kind == "local" and settings.s3.bucket is None


def s3_env(settings: Settings) -> dict[str, str]:
    """The variables by which a stage of this machine finds the bucket; starts the embedded server if need be."""
    if is_embedded(settings):
        from cli.clusters import local_s3

        env = local_s3.ensure(settings.state).env()
        return {**env, "BUGURT_S3_PREFIX": settings.s3.prefix}
    section = settings.s3
    values = {
        "BUCKET": section.bucket,
        "PREFIX": section.prefix,
        "ENDPOINT": section.endpoint,
        "REGION": section.region,
        "PROFILE": section.profile,
        "PATH_STYLE": None if section.path_style is None else str(section.path_style).lower(),
        "CA_BUNDLE": section.ca_bundle,
        "ACCESS_KEY_ID": section.access_key_id,
        "SECRET_ACCESS_KEY": section.secret_access_key,
        "SESSION_TOKEN": section.session_token,
    }
    return {f"BUGURT_S3_{name}": value for name, value in values.items() if value}


def is_unmade(settings: Settings) -> bool:
    """Whether the bucket is the embedded one and nothing was ever put into it: its folder is not there."""
    from cli.clusters.local_s3 import served

    return is_embedded(settings) and not served(settings.state).is_dir()


def open_store(settings: Settings, *, making: bool = False) -> ArtifactStore:
    """The bucket, checked to be there. Raises ConfigError or TemporaryError.

    ``making``: for something that will be put into it; whoever only looks at the embedded bucket finds it empty where
    there is none yet, and leaves the folder as it is.
    """
    from jobs.artifacts import ArtifactStore, Bucket, S3Settings

    bucket: Bucket
    if is_unmade(settings) and not making:
        from cli.clusters.local_s3 import BUCKET
        from cli.empty import EmptyBucket

        bucket = EmptyBucket(S3Settings(BUCKET, settings.s3.prefix))
    else:
        bucket = Bucket(S3Settings.from_env(s3_env(settings)))
    store = ArtifactStore(bucket, show_progress=False if OPTIONS.quiet else None)
    bucket.check()
    log.info("the bucket is %s at %s", bucket.url(""), bucket.settings.endpoint or "AWS")
    return store


def open_cluster(settings: Settings) -> Cluster:
    """The cluster that the settings name."""
    log.info("the stages run as %s", "Jobs in the cluster" if settings.cluster.kind == "kubernetes" else "processes")
    if settings.cluster.kind == "kubernetes":
        from cli.clusters.kubernetes import KubernetesCluster

        return KubernetesCluster.from_settings(settings)
    from cli.clusters.local import LocalCluster

    env: Callable[[], dict[str, str]] = lambda: s3_env(settings)  # noqa: E731
    return LocalCluster.from_settings(settings, env)
