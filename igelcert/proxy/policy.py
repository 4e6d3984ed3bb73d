"""What a device may have: exactly the certificates that its profiles give it. No I/O here."""

from __future__ import annotations

from collections.abc import Sequence

from ..codec import pkcs10
from ..errors import RemoteProtocolError, SettingsError
from ..model import DeviceFacts
from ..settings import CertSettings

__all__ = ["choose"]


def choose(
    csr: pkcs10.CertificationRequest, facts: DeviceFacts, certs: Sequence[CertSettings], label: str | None
) -> CertSettings:
    """The certificate of the profiles that the request asks for; RemoteProtocolError (403) says why none.

    Subject, subject alternative names and key type must be exactly what the profile gives this device.
    label: the friendly name, or None to find the certificate by the request itself.
    """
    through_us = [cert for cert in certs if cert.enrollment.proto == "igelums"]
    if not through_us:
        raise _refusal("no certificate profile is assigned to this device")
    if label is not None:
        through_us = [cert for cert in through_us if cert.friendly_name == label]
        if not through_us:
            raise _refusal(f"no certificate profile named {label[:80]!r} is assigned to this device")
    complaints = []
    for cert in through_us:
        found = _differences(csr, facts, cert)
        if not found:
            return cert
        complaints.append((len(found), cert.friendly_name, found))
    _, name, found = min(complaints, key=lambda each: each[0])
    several = "" if len(complaints) == 1 else f"none of {len(complaints)} profiles; the nearest is "
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    raise _refusal(f"the request does not fit {several}{name!r}: {'; '.join(found[:3])}{more}")


def _differences(csr: pkcs10.CertificationRequest, facts: DeviceFacts, cert: CertSettings) -> list[str]:
    try:
        spec = cert.csr_spec(facts)
    except SettingsError as err:
        return [f"the profile cannot be completed for this device: {err}"]
    found = pkcs10.differences(csr, spec)
    if spec.challenge and csr.challenge != spec.challenge:
        found.append("the challenge password is not the profile's")
    return found


def _refusal(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(text, status_hint=403)
