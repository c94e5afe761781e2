"""Recognises commands that start a container, and programs that forward a container's ports; pure.

``docker run`` is a client: the container is a child of the engine. A stop signal ends the client, and the container may
live on, with the data and the port; a second one beside it is what ``recreate`` is to prevent.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Final

_ENGINES: Final = frozenset({"docker", "podman", "nerdctl", "finch", "nerdctl.lima", "podman-remote"})
_COMPOSERS: Final = frozenset({"docker-compose", "podman-compose"})
_RUNS: Final = frozenset({"run", "start", "exec", "attach"})
_COMPOSE_RUNS: Final = frozenset({"up", "run", "start", "exec", "attach"})
_SHELLS: Final = frozenset({"sh", "ash", "bash", "dash", "ksh", "mksh", "zsh", "su", "runuser"})
# programs and words of a shell that run the command behind them, after options of their own
_WRAPPERS: Final = (
    "sudo doas env exec nohup nice ionice chrt setsid stdbuf timeout time command builtin chroot su runuser setpriv"
    " tini dumb-init flock xargs systemd-run systemd-inhibit unshare nsenter numactl taskset catatonit chpst setuidgid"
    " envdir softlimit strace ltrace busybox then do else ! if while until { script unbuffer prlimit capsh"
)
_WRAPS: Final = frozenset(_WRAPPERS.split())
# Options of the engines and of compose that stand before the verb with a value of their own: docker(1), podman(1),
# nerdctl's command reference, docker-compose(1). All others have none, or have it behind a "=".
_VALUED_OPTIONS: Final = (
    "--config -c --context -H --host -l --log-level --tlscacert --tlscert --tlskey --connection --url --identity"
    " --root --runroot --storage-driver --storage-opt --cgroup-manager --conmon --runtime --runtime-flag --ssh"
    " --network-cmd-path --network-config-dir --events-backend --hooks-dir --module --tmpdir --volumepath --imagestore"
    " -n --namespace -a --address --snapshotter --cni-path --cni-netconfpath --data-root --hosts-dir --bridge-ip -f"
    " --file -p --project-name --profile --env-file --project-directory --parallel --ansi --progress --podman-path"
    " --podman-args --podman-run-args --in-pod --pod-args"
)
_VALUED: Final = frozenset(_VALUED_OPTIONS.split())
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*\+?=")
_SEPARATORS: Final = frozenset(";&|()\n")
_DEEPEST: Final = 5
# comm(5) has 15 characters: rootlessport calls itself containers-rootlessport
_FORWARDERS: Final = re.compile(
    r"(docker-proxy|conmon|rootlessport|containers-root|rootlesskit|slirp4netns|pasta|passt|gvproxy|vpnkit)"
)


def runs_container(command: Sequence[str]) -> str:
    """The call that starts a container in a command, such as ``docker run``; empty: none was recognised."""
    return next(_engine_calls(list(command), _DEEPEST), "")


def forwards_ports(program: str) -> bool:
    """Whether a program of that name forwards a container's ports, and accepts also while the container does not."""
    return bool(_FORWARDERS.match(program.rpartition("/")[2]))


def _engine_calls(words: list[str], depth: int) -> Iterator[str]:
    """The calls of an engine in one simple command, and in what a shell in it is given."""
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    if not words or not depth:
        return
    name = _name(words[0])
    if name in _ENGINES | _COMPOSERS:
        if call := _call(name, words[1:]):
            yield call
    elif name == "eval":
        yield from _in_script(" ".join(words[1:]), depth - 1)
    elif name in _SHELLS and (script := _script_of(words[1:])):
        yield from _in_script(script, depth - 1)
    elif name in _WRAPS:
        for index, word in enumerate(words[1:], 1):
            if _name(word) in _ENGINES | _COMPOSERS | _SHELLS | {"eval"} and (
                call := next(_engine_calls(words[index:], depth - 1), "")
            ):
                yield call
                return


def _name(word: str) -> str:
    return word.rpartition("/")[2]


def _script_of(arguments: list[str]) -> str:
    """The script after the flag -c, also where -c is combined with others (``-ec``); sh(1)."""
    for index, word in enumerate(arguments[:-1]):
        if re.fullmatch(r"-[A-Za-z]*c|--command", word):
            return next((text for text in arguments[index + 1 :] if not text.startswith("-")), "")
    return ""


def _in_script(script: str, depth: int) -> Iterator[str]:
    lexer = shlex.shlex(script.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    simple: list[str] = []
    try:
        tokens = list(lexer)
    except ValueError:  # a quotation without an end: the shell will say so
        return
    for token in [*tokens, ";"]:
        if set(token) <= _SEPARATORS:
            yield from _engine_calls(simple, depth)
            simple = []
        else:
            simple.append(token)


def _call(engine: str, arguments: list[str]) -> str:
    """``docker run`` for ``docker --context x run …``; empty where the verb leaves no container running."""
    verbs = _verbs(arguments)
    first = next(verbs, "")
    if engine in _COMPOSERS:
        return f"{engine} {first}" if first in _COMPOSE_RUNS else ""
    if first in _RUNS:
        return f"{engine} {first}"
    second = next(verbs, "")
    group = {
        "container": _RUNS,
        "compose": _COMPOSE_RUNS,
        "play": {"kube"},
        "kube": {"play"},
        "pod": {"start"},
        "stack": {"deploy"},
        "service": {"create"},
    }
    return f"{engine} {first} {second}" if second in group.get(first, ()) else ""


def _verbs(arguments: list[str]) -> Iterator[str]:
    """The arguments that are no options, nor the values of those that stand before a verb."""
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in _VALUED
        else:
            yield word
