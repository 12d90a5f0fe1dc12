"""Which registry, by the options that routers and adapters share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from events.command import seconds
from events.membership import RegistryError
from events.membership.etcd.access import DEFAULT_URL, EtcdAccess
from events.membership.file import FileRegistry
from events.membership.location import DEFAULT_DISCOVERY_PATH

if TYPE_CHECKING:
    from events.membership import Registry

DEFAULT_TTL_SECONDS = 10.0
KINDS = ("file", "etcd", "kubernetes", "memory")


class DiscoveryOptions(Protocol):
    """What `add_options` asks for; a parsed command line, or a dataclass with the same names."""

    @property
    def namespace(self) -> str:
        """Only workers of this one."""

    @property
    def discovery(self) -> str:
        """One of `KINDS`."""

    @property
    def discovery_path(self) -> Path:
        """The folder."""

    @property
    def discovery_ttl_seconds(self) -> float:
        """A card without a sign of life for so long is gone."""

    @property
    def kubernetes_namespace(self) -> str | None:
        """Where leases are; None: in the pod's own."""

    @property
    def etcd(self) -> str:
        """URLs of members, separated by commas."""

    @property
    def etcd_user(self) -> str | None:
        """A user of etcd's."""

    @property
    def etcd_password_file(self) -> Path | None:
        """Holds its password, so that no process list shows it."""

    @property
    def etcd_ca(self) -> Path | None:
        """Certificates, PEM; so the next two."""

    @property
    def etcd_cert(self) -> Path | None:
        """The client's."""

    @property
    def etcd_key(self) -> Path | None:
        """Its key."""


Options = argparse.Namespace | DiscoveryOptions


def add_options(group: argparse._ArgumentGroup | argparse.ArgumentParser, memory: str) -> None:
    """`--discovery` and what belongs to it; `memory` says what that kind means here."""
    add = group.add_argument
    add(
        *("--discovery", "--discovery-backend", "--kv_store"),
        dest="discovery",
        choices=KINDS,
        default="file",
        help=f"registry of workers: a folder (default), an etcd cluster, Kubernetes (leases), or memory: {memory}",
    )
    add(
        "--discovery-path",
        type=Path,
        default=DEFAULT_DISCOVERY_PATH,
        metavar="DIR",
        help="the folder, the same for routers and adapters (default: %(default)s)",
    )
    add(
        "--discovery-ttl",
        dest="discovery_ttl_seconds",
        type=seconds,
        default=DEFAULT_TTL_SECONDS,
        metavar="SECONDS",
        help="a worker without a sign of life for so long is gone; the same for routers and adapters (default: %(default)g)",
    )
    add(
        *("--etcd", "--etcd-endpoints"),
        dest="etcd",
        default=DEFAULT_URL,
        metavar="URL",
        help="members of the cluster, separated by commas; https for TLS (default: %(default)s)",
    )
    add(
        "--kubernetes-namespace",
        metavar="NAME",
        help="where the workers' leases are (default: the pod's own; outside of a pod: default)",
    )
    add("--etcd-user", metavar="NAME", help="a user of etcd's (default: none)")
    add("--etcd-password-file", type=Path, metavar="FILE", help="holds the user's password")
    add("--etcd-ca", type=Path, metavar="FILE", help="authorities that etcd's certificate is checked against, PEM")
    add("--etcd-cert", type=Path, metavar="FILE", help="certificate to show to etcd, PEM")
    add("--etcd-key", type=Path, metavar="FILE", help="its key, PEM")


def open_registry(options: Options) -> Registry:
    """The registry that the options name.

    :raises RegistryError: an option cannot be used (the text names it), or the etcd client is not installed.
    """
    match options.discovery:
        case "file":
            return FileRegistry(options.discovery_path, options.namespace, options.discovery_ttl_seconds)
        case "etcd":
            return _etcd(options)
        case "kubernetes":
            return _kubernetes(options)
        case _:
            from events.membership.memory import MemoryRegistry

            return MemoryRegistry()


def etcd_access(options: Options) -> EtcdAccess:
    """Where etcd is, and how to get in.

    :raises RegistryError: an option cannot be used.
    """
    password_file = options.etcd_password_file
    for file in (password_file, options.etcd_ca, options.etcd_cert, options.etcd_key):
        if file is not None and not file.is_file():
            raise RegistryError(f"--etcd options: there is no file {file}")
    try:
        return EtcdAccess(
            urls=tuple(url.strip().rstrip("/") for url in options.etcd.split(",")),
            user=options.etcd_user,
            password=password_file.read_text(encoding="utf-8").rstrip("\n") if password_file else None,
            ca_file=options.etcd_ca,
            cert_file=options.etcd_cert,
            key_file=options.etcd_key,
        )
    except (ValueError, OSError) as error:
        raise RegistryError(f"--etcd options: {error}") from error


def _etcd(options: Options) -> Registry:
    access = etcd_access(options)
    try:
        from events.membership.etcd.registry import EtcdRegistry
    except ImportError as error:
        raise RegistryError(f"--discovery etcd needs the package {error.name}: pip install 'warmpath[etcd]'") from error
    return EtcdRegistry(access, options.namespace, options.discovery_ttl_seconds)


def _kubernetes(options: Options) -> Registry:
    try:
        from events.membership.kubernetes import KubernetesRegistry
    except ImportError as error:
        raise RegistryError(
            f"--discovery kubernetes needs the package {error.name}: pip install 'warmpath[kubernetes]'"
        ) from error
    return KubernetesRegistry(
        options.namespace, options.discovery_ttl_seconds, kubernetes_namespace=options.kubernetes_namespace
    )
