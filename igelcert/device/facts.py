"""What autocompletion draws on: host name, unit ID, addresses. Read from the kernel, no commands."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct

from ..errors import SettingsError
from ..model import DeviceFacts
from .config import Config

__all__ = ["gather"]

_SIOCGIFADDR = 0x8915
_ETHERNET = "1"  # ARPHRD_ETHER


def gather(config: Config) -> DeviceFacts:
    """Facts of this device; what device.toml says comes first."""
    return DeviceFacts(hostname(config), unit_id(config), addresses())


def hostname(config: Config) -> str:
    """What the device is called, "" when nobody gave it a name: every machine is localhost to itself."""
    if config.hostname:
        return config.hostname
    name = socket.gethostname()
    if config.root:
        try:
            with open(config.at("/etc/hostname"), encoding="utf-8", errors="replace") as file:
                name = file.read(300).strip()
        except OSError:
            pass
    return "" if name.lower() in {"localhost", "localhost.localdomain", "(none)"} else name


def unit_id(config: Config, net: str = "/sys/class/net") -> str:
    """device.toml's, else the MAC address of the first Ethernet interface: upper case, no colons."""
    if config.unit_id:
        return config.unit_id
    try:
        names = sorted(os.listdir(net), key=lambda name: (_index(net, name), name))
    except OSError:
        names = []
    # an interface with a device behind it before virtual ones
    for virtual in (False, True):
        for name in names:
            mac = _mac(net, name)
            if mac and os.path.exists(os.path.join(net, name, "device")) is not virtual:
                return mac
    raise SettingsError(
        "device.toml", "unit_id is not set and there is no Ethernet interface to take it from"
    )


def _content(net: str, name: str, file: str) -> str:
    try:
        with open(os.path.join(net, name, file), encoding="ascii", errors="replace") as handle:
            return handle.read(100).strip()
    except OSError:
        return ""


def _index(net: str, name: str) -> int:
    text = _content(net, name, "ifindex")
    return int(text) if text.isdecimal() else 1 << 30


def _mac(net: str, name: str) -> str:
    digits = _content(net, name, "address").replace(":", "").upper()
    usable = _content(net, name, "type") == _ETHERNET and len(digits) == 12 and digits.strip("0")
    return digits if usable and name != "lo" else ""


def addresses() -> tuple[str, ...]:
    """Addresses of this device, IPv4 first; neither loopback nor link-local nor temporary."""
    found = [*_ipv4(), *_ipv6()]
    return tuple(dict.fromkeys(a for a in found if not _local(a)))


def _local(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified


def _ipv4() -> list[str]:
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _ipv6() -> list[str]:
    """/proc/net/if_inet6: address, index, prefix, scope, flags, name. Flag 01: temporary, 40: tentative."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return []
    return [
        str(ipaddress.ip_address(bytes.fromhex(row[0])))
        for row in rows
        if len(row) == 6 and row[3] == "00" and not int(row[4], 16) & 0x41
    ]
