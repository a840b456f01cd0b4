"""nginx from the distribution as a backend, with a configuration of its own in a temporary directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.harness.client import RawClient
from tests.harness.ports import free_port
from tests.harness.waiting import DEADLINE, wait_until

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")

_CONFIGURATION = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
    include /etc/nginx/mime.types;
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 100m;
    keepalive_requests {keepalive_requests};
    server {{
        listen 127.0.0.1:{port} {protocol} backlog=1024;
        root {directory}/html;
        location /gzip/ {{ alias {directory}/html/; gzip on; gzip_min_length 1; gzip_types *; }}
        location = /hello {{ default_type text/plain; return 200 "hello from nginx\\n"; }}
        location = /moved {{ return 302 /hello; }}
        location = /nothing {{ return 204; }}
        location = /drop {{ return 444; }}
    }}
    {more}
}}
"""


class Nginx:
    """A running nginx; files in `html` are served. With `http2` it speaks nothing else, in the clear."""

    def __init__(
        self, directory: Path, *, keepalive_requests: int = 1_000, http2: bool = False, more: str = ""
    ) -> None:
        """`more`: further servers."""
        assert NGINX is not None, "nginx is not installed; .ci/run installs it"
        self.port = free_port()
        self.html = directory / "html"
        self.html.mkdir(parents=True)
        path = directory / "nginx.conf"
        path.write_text(
            _CONFIGURATION.format(
                directory=directory,
                port=self.port,
                protocol="http2" if http2 else "",
                keepalive_requests=keepalive_requests,
                more=more,
            )
        )
        self.process = subprocess.Popen(
            [NGINX, "-p", str(directory), "-c", str(path)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, "nginx is ready")

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            RawClient(("127.0.0.1", self.port)).close()
            return True
        return False

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE)

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
