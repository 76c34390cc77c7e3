"""The user's settings: defaults < ``bugurt.toml`` < environment ``BUGURT_*`` < options.

``bugurt.toml`` is looked for in the current folder and the ones above it. It holds no secrets: those live in the
environment, in a Kubernetes Secret, or in a file of mode 0600 that bugurt writes itself.
"""

from __future__ import annotations

import logging
import os
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from cli.options import OPTIONS
from jobs.specs import ConfigError, describe

FILE = "bugurt.toml"
Resource = str  # a Kubernetes quantity: "500m", "8Gi"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class S3Section(_Section):
    """``[s3]``: the bucket, as this machine reaches it. Empty: the embedded server of one machine."""

    bucket: str | None = Field(None, description="name of the bucket")
    prefix: str = Field("", description="everything lies below it, so that several people can share a bucket")
    endpoint: str | None = Field(None, description="URL of an S3 server that is not AWS")
    endpoint_in_cluster: str | None = Field(None, description="the same server's URL as pods reach it")
    region: str | None = Field(None, description="of AWS; other servers mostly do without")
    profile: str | None = Field(None, description="a profile of ~/.aws/config")
    path_style: bool | None = Field(None, description="unset: true where there is an endpoint, as MinIO wants it")
    ca_bundle: str | None = Field(
        None,
        description="file with the certificate authorities to trust; `bugurt install` hands it to pods that use https",
    )

    @property
    def ca_for_pods(self) -> str | None:
        """``ca_bundle``, unless pods reach the bucket by plain HTTP and have no use for it."""
        address = self.endpoint_in_cluster or self.endpoint or ""
        return None if address.lower().startswith("http://") else self.ca_bundle

    # Only from the environment (BUGURT_S3_…): a settings file is no place for them.
    access_key_id: str | None = Field(None, repr=False, exclude=True)
    secret_access_key: str | None = Field(None, repr=False, exclude=True)
    session_token: str | None = Field(None, repr=False, exclude=True)


class StageResources(_Section):
    """``[cluster.STAGE]``: what a stage's pods ask for; unset values are those of the Job template."""

    cpu: Resource | None = Field(None, description="cores: '4', '500m'")
    memory: Resource | None = Field(None, description="'16Gi'; also the limit")
    disk: Resource | None = Field(None, description="'40Gi' of the node's own disk, for all that a pod writes")
    gpu: int | None = Field(None, ge=0, le=64, description="GPUs a pod; train asks for one unless told otherwise")
    image: str | None = Field(None, description="instead of REGISTRY/STAGE:TAG; a digest is welcome")
    node_selector: dict[str, str] = Field(default_factory=dict)
    runtime_class: str | None = Field(None, description="a RuntimeClass: 'nvidia' where GPUs need one, as on k3s")
    priority_class: str | None = Field(
        None,
        description="a PriorityClass; with a queue, a WorkloadPriorityClass of Kueue "
        "(of the driver, which is in no queue, always a PriorityClass)",
    )
    parallelism: int | None = Field(None, ge=1, description="shards at the same time")
    nodes: int | None = Field(None, ge=1, le=64, description="train: pods that train together")


class ClusterSection(_Section):
    """``[cluster]``: where the stages run."""

    kind: Literal["local", "kubernetes"] = Field("local", description="processes on this machine, or Jobs")
    context: str | None = Field(None, description="of the kubeconfig; unset: the current one")
    namespace: str | None = Field(None, description="unset: that of the context, else 'bugurt'")
    queue: str | None = Field(None, description="a Kueue LocalQueue")
    registry: str = Field(
        "bugurt",
        description="registry and folder of the images, REGISTRY/STAGE:TAG; unset: only what was loaded into the nodes",
    )
    tag: str | None = Field(None, description="of the images; unset: this version")
    image_pull_secret: str | None = Field(None, description="Secret with the registry's credentials")
    s3_secret: str = Field(
        "bugurt-s3",
        description="Secret with BUGURT_S3_ACCESS_KEY_ID and …_SECRET_ACCESS_KEY; empty: the nodes' own role",
    )
    telegram_secret: str = Field("bugurt-telegram", description="Secret that `bugurt login` writes")
    templates: str | None = Field(None, description="folder with Job templates of your own")
    hub: bool = Field(False, description="pods may load models from the Hugging Face hub; else from the bucket only")
    tolerations: list[dict[str, Any]] = Field(default_factory=list, description="as in a pod, for all stages")
    scrape: StageResources = StageResources()
    preprocess: StageResources = StageResources()
    train: StageResources = StageResources()
    generate: StageResources = StageResources()
    driver: StageResources = StageResources()


class Settings(BaseSettings):
    """All settings. ``[scrape]``, ``[preprocess]``, ``[train]``, ``[generate]`` hold defaults of the specs."""

    model_config = SettingsConfigDict(
        env_prefix="BUGURT_", env_nested_delimiter="_", env_nested_max_split=1, extra="ignore", frozen=True
    )

    owner: str | None = Field(None, description="whose runs these are; unset: the user's name on this machine")
    s3: S3Section = S3Section()
    cluster: ClusterSection = ClusterSection()
    scrape: dict[str, Any] = Field(default_factory=dict)
    preprocess: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    generate: dict[str, Any] = Field(default_factory=dict)
    root: Path = Field(default_factory=Path.cwd, description="folder that holds bugurt.toml and .bugurt/")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # what load() passes in comes from the file

    @cached_property
    def state(self) -> Path:
        """The folder for everything that one machine keeps: ``.bugurt``."""
        return self.root / ".bugurt"


log = logging.getLogger(__name__)


def find_file(start: Path | None = None) -> Path | None:
    """``bugurt.toml`` here or in a folder above."""
    folder = (start or Path.cwd()).resolve()
    for place in (folder, *folder.parents):
        if (place / FILE).is_file():
            return place / FILE
    return None


_SECRETS = {"access_key_id", "secret_access_key", "session_token"}


def load(file: Path | None = None) -> Settings:
    """Read the settings. Raises ConfigError that names the file and the field."""
    file = file or find_file()
    log.info("settings: %s, BUGURT_* of the environment", file or f"no {FILE} here or above")
    data: dict[str, Any] = {}
    if file is not None:
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {file}: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file} is not valid TOML: {error}") from error
        except RecursionError as error:
            raise ConfigError(f"{file} is not valid TOML: it is nested too deep") from error
        except ValueError as error:  # Python's own bound on the digits of a number
            raise ConfigError(f"{file} is not valid TOML: a number in it has no end") from error
        unknown = sorted(set(data) - (set(Settings.model_fields) - {"root"}))
        if unknown:
            raise ConfigError(f"{file}: {unknown[0]}: unknown section or field")
        section = data.get("s3")
        leaked = sorted(_SECRETS & set(section)) if isinstance(section, dict) else []
        if leaked:
            raise ConfigError(
                f"{file}: s3.{leaked[0]}: secrets do not belong in a settings file; "
                f"set BUGURT_S3_{leaked[0].upper()} or use an AWS profile"
            )
        data["root"] = file.parent
    try:
        return _placed(Settings(**data))
    except ValidationError as error:
        place = [str(part) for part in error.errors()[0]["loc"]]
        raise ConfigError(describe(error, _variable(place) or str(file or "the BUGURT_* environment"))) from error
    except (SettingsError, RecursionError) as error:
        raise ConfigError(_unreadable(error)) from error


def _placed(settings: Settings) -> Settings:
    """With its paths made absolute: a relative one begins at the settings file, wherever a command is given."""

    def absolute(name: str, text: str) -> str:
        try:
            return str((settings.root / Path(text).expanduser()).absolute())
        except RuntimeError as error:
            raise ConfigError(f"{name}: {text!r}: there is no such user's home on this machine") from error

    changes: dict[str, Any] = {}
    if settings.s3.ca_bundle:
        bundle = absolute("s3.ca_bundle", settings.s3.ca_bundle)
        changes["s3"] = settings.s3.model_copy(update={"ca_bundle": bundle})
    if settings.cluster.templates:
        folder = absolute("cluster.templates", settings.cluster.templates)
        changes["cluster"] = settings.cluster.model_copy(update={"templates": folder})
    return settings.model_copy(update=changes) if changes else settings


def origin(settings: Settings, place: list[str]) -> str:
    """Where the settings have a field's value from, as the user knows it: a variable, or the settings file."""
    return _variable(place) or str(OPTIONS.config or settings.root / FILE)


def _variable(place: list[str]) -> str | None:
    """The variable of the environment that a field's value came from; None where it came from elsewhere."""
    named = {name.upper(): name for name in os.environ}
    for depth in (2, 1):  # BUGURT_CLUSTER_TRAIN holds the field train.gpu, as JSON
        name = "_".join(("bugurt", *place[:depth])).upper()
        if len(place) >= depth and name in named:
            return named[name]
    return None


def _unreadable(error: Exception) -> str:
    """One sentence for a variable that should hold a table and holds no JSON."""
    text = getattr(error.__cause__, "doc", None)  # what the JSON reader was given
    names = [n for n, value in os.environ.items() if value == text and n.upper().startswith("BUGURT_")]
    shown = f" (got {text[:80]!r})" if text else ""
    return f"{names[0] if names else 'the BUGURT_* environment'}: a table must be written as JSON{shown}"
