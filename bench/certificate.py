"""One certificate for all contenders: P-256, self-signed, for every namespace of a made-up cluster."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    chain: Path
    key: Path

    @property
    def both(self) -> Path:
        """Chain and key in one file, as HAProxy reads them."""
        return self.chain.with_suffix(".both.pem")

    @cached_property
    def context(self) -> ssl.SSLContext:
        """For clients that trust it and nothing else."""
        context = ssl.create_default_context(cafile=str(self.chain))
        context.set_alpn_protocols(["http/1.1"])
        return context


def make_certificate(directory: Path, names: list[str]) -> Certificate:
    certificate = Certificate(directory / "bench.crt", directory / "bench.key")
    alternatives = ",".join(f"DNS:{name}" for name in names)
    command: list[str | Path] = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "30", "-subj", "/CN=bench", "-addext", f"subjectAltName={alternatives}"),
        *("-out", certificate.chain, "-keyout", certificate.key),
    ]
    subprocess.run(command, check=True, capture_output=True)
    certificate.both.write_text(certificate.chain.read_text() + certificate.key.read_text())
    return certificate
