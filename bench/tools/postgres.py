"""A PostgreSQL with a new data directory in the working directory: ``postgres.py PROGRAMS PORT``.

It refuses to run as root, so root becomes nobody, who keeps the right to enter the directories of the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NOBODY = 65534


def main() -> None:
    programs, port = sys.argv[1], sys.argv[2]
    data = tempfile.mkdtemp(prefix="postgres-", dir=Path.cwd())
    become: list[str] = []
    if os.geteuid() == 0:
        os.chown(data, NOBODY, NOBODY)
        keeps = "+dac_override,+dac_read_search"
        become = [shutil.which("setpriv") or "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        become += [f"--inh-caps={keeps}", f"--ambient-caps={keeps}"]
    initdb = [*become, f"{programs}/initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, check=True)
    server = [*become, f"{programs}/postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", "", "-c", "fsync=off"]
    os.execv(server[0], server)


if __name__ == "__main__":
    main()
