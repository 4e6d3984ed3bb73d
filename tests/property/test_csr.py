"""Settings become a CSR that OpenSSL and pyasn1-modules read back field by field."""

from __future__ import annotations

import functools
import ipaddress
import json
import subprocess
from typing import Any

from cryptography import x509
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyasn1.codec.der import decoder
from pyasn1_modules import rfc2985, rfc2986, rfc5280

from igelcert.codec import pkcs10
from igelcert.crypto import Key
from igelcert.errors import SettingsError
from igelcert.model import KEY_TYPES, CsrSpec, DeviceFacts
from igelcert.settings import parse_settings

QUICK = [kind for kind in KEY_TYPES if kind not in {"rsa_4096", "rsa_8192"}]
OIDS = {
    "country": "2.5.4.6", "state": "2.5.4.8", "locality": "2.5.4.7", "org": "2.5.4.10", "ou": "2.5.4.11",
    "cn": "2.5.4.3", "email": "1.2.840.113549.1.9.1",
}  # fmt: skip
OPENSSL_NAMES = {
    "country": "countryName", "state": "stateOrProvinceName", "locality": "localityName", "org": "organizationName",
    "ou": "organizationalUnitName", "cn": "commonName", "email": "emailAddress",
}  # fmt: skip

visible = st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Cn", "Co"])


def text(limit: int) -> st.SearchStrategy[str]:
    return st.text(visible, max_size=limit).filter(lambda value: not value or bool(value.strip()))


label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True).filter(lambda v: v[2:4] != "--")
unicode_label = st.sampled_from(["bücher", "пример", "例え", "straßenbahn", "ελλάδα", "mañana"])
host = st.lists(st.one_of(label, unicode_label), min_size=1, max_size=4).map(".".join)
mail = st.tuples(st.from_regex(r"[A-Za-z0-9._+-]{1,20}", fullmatch=True), host).map("@".join)
uri = st.from_regex(r"(https|urn|spiffe):[A-Za-z0-9/._~%-]{1,60}", fullmatch=True)
address = st.ip_addresses().map(str)
plain_host = st.lists(label, min_size=1, max_size=3).map(".".join).filter(lambda value: len(value) <= 60)

documents = st.fixed_dictionaries(
    {
        "subject": st.fixed_dictionaries(
            {"auto_cn": st.sampled_from(["hostname", "unitid", "off"])},
            optional={
                "cn": text(64), "ou": text(64), "org": text(64), "locality": text(128), "state": text(128),
                "country": st.sampled_from(["", "DE", "us", "Fr"]), "email": st.one_of(st.just(""), mail),
            },
        ),
        "subjaltname": st.fixed_dictionaries(
            {"auto_hostname": st.booleans(), "auto_ip": st.booleans()},
            optional={
                "hostname": st.lists(host, max_size=3), "ip": st.lists(address, max_size=3),
                "email": st.lists(mail, max_size=2), "uri": st.lists(uri, max_size=2),
            },
        ),
        "key": st.sampled_from(QUICK).map(lambda kind: {"type": kind}),
        "enrollment": st.one_of(st.just(""), text(60)).map(lambda value: {"crypt_challenge_password": value}),
    }
)  # fmt: skip
facts = st.builds(
    DeviceFacts,
    plain_host,
    st.from_regex(r"[0-9A-F]{12}", fullmatch=True),
    st.lists(address, max_size=2).map(tuple),
)


@functools.cache
def key(kind: str) -> Key:
    return Key.generate(kind)


def spec_of(document: dict[str, Any], device: DeviceFacts) -> CsrSpec:
    """As the device makes it; settings that the rules refuse are not of interest here."""
    try:
        return parse_settings(json.dumps({"certs": [document]})).certs[0].csr_spec(device)
    except SettingsError:
        assume(False)
        raise


def expected(document: dict[str, Any], device: DeviceFacts) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Subject and names by the rules of the settings, worked out without our code."""
    subject = {name: value for name, value in document["subject"].items() if name != "auto_cn"}
    auto = document["subject"]["auto_cn"]
    subject["cn"] = {"hostname": device.hostname, "unitid": device.unit_id}.get(auto, subject.get("cn", ""))
    subject["country"] = subject.get("country", "").upper()
    if subject.get("email"):
        local, _, domain = subject["email"].rpartition("@")
        subject["email"] = f"{local}@{domain.encode('idna').decode().lower()}"
    san = document["subjaltname"]
    hosts = [*san.get("hostname", []), *([device.hostname] if san["auto_hostname"] else [])]
    ips = [*san.get("ip", []), *(device.ips if san["auto_ip"] else ())]
    mails = [value.rpartition("@") for value in san.get("email", [])]
    names = {
        "dNSName": [name.encode("idna").decode().lower() for name in hosts],
        "iPAddress": [ipaddress.ip_address(ip).packed.hex() for ip in ips],
        "rfc822Name": [f"{local}@{domain.encode('idna').decode().lower()}" for local, _, domain in mails],
        "uniformResourceIdentifier": san.get("uri", []),
    }
    return (
        {name: value for name, value in subject.items() if value},
        {kind: list(dict.fromkeys(values)) for kind, values in names.items() if values},
    )


@settings(max_examples=150)
@given(documents, facts)
def test_pyasn1_reads_every_field(document: dict[str, Any], device: DeviceFacts) -> None:
    spec = spec_of(document, device)
    csr = pkcs10.build(spec, key(spec.key_type))
    request, rest = decoder.decode(csr, asn1Spec=rfc2986.CertificationRequest())
    assert rest == b""
    info = request["certificationRequestInfo"]
    assert int(info["version"]) == 0
    subject, names = expected(document, device)
    found = {}
    for rdn in info["subject"]["rdnSequence"]:
        assert len(rdn) == 1
        value, rest = decoder.decode(rdn[0]["value"])
        name = next(each for each, oid in OIDS.items() if oid == str(rdn[0]["type"]))
        kind = {"country": "PrintableString", "email": "IA5String"}.get(name, "UTF8String")
        assert type(value).__name__ == kind and rest == b""
        found[name] = str(value)
    assert found == subject
    assert list(found) == [name for name in OIDS if name in found], "from country down to the name"
    attributes = {str(each["type"]): each["values"] for each in info["attributes"]}
    challenge = attributes.pop(str(rfc2985.pkcs_9_at_challengePassword), None)
    wanted = document["enrollment"]["crypt_challenge_password"]
    assert (str(decoder.decode(challenge[0])[0]) if challenge else "") == wanted
    requested = attributes.pop(str(rfc2985.pkcs_9_at_extensionRequest), None)
    assert not attributes
    read: dict[str, list[str]] = {}
    if requested:
        extensions, _ = decoder.decode(requested[0], asn1Spec=rfc5280.Extensions())
        assert [str(each["extnID"]) for each in extensions] == ["2.5.29.17"]
        assert bool(extensions[0]["critical"]) == (not subject)
        general, _ = decoder.decode(extensions[0]["extnValue"], asn1Spec=rfc5280.SubjectAltName())
        for name in general:
            kind = name.getName()
            value = bytes(name[kind]).hex() if kind == "iPAddress" else str(name[kind])
            read.setdefault(kind, []).append(value)
    assert read == names


@settings(max_examples=60)
@given(documents, facts)
def test_openssl_reads_and_verifies(document: dict[str, Any], device: DeviceFacts) -> None:
    spec = spec_of(document, device)
    csr = pkcs10.build(spec, key(spec.key_type))
    command = [
        "openssl",
        "req",
        "-inform",
        "DER",
        "-noout",
        "-verify",
        "-subject",
        "-nameopt",
        "multiline,utf8,-esc_msb",
    ]
    done = subprocess.run(command, input=csr, capture_output=True, timeout=30)
    assert done.returncode == 0 and b"verify OK" in done.stderr, done.stderr
    shown = dict(
        (part.strip() for part in line.split("=", 1))
        for line in done.stdout.decode().splitlines()[1:]
        if "=" in line
    )
    subject, names = expected(document, device)
    assert set(shown) == {OPENSSL_NAMES[name] for name in subject}
    for name, value in subject.items():
        if value == value.strip() and not set(value) & set('\\"'):
            assert shown[OPENSSL_NAMES[name]] == value.strip()
    # and `cryptography`, which is neither of them
    theirs = x509.load_der_x509_csr(csr)
    assert theirs.is_signature_valid
    try:
        general = theirs.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        assert not names
    else:
        assert general.get_values_for_type(x509.DNSName) == names.get("dNSName", [])
        assert [ip.packed.hex() for ip in general.get_values_for_type(x509.IPAddress)] == names.get(
            "iPAddress", []
        )


@settings(max_examples=150)
@given(documents, facts, st.data())
def test_policy_knows_its_own_and_nothing_else(
    document: dict[str, Any], device: DeviceFacts, data: st.DataObject
) -> None:
    spec = spec_of(document, device)
    read = pkcs10.parse(pkcs10.build(spec, key(spec.key_type)))
    assert pkcs10.differences(read, spec) == []
    other_document, other_facts = data.draw(documents), data.draw(facts)
    other = spec_of(other_document, other_facts)
    same = (spec.key_type, expected(document, device)) == (
        other.key_type,
        expected(other_document, other_facts),
    )
    mine, theirs = expected(document, device), expected(other_document, other_facts)
    if spec.key_type != other.key_type or mine[0] != theirs[0] or _sorted(mine[1]) != _sorted(theirs[1]):
        assert pkcs10.differences(read, other) != []
    elif same:
        assert pkcs10.differences(read, other) == []


def _sorted(names: dict[str, list[str]]) -> dict[str, list[str]]:
    return {kind: sorted(values) for kind, values in names.items()}
