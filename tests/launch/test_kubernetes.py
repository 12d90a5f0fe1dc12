"""The manifest: its command lines are understood, its roles allow what registries do and no more, its times are enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_asyncio.client import ApiClient

import router.config
import workers.sglang.options
from events.membership.kubernetes import KubernetesRegistry
from tests.events.cards import card
from tests.events.fake_kubernetes import FakeKubernetes
from workers.sglang.launching.drain import Patience

MANIFEST = Path(__file__).resolve().parents[2] / "launch" / "kubernetes.yaml"
KINDS = {"Deployment": "V1Deployment", "Service": "V1Service", "Role": "V1Role", "RoleBinding": "V1RoleBinding"}


def objects(kind: str) -> dict[str, Any]:
    """Of one kind, by name."""
    found = [item for item in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")) if item is not None]
    return {item["metadata"]["name"]: item for item in found if item["kind"] == kind}


def pod(deployment: str) -> dict[str, Any]:
    spec: dict[str, Any] = objects("Deployment")[deployment]["spec"]["template"]["spec"]
    return spec


def words(deployment: str) -> list[str]:
    """The arguments of its only container, as they are once Kubernetes has put in what it knows."""
    (container,) = pod(deployment)["containers"]
    known = {variable["name"] for variable in container.get("env", ())}
    arguments = " ".join(container["args"])
    for name in known:
        arguments = arguments.replace(f"$({name})", "10.0.0.1")
    assert "$(" not in arguments
    return arguments.split()


@pytest.mark.parametrize(("kind", "model"), KINDS.items())
async def test_every_object_is_one_that_kubernetes_knows(kind: str, model: str) -> None:
    async with ApiClient() as client:
        for item in objects(kind).values():
            read = client._ApiClient__deserialize(item, model)
            assert client.sanitize_for_serialization(read) == item  # no field is unknown


def test_command_lines_are_understood() -> None:
    config = router.config.parse(words("warmpath-router"))
    line = workers.sglang.options.parse(words("warmpath-worker"))
    assert config.discovery == line.options.discovery == "kubernetes"
    assert config.nats == line.options.nats == "nats://nats:4222"
    assert [*objects("Service")] == ["nats", "warmpath"]
    assert line.engine == ["--model-path=/models/llama", "--port=30000"]


def test_a_worker_has_time_to_end() -> None:
    assert pod("warmpath-worker")["terminationGracePeriodSeconds"] > sum(Patience())


async def verbs_used(act: Any) -> set[str]:
    """What a registry asks of the API server while it does something."""
    async with FakeKubernetes() as server:
        ours, others = (
            KubernetesRegistry("ns", 0.5, 0.01, kubernetes_namespace="models", connect=server.connect) for _ in "ab"
        )
        await others.register(card("other"))
        others._own.clear()  # it crashes, and expires
        server.verbs.clear()
        await act(ours, server)
        used = set(server.verbs)
        await ours.close()
        await others.close()
    return used


async def test_roles_allow_what_registries_do_and_no_more(eventually: Any) -> None:
    async def work(registry: KubernetesRegistry, server: FakeKubernetes) -> None:
        await registry.register(card())
        await registry.register(card(epoch=2))
        await eventually(lambda: registry.statistics().heartbeats > 1)
        await registry.unregister("w1")

    async def route(registry: KubernetesRegistry, server: FakeKubernetes) -> None:
        async for _ in registry.watch():
            if not server.leases:
                break

    for role, act in (("warmpath-worker", work), ("warmpath-router", route)):
        (rule,) = objects("Role")[role]["rules"]
        assert await verbs_used(act) == set(rule["verbs"])
        (subject,) = objects("RoleBinding")[role]["subjects"]
        assert subject["name"] in objects("ServiceAccount")
        assert pod(role)["serviceAccountName"] == subject["name"]
