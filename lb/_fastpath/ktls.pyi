"""The kernel's TLS: who encrypts what a connection sends."""

def kernel_tls_missing() -> str:
    """Why nothing can be encrypted by the kernel; empty when it can."""
