"""Which addresses are among networks that the configuration names."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

__all__ = ["among", "is_ip"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def among(networks: tuple[str, ...], address: str) -> bool:
    """Is the address in one of the networks? An IPv4 address counts as one in IPv6's notation, too."""
    if not networks:
        return False
    try:
        remote = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(remote, ipaddress.IPv6Address) and remote.ipv4_mapped:
        remote = remote.ipv4_mapped
    return any(remote in network for network in _parsed(networks))


def is_ip(text: str) -> bool:
    """Is it an address, and nothing else?"""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@lru_cache(8)
def _parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text, strict=False) for text in networks)
