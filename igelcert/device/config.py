"""/etc/igelcert/device.toml: what the image says."""

from __future__ import annotations

import os

from ..errors import SettingsError, StorageError
from ..model import check_dns_name, check_unit_id
from ..record import record
from .files import Owner, failure, read
from .log import LEVELS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["CONFIG_FILE", "Config", "load"]

CONFIG_FILE = "/etc/igelcert/device.toml"


@record
class Config:
    """Paths are as the image sees them; `at` puts the root directory before them."""

    root: str = ""
    server: str = ""
    ca_file: str = ""
    ca_fingerprint: str = ""
    unit_id: str = ""
    hostname: str = ""
    wfs: str = "/wfs"
    ca_store: str = "/etc/ssl/certs"
    owner: str = ""
    group: str = ""
    pfx_encryption: str = "modern"
    key_generator: str = "native"
    hook_timeout: int = 60
    log_level: str = "info"

    def at(self, path: str) -> str:
        return os.path.join(self.root, path.lstrip("/")) if self.root else path

    @property
    def tree_root(self) -> str:
        return self.at(self.wfs)

    @property
    def agent_dir(self) -> str:
        """Where the management identity and the last settings live."""
        return os.path.join(self.tree_root, "igel-rmagent")

    @property
    def ids(self) -> Owner:
        """uid and gid that may read the keys; None when the image names none."""
        if not self.owner and not self.group:
            return None
        import grp
        import pwd

        try:
            uid = pwd.getpwnam(self.owner).pw_uid if self.owner else os.geteuid()
            gid = grp.getgrnam(self.group).gr_gid if self.group else os.getegid()
        except KeyError:
            named = " ".join(repr(name) for name in (self.owner, self.group) if name)
            raise SettingsError("device.toml", f"unknown owner or group: {named}") from None
        return uid, gid


_TEXTS = ("server", "ca_file", "ca_fingerprint", "unit_id", "hostname", "wfs", "ca_store", "owner", "group")
_CHOICES = {
    "pfx_encryption": ("modern", "legacy"),
    "key_generator": ("native", "openssl"),
    "log_level": tuple(LEVELS),
}


def load(root: str = "", path: str | None = None) -> Config:
    """The configuration; the defaults when there is no file and none was named."""
    name = path or (os.path.join(root, CONFIG_FILE.lstrip("/")) if root else CONFIG_FILE)
    try:
        text = read(name, 65_536).decode("utf-8")
    except FileNotFoundError:
        if path:
            raise StorageError(f"cannot read {path}: it is not there") from None
        return Config(root=os.path.abspath(root) if root else "")
    except OSError as err:
        raise failure(err, "read", name) from None
    except UnicodeDecodeError:
        raise SettingsError(name, "is not UTF-8") from None
    return parse(text, name, root)


def parse(text: str, name: str = "device.toml", root: str = "") -> Config:
    """Config from TOML text; errors name file and line."""
    if all(line.isspace() or line.startswith("#") for line in text.splitlines(keepends=True)):
        return Config(root=os.path.abspath(root) if root else "")  # as it is shipped
    import tomllib  # takes as long to load as ssl

    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise SettingsError(name, f"not TOML: {err}") from None
    for key, value in found.items():
        _check(f"{name}:{_line(text, key)}: {key}", key, value)
    return Config(root=os.path.abspath(root) if root else "", **found)


def _check(path: str, key: str, value: Any) -> None:
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise SettingsError(path, f"{value!r} is not possible", hint="one of: " + " ".join(_CHOICES[key]))
    elif key == "hook_timeout":
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 3600:
            raise SettingsError(path, "is not a number of seconds from 1 to 3600")
    elif key not in _TEXTS:
        known = " ".join((*_TEXTS, *_CHOICES, "hook_timeout"))
        raise SettingsError(path, "is not a known key", hint=f"known: {known}")
    elif not isinstance(value, str):
        raise SettingsError(path, "is not text")
    elif key in {"wfs", "ca_store", "ca_file"} and value and not value.startswith("/"):
        raise SettingsError(path, "is not an absolute path")
    elif key == "unit_id" and value:
        check_unit_id(path, value)
    elif key == "hostname" and value:
        check_dns_name(path, value)
    elif key == "server" and value and not value.startswith("https://"):
        raise SettingsError(path, "does not begin with https://")


def _line(text: str, key: str) -> int:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip().strip("[\"'").startswith(key):
            return number
    return 1
