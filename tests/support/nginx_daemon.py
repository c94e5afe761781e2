"""An nginx in the foreground, with a configuration of its own: ``nginx_daemon.py NGINX PORT VERSION SITE [MASTER]``.

MASTER ``on``: a master with a worker; without one nginx 1.22 crashes over listeners that it is given.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

CONFIGURATION = """
daemon off;
master_process {master};
pid {directory}/pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {site};
        sendfile on;
        add_header X-Version {version};
        location = /version {{ return 200 "{version}\\n"; }}
    }}
}}
"""


def main() -> None:
    nginx, port, version, site = sys.argv[1:5]
    master = sys.argv[5] if len(sys.argv) > 5 else "off"
    directory = Path(tempfile.mkdtemp(prefix="nginx-", dir=site))
    file = directory / "nginx.conf"
    file.write_text(CONFIGURATION.format(directory=directory, port=port, version=version, site=site, master=master))
    os.execv(nginx, [nginx, "-p", str(directory), "-e", "stderr", "-c", str(file)])


if __name__ == "__main__":
    main()
