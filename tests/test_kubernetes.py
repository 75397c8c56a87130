"""The manifest of a component: names and ports that belong together, and probes that no busy solver fails."""

from __future__ import annotations

from pathlib import Path

import yaml

MANIFEST = Path(__file__).parents[1] / "deployments" / "kubernetes" / "component.yaml"


def test_each_pod_has_a_service_of_its_own():
    pods, *services = yaml.safe_load_all(MANIFEST.read_text())
    name, spec = pods["metadata"]["name"], pods["spec"]
    assert pods["kind"] == "StatefulSet" and spec["selector"]["matchLabels"].items() <= (
        spec["template"]["metadata"]["labels"].items()
    )
    (container,) = spec["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert str(port["containerPort"]) in container["args"]
    by_name = {service["metadata"]["name"]: service["spec"] for service in services}
    assert by_name.pop(spec["serviceName"])["clusterIP"] == "None"
    assert sorted(by_name) == [f"{name}-{k}" for k in range(spec["replicas"])]
    for pod, service in by_name.items():
        assert service["selector"] == {"statefulset.kubernetes.io/pod-name": pod}
        assert service["ports"] == [{"name": "http", "port": port["containerPort"], "targetPort": port["name"]}]


def test_only_the_start_is_asked_over_http():
    pods, *_ = yaml.safe_load_all(MANIFEST.read_text())
    (container,) = pods["spec"]["template"]["spec"]["containers"]
    assert "httpGet" in container["startupProbe"]
    for probe in ("readinessProbe", "livenessProbe"):  # a worker that solves answers no request
        assert set(container[probe]) & {"httpGet", "tcpSocket", "exec", "grpc"} == {"tcpSocket"}
