"""What each key of ``turnout.toml`` means, in one or two sentences: for the JSON Schema and the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# Dotted, as `turnout config` prints them; one entry for each key that the file may have.
MEANINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "listen": (
            "The fixed address, or a list of them; IPv6 in brackets. It may change while the service runs: `turnout"
            " up`."
        ),
        "command": (
            "What to run. `{port}` is where it must listen, which is in its environment as PORT and TURNOUT_PORT, too."
            " `{fd}` is the descriptor of a socket that listens already, told by LISTEN_FDS and LISTEN_PID as well;"
            " `{listen_port}` is the port of `listen`."
        ),
        "version": "What this build calls itself.",
        "version_command": "A command whose first line of output is the version; 10 s at most.",
        "cwd": "Where the command runs, relative to the file. Empty: the directory of the file.",
        "env": (
            "Further environment of the daemon; words in braces are filled in as in `command`. Its values may be"
            " secrets: no verb prints them."
        ),
        "strategy": (
            "`blue-green`: old and new side by side. `recreate`: the old one stops first and clients wait, for"
            " daemons that own their data. Without it the command decides."
        ),
        "plane": (
            "How bytes move. `relay`: epoll and splice. `stream`: the loop's own transports, slower, on any system."
            " `reuseport`: none in the way, for a daemon that is given its listener (`{fd}`, LISTEN_FDS) or opens it"
            " there itself (`shares_port`)."
            " `sk_lookup`: the same for any daemon, with CAP_BPF and CAP_NET_ADMIN. `auto`: `reuseport` where the"
            " command or `env` has `{fd}`, or with `shares_port`, and nothing asks for a relay, else the relay where it"
            " runs. A change comes with `turnout router --replace`."
        ),
        "health.probe": (
            "`alive`: runs, is not stopped, owns its listening socket, accepts; opens no connection. `tcp`: also"
            " connects. `expect`: sends `send`, and what comes back must match `match`. `http`: GET `path` is"
            " answered with a status in `status`, and a body that has `match`, if that is given. `exec`: `command`"
            " ends with exit code 0. `none`."
        ),
        "health.interval": "From one check to the next.",
        "health.timeout": "What one check may take. The process group of an `exec` probe is killed then.",
        "health.failures": "So many failed checks in a row, 1 to 1000, lead to a rollback.",
        "health.send": "What an `expect` probe sends.",
        "health.match": "The regular expression of an `expect` or `http` probe.",
        "health.path": "What an `http` probe asks for.",
        "health.host": "The Host header of an `http` probe. Empty: the address.",
        "health.status": "The statuses that an `http` probe takes for well: `204`, `200,204`, `200-399`.",
        "health.command": (
            "What an `exec` probe runs. `{port}` is filled in; TURNOUT_PORT, TURNOUT_HOST, TURNOUT_PID,"
            " TURNOUT_BOOT_ID and TURNOUT_VERSION are in its environment."
        ),
        "shares_port": (
            "The daemon sets SO_REUSEPORT before it binds, so it can listen at the fixed address beside the router, on"
            " one listener, as the user who runs turnout: `{port}` and `{listen_port}` are then both the port of"
            " `listen`, or under a relay a port of its own."
        ),
        "verify_owner": (
            "The probe must reach the process that was started, or a child of it. `false` for a daemon in a container."
        ),
        "on_unhealthy": (
            "After the window. `report`: an active daemon that runs and fails its checks is said in `status` and"
            " `history`. `restart`: it is also replaced by a new process of the same build, with back-off."
        ),
        "start_timeout": "What a candidate may take to become healthy.",
        "observe": "The window after a switch, in which failed checks bring the previous daemon back.",
        "stop.signal": "What tells the daemon to end. Without it TERM, and for PostgreSQL INT, its fast shutdown.",
        "stop.grace": "What the daemon may take to end; then KILL.",
        "drain.grace": "How long the connections of an old daemon are left alone; also what `turnout down` gives them.",
        "drain.deadline": (
            "When the last connections of an old daemon are cut; `none`: never. Between grace and deadline those are"
            " cut that are quiet: the last bytes went to the client a second ago or more, none are half-sent; a few"
            " at a time."
        ),
        "drain.max_draining": (
            "When more old daemons drain at once, the oldest is hastened: its connections are cut at quiet moments,"
            " whatever the deadline."
        ),
        "hold.max": "How many connections may wait while something is on its way; further ones are reset at once.",
        "hold.timeout": (
            "How long each of them waits before it is reset. With `recreate` more than `stop.grace` plus"
            " `start_timeout`."
        ),
        "limits.connections": (
            "How many connections may be open, held ones included; further ones wait in the kernel's queue, as with"
            " HAProxy's `maxconn`. 0: no limit."
        ),
        "limits.idle_timeout": "A connection without a byte either way for so long is ended.",
        "limits.user_timeout": (
            "How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT in tcp(7)). It also ends live peers that"
            " merely stop reading."
        ),
        "proxy_protocol": (
            "`v2`: each connection to the daemon begins with a PROXY protocol v2 header, also that of a `tcp` or"
            " `expect` probe (LOCAL). A change comes with the next daemon."
        ),
        "allow": "The networks that clients may come from, as `10.0.0.0/8` or `::1`; others are reset at once.",
        "expose": (
            "`true` lets `listen` go beyond loopback, and needs `proxy_protocol`. `clients-look-local` does without"
            " it: the daemon then takes every client for a local one, which many trust."
        ),
        "registry": "The JSON file that says what exists and what is active. Empty: one in the state directory.",
        "auto_deploy": "The router notices a changed file, version or watched file, and deploys it.",
        "watch": "Files that the build is made of: other contents are another build.",
    }
)
