"""The settings document: names, defaults, autocompletion, and errors that name path and reason."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igelcert.errors import SettingsError
from igelcert.model import KEY_TYPES, DeviceFacts, Subject
from igelcert.settings import parse_document, parse_settings

FACTS = DeviceFacts("tc-17", "00E0C5123456", ("192.0.2.7", "2001:db8::7"))


def one(**cert: Any) -> Any:
    return parse_document({"certs": [cert]}).certs[0]


def test_the_defaults_are_the_original_ones() -> None:
    settings = parse_settings('{"certs": [{}]}')
    cert = settings.certs[0]
    assert settings.show_user_notifications is True
    assert cert.friendly_name == "Device certificate"
    assert (cert.auto_cn, cert.auto_hostname, cert.auto_ip) == ("hostname", True, False)
    assert cert.key.type == "rsa_4096"
    assert cert.key.password is None
    enrollment = cert.enrollment
    assert (enrollment.proto, enrollment.auto_renewal) == ("igelums", True)
    assert (enrollment.renewal_period_units, enrollment.renewal_period, enrollment.renewal_period_days) == (
        "percent",
        20,
        30,
    )


@pytest.mark.parametrize(
    ("document", "path", "reason"),
    [
        ({"cert": []}, "cert", "not a known setting"),
        ({"certs": [{"key": {"typ": "rsa_2048"}}]}, "certs[0].key.typ", "not a known setting"),
        ({"certs": [{"key": {"type": "rsa_1024"}}]}, "certs[0].key.type", "not possible"),
        ({"certs": [{"key": {"type": ["rsa_2048"]}}]}, "certs[0].key.type", "not possible"),
        ({"certs": [{}, {"friendly_name": "../x"}]}, "certs[1].friendly_name", "dot"),
        ({"certs": [{"friendly_name": "a/../../x"}]}, "certs[0].friendly_name", "slash"),
        ({"certs": [{"friendly_name": "a\\b"}]}, "certs[0].friendly_name", "slash"),
        ({"certs": [{"friendly_name": "a\nb"}]}, "certs[0].friendly_name", "U+000A"),
        ({"certs": [{"friendly_name": "a\x00b"}]}, "certs[0].friendly_name", "U+0000"),
        ({"certs": [{"friendly_name": "a\u202eb"}]}, "certs[0].friendly_name", "U+202E"),
        ({"certs": [{"friendly_name": "x" * 300}]}, "certs[0].friendly_name", "300"),
        ({"certs": [{"friendly_name": "ü" * 100}]}, "certs[0].friendly_name", "200 bytes"),
        ({"certs": [{"friendly_name": ""}]}, "certs[0].friendly_name", "empty"),
        ({"certs": [{"friendly_name": " a"}]}, "certs[0].friendly_name", "blank"),
        ({"certs": [{"friendly_name": ".store"}]}, "certs[0].friendly_name", "dot"),
        ({"certs": [{"subjaltname": {"ip": ["1.2.3"]}}]}, "certs[0].subjaltname.ip[0]", "not an IP address"),
        ({"certs": [{"subjaltname": {"ip": ["fe80::1%eth0"]}}]}, "certs[0].subjaltname.ip[0]", "not an IP"),
        ({"certs": [{"subjaltname": {"hostname": ["a b"]}}]}, "certs[0].subjaltname.hostname[0]", "host name"),
        ({"certs": [{"subjaltname": {"hostname": ["a" * 64]}}]}, "certs[0].subjaltname.hostname[0]", "host"),
        ({"certs": [{"subjaltname": {"email": ["x"]}}]}, "certs[0].subjaltname.email[0]", "e-mail"),
        ({"certs": [{"subjaltname": {"uri": ["nowhere"]}}]}, "certs[0].subjaltname.uri[0]", "URI"),
        ({"certs": [{"subject": {"country": "DEU"}}]}, "certs[0].subject.country", "3 characters"),
        ({"certs": [{"subject": {"country": "D1"}}]}, "certs[0].subject.country", "two-letter"),
        ({"certs": [{"subject": {"cn": "x" * 65}}]}, "certs[0].subject.cn", "65 characters"),
        ({"certs": [{"subject": {"org": "a\rb"}}]}, "certs[0].subject.org", "U+000D"),
        ({"certs": [{"enrollment": {"renewal_period": 0}}]}, "certs[0].enrollment.renewal_period", "1 to 99"),
        ({"certs": [{"enrollment": {"renewal_period": True}}]}, "certs[0].enrollment.renewal_period", "whole"),
        ({"certs": [{"enrollment": {"auto_renewal": 1}}]}, "certs[0].enrollment.auto_renewal", "true nor"),
        ({"certs": [{"enrollment": {"proto": "acme"}}]}, "certs[0].enrollment.proto", "not possible"),
        ({"certs": [{"enrollment": {"proto": "est"}}]}, "certs[0].enrollment.est.server", "missing"),
        (
            {"certs": [{"enrollment": {"est": {"server": "https://ca"}}}]},
            "certs[0].enrollment.est",
            "proto is 'igelums'",
        ),
        (
            {"certs": [{"enrollment": {"proto": "est", "est": {"server": "https://ca", "label": "a b"}}}]},
            "certs[0].enrollment.est.label",
            "CA label",
        ),
        (
            {"certs": [{"key": {"type": "ec_prime256v1"}, "enrollment": {"proto": "scep", "scep": {"url": "http://x"}}}]},
            "certs[0].key.type",
            "takes RSA",
        ),
        ({"certs": [{"subject": {"auto_cn": "off"}, "subjaltname": {"auto_hostname": False}}]}, "certs[0].subject", "empty"),
        ({"certs": {}}, "certs", "not a list"),
        ({"certs": ["x"]}, "certs[0]", "not an object"),
        ({"certs": [{"subject": []}]}, "certs[0].subject", "not an object"),
        ([], "settings", "not an object"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_path_and_reason(document: Any, path: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_document(document)
    assert caught.value.path == path
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"certs": [', "not JSON"),
        ('{"certs": [], "certs": []}', "twice"),
        ("[" * 100_000, "nested"),
        (b'{"certs": "\xff"}', "UTF-8"),
        (" " * (1 << 21), "larger"),
        ('{"certs": ' + "9" * 5000 + "}", "too many digits"),
    ],
)
def test_text_that_is_no_settings_document(text: str | bytes, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        parse_settings(text)


@pytest.mark.parametrize("place", ["key.crypt_password", "enrollment.crypt_challenge_password"])
@pytest.mark.parametrize("secret", ["hunter2\n", "hunter2" * 500])
def test_a_refused_secret_is_not_in_the_error(place: str, secret: str) -> None:
    group, name = place.split(".")
    with pytest.raises(SettingsError) as caught:
        one(**{group: {name: secret}})
    assert "hunter2" not in str(caught.value) + caught.value.hint


def test_no_secret_shows_in_a_repr() -> None:
    cert = one(key={"crypt_password": "hunter2"}, enrollment={"crypt_challenge_password": "hunter3"})
    assert "hunter" not in repr(cert) + repr(cert.csr_spec(FACTS))


def test_the_first_of_two_equal_friendly_names_stands() -> None:
    settings = parse_document(
        {"certs": [{"friendly_name": "a", "subject": {"org": "1"}}, {"friendly_name": "a"}]}
    )
    assert [cert.subject.org for cert in settings.certs] == ["1"]
    assert "certs[1].friendly_name" in settings.warnings[0]


@pytest.mark.parametrize(
    ("auto_cn", "cn"), [("hostname", "tc-17"), ("unitid", "00E0C5123456"), ("off", "configured")]
)
def test_a_completed_cn_replaces_the_configured_one(auto_cn: str, cn: str) -> None:
    spec = one(subject={"auto_cn": auto_cn, "cn": "configured"}).csr_spec(FACTS)
    assert spec.subject.cn == cn


def test_completed_names_are_added_to_the_configured_ones() -> None:
    san = {"auto_hostname": True, "auto_ip": True, "hostname": ["www.example", "TC-17"], "ip": "192.0.2.1"}
    spec = one(subjaltname=san).csr_spec(FACTS)
    assert spec.san.hostname == ("www.example", "tc-17")
    assert spec.san.ip == ("192.0.2.1", "192.0.2.7", "2001:db8::7")


def test_international_names_become_a_labels() -> None:
    spec = one(subjaltname={"hostname": ["bücher.example"], "email": ["me@bücher.example"]}).csr_spec(FACTS)
    assert spec.san.hostname[0] == "xn--bcher-kva.example"
    assert spec.san.email == ("me@xn--bcher-kva.example",)


def test_a_device_without_the_name_it_needs() -> None:
    with pytest.raises(SettingsError, match="no hostname"):
        one(subject={}).csr_spec(DeviceFacts("", "X"))


def test_the_subject_comes_in_the_order_of_the_name() -> None:
    subject = Subject(cn="a", org="b", country="de")
    assert subject.attributes() == (("2.5.4.6", "DE"), ("2.5.4.10", "b"), ("2.5.4.3", "a"))


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_every_key_type_is_accepted(key_type: str) -> None:
    assert one(key={"type": key_type}).csr_spec(FACTS).key_type == key_type


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["certs", "friendly_name", "subject", "subjaltname", "key", "enrollment", "type", "ip"]
            )
            | st.text(max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_either_settings_or_a_settings_error(document: Any) -> None:
    try:
        parse_settings(json.dumps(document))
    except SettingsError as err:
        assert "\n" not in str(err)


@given(st.binary(max_size=200))
def test_any_bytes_are_either_settings_or_a_settings_error(data: bytes) -> None:
    with contextlib.suppress(SettingsError):
        parse_settings(data)
