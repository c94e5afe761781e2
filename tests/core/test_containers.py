from __future__ import annotations

import pytest

from turnout.core.containers import forwards_ports, runs_container


@pytest.mark.parametrize(
    ("command", "call"),
    [
        (["docker", "run", "--rm", "-p", "127.0.0.1:{port}:6379", "redis:7"], "docker run"),
        (["/usr/bin/podman", "run", "postgres:17"], "podman run"),
        (["nerdctl", "run", "redis"], "nerdctl run"),
        (["docker", "container", "run", "redis"], "docker container run"),
        (["docker", "--context", "far", "run", "redis"], "docker run"),
        (["docker", "--context=far", "-D", "--host", "tcp://10.0.0.1:2375", "run", "redis"], "docker run"),
        (["podman", "--log-level", "debug", "--root", "/srv/run", "run", "redis"], "podman run"),
        (["nerdctl", "-n", "k8s.io", "--debug", "run", "redis"], "nerdctl run"),
        (["docker", "start", "-a", "cache"], "docker start"),
        (["docker", "exec", "cache", "redis-server"], "docker exec"),
        (["docker", "compose", "-f", "run.yaml", "up"], "docker compose up"),
        (["docker", "--context", "x", "compose", "--project-name", "p", "up", "web"], "docker compose up"),
        (["docker-compose", "-f", "a.yaml", "up"], "docker-compose up"),
        (["podman-compose", "up"], "podman-compose up"),
        (["podman", "kube", "play", "pod.yaml"], "podman kube play"),
        (["sudo", "docker", "run", "redis"], "docker run"),
        (["sudo", "-u", "app", "-E", "docker", "run", "redis"], "docker run"),
        (["env", "X=1", "docker", "run", "redis"], "docker run"),
        (["env", "-i", "PATH=/bin", "docker", "run", "redis"], "docker run"),
        (["timeout", "30", "nice", "-n", "5", "docker", "run", "redis"], "docker run"),
        (["flock", "/run/lock", "podman", "run", "redis"], "podman run"),
        (["sh", "-c", "docker run redis"], "docker run"),
        (["sh", "-c", "exec docker run redis"], "docker run"),
        (["bash", "-ec", "cd /srv && X=1 exec docker --context x run redis"], "docker run"),
        (["bash", "-e", "-c", "set -x\ndocker \\\n  run redis"], "docker run"),
        (["bash", "-c", "docker pull redis; docker run redis | tee log"], "docker run"),
        (["sh", "-c", "(docker run redis)"], "docker run"),
        (["sh", "-c", "if true; then docker run redis; fi"], "docker run"),
        (["sh", "-c", "sudo sh -c 'docker run redis'"], "docker run"),
        (["sh", "-c", "eval 'docker run redis'"], "docker run"),
        (["su", "app", "-c", "docker run redis"], "docker run"),
        (["sh", "-c", "docker run redis &"], "docker run"),
        (["busybox", "sh", "-c", "docker run redis"], "docker run"),
    ],
)
def test_a_command_that_starts_a_container_is_recognised(command: list[str], call: str) -> None:
    assert runs_container(command) == call


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["docker"],
        ["docker", "ps"],
        ["docker", "--context", "run", "ps"],
        ["docker", "compose", "--profile", "up", "ps"],
        ["docker", "inspect", "run"],
        ["dockerd", "run"],
        ["./docker.py", "run"],
        ["echo", "docker", "run"],
        ["./server", "--with", "docker run"],
        ["python", "-c", "docker run"],
        ["sudo", "-u", "docker", "./server", "run"],
        ["sh", "-c", "echo 'docker run'; exec ./server"],
        ["sh", "-c", "./server # docker run"],
        ["sh", "-c", "docker pull redis && exec ./server --port {port}"],
        ["sh", "-c", "docker stop cache; exec ./server run"],
        ["sh", "-c", "it's not a script"],
        ["sh", "docker", "run"],
        ["redis-server", "--port", "{port}"],
    ],
)
def test_a_command_that_merely_has_such_words_is_not(command: list[str]) -> None:
    assert runs_container(command) == ""


@pytest.mark.parametrize(
    "program",
    [
        "docker-proxy",
        "/usr/bin/docker-proxy",
        "conmon",
        "rootlessport",
        "containers-rootlessport",
        "containers-root",
        "rootlesskit",
        "slirp4netns",
        "pasta",
        "pasta.avx2",
    ],
)
def test_what_listens_in_a_containers_place_is_known_by_its_name(program: str) -> None:
    assert forwards_ports(program)


@pytest.mark.parametrize("program", ["redis-server", "python3", "my-docker-proxy", "", "antipasta"])
def test_what_listens_for_itself_is_not(program: str) -> None:
    assert not forwards_ports(program)
