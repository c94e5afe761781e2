"""A PostgreSQL with data of its own, copied from a template: ``postgres_daemon.py INSTALLED TEMPLATE PORT``.

PostgreSQL refuses to run as root, so root's becomes nobody's.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

NOBODY = 65534


def main() -> None:
    installed, template, port = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    data = Path(tempfile.mkdtemp(prefix="data-", dir=template.parent))
    shutil.copytree(template, data, dirs_exist_ok=True)
    data.chmod(0o700)
    os.chdir(data)
    server = str(installed / "bin" / "postgres")  # as its own name too: it looks for its libraries from there
    os.execv(server, [server, "-D", str(data), "-p", port, "-h", "127.0.0.1", "-k", "", "-c", "fsync=off"])


if __name__ == "__main__":
    main()
