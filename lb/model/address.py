"""What an address may be: whoever reads addresses asks here, so that all say the same about a wrong one."""

from __future__ import annotations

import ipaddress
import re

UNIX_PREFIX = "unix:"
MAX_UNIX_PATH_BYTES = 107
"""unix(7): sun_path has 108 bytes, and one of them ends it."""

ANY_ADDRESS = ("*", "0.0.0.0", "::")  # noqa: S104  # compares, does not bind
"""All addresses of both families (as it is shown), or of one."""

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")


def is_ip_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address as it can be connected to from anywhere: without a zone (`%eth0`)."""
    # Nearly all are IPv4, and there may be a hundred thousand of them.
    return _IPV4.fullmatch(text) is not None or (":" in text and _is_ipv6(text))


def address_mistake(text: str) -> str:
    """What is wrong with an endpoint's or listener's address: an IP address, or `unix:/path`. Empty when nothing is."""
    if not text.startswith(UNIX_PREFIX):
        return "" if is_ip_address(text) else f"{text!r} is no IP address"
    path = text.removeprefix(UNIX_PREFIX).encode("utf-8", "surrogateescape")
    if not path:
        return "the path of the Unix socket is missing"
    if b"\0" in path:
        return f"{text!r} has a NUL in its path"
    if len(path) > MAX_UNIX_PATH_BYTES:
        return f"the path of a Unix socket has at most {MAX_UNIX_PATH_BYTES} bytes, this one has {len(path)}"
    return ""


def is_network(text: str) -> bool:
    """Whether it is an address, or a network such as 10.0.0.0/8, whose host bits do not count."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return "%" not in text


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False
