"""Socket activation in ten lines: bind PORT, hand it over as descriptor 3, and become COMMAND (sd_listen_fds(3)).

python with_listener.py PORT COMMAND…
"""

from __future__ import annotations

import os
import socket
import sys

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
if listener.fileno() == 3:
    listener.set_inheritable(True)
else:
    os.dup2(listener.fileno(), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
