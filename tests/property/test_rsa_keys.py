"""Hundreds of RSA keys from the core, judged by GMP and by OpenSSL: bounds, primality, every relation, distribution."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import gmpy2
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from igelcert.crypto import Key
from tests.support.probe import Probe

KEYS = {2048: 200, 3072: 8, 4096: 4}
SEEDS = 6000
# The chance that a sound generator fails one of the tests of distribution: one in a hundred million.
SIGMA = 5.73


@dataclass(frozen=True)
class Numbers:
    n: int
    e: int
    d: int
    p: int
    q: int
    dp: int
    dq: int
    qi: int


def numbers(key: Key) -> Numbers:
    """Read by `cryptography`, which recomputes nothing that stands in the file."""
    handle = os.memfd_create("key")
    try:
        key.write(handle, None)
        read = load_pem_private_key(os.pread(handle, 65_536, 0), None, unsafe_skip_rsa_key_validation=True)
    finally:
        os.close(handle)
    assert isinstance(read, RSAPrivateKey)
    found = read.private_numbers()
    public = found.public_numbers
    return Numbers(public.n, public.e, found.d, found.p, found.q, found.dmp1, found.dmq1, found.iqmp)


@pytest.fixture(scope="module")
def keys() -> list[tuple[int, Key, Numbers]]:
    made = [(bits, Key.generate(f"rsa_{bits}")) for bits, count in KEYS.items() for _ in range(count)]
    return [(bits, key, numbers(key)) for bits, key in made]


def test_bounds(keys: list[tuple[int, Key, Numbers]]) -> None:
    """FIPS 186-5 A.1.1."""
    for bits, _, k in keys:
        half = bits // 2
        assert k.n.bit_length() == bits and k.e == 65537
        for prime in (k.p, k.q):
            assert prime.bit_length() == half and prime * prime >= 1 << (bits - 1)
        assert abs(k.p - k.q) > 1 << (half - 100)
        assert 1 << half < k.d < math.lcm(k.p - 1, k.q - 1)


def test_relations(keys: list[tuple[int, Key, Numbers]]) -> None:
    for _, _, k in keys:
        assert k.p > k.q and k.p * k.q == k.n
        assert k.d == gmpy2.invert(k.e, gmpy2.lcm(k.p - 1, k.q - 1))
        assert (k.dp, k.dq, k.qi) == (k.d % (k.p - 1), k.d % (k.q - 1), gmpy2.invert(k.q, k.p))


def test_primality(keys: list[tuple[int, Key, Numbers]]) -> None:
    """GMP: Baillie-PSW and more rounds of Miller-Rabin."""
    for _, _, k in keys:
        assert gmpy2.is_prime(k.p, 30) and gmpy2.is_prime(k.q, 30)


def test_all_differ(keys: list[tuple[int, Key, Numbers]]) -> None:
    primes = [prime for _, _, k in keys for prime in (k.p, k.q)]
    assert len(set(primes)) == len(primes)
    product = math.prod(primes)
    assert all(math.gcd(prime, product // prime) == 1 for prime in primes)


@pytest.mark.slow
def test_openssl_checks(keys: list[tuple[int, Key, Numbers]]) -> None:
    """EVP_PKEY_check, which tests the primes by 64 or more rounds of its own."""
    for _, key, _ in keys:
        key.check()


def deviation(counts: list[int], chances: list[float]) -> float:
    """Chi-square as a number of standard deviations of a normal distribution (Wilson and Hilferty)."""
    total, free = sum(counts), len(counts) - 1
    chi = sum(
        (seen - total * chance) ** 2 / (total * chance) for seen, chance in zip(counts, chances, strict=True)
    )
    return ((chi / free) ** (1 / 3) - 1 + 2 / (9 * free)) / math.sqrt(2 / (9 * free))


def spread(values: list[float], bins: int) -> float:
    """How far values are from uniform in [0, 1)."""
    counts = [0] * bins
    for value in values:
        counts[int(value * bins)] += 1
    return deviation(counts, [1 / bins] * bins)


def residues(values: list[int], prime: int) -> float:
    """Primes are spread evenly over 1 .. prime - 1."""
    counts = [0] * prime
    for value in values:
        counts[value % prime] += 1
    assert counts[0] == 0
    return deviation(counts[1:], [1 / (prime - 1)] * (prime - 1))


def place(value: int, bits: int) -> float:
    """Where a number of so many bits lies between sqrt(2)/2 and 1 of their range: 0 .. 1."""
    low = math.sqrt(0.5)
    return ((value >> (bits - 64)) / 2**64 - low) / (1 - low)


def test_distribution_of_primes(keys: list[tuple[int, Key, Numbers]]) -> None:
    """Top bits even over the interval; no preference among residues; the two primes of a key independent."""
    half = [k for bits, _, k in keys if bits == 2048]
    primes = [prime for k in half for prime in (k.p, k.q)]
    assert spread([place(prime, 1024) for prime in primes], 16) < SIGMA
    for small in (3, 5, 7, 11):
        assert residues(primes, small) < SIGMA
    assert deviation([sum(p % 4 == r for p in primes) for r in (1, 3)], [0.5, 0.5]) < SIGMA
    # the smaller one below the larger: squares of their quotient's places are even when both are independent
    larger = [place(k.p, 1024) for k in half]
    smaller = [place(k.q, 1024) for k in half]
    assert spread([value**2 for value in larger], 8) < SIGMA
    assert spread([1 - (1 - value) ** 2 for value in smaller], 8) < SIGMA


@pytest.fixture(scope="module")
def seeds() -> Iterator[list[tuple[int, ...]]]:
    answers = Probe().ask(*["seeds 2048"] * SEEDS)
    yield [tuple(int(word, 16) for word in answer.split()) for answer in answers]


@pytest.mark.parametrize("which", range(3), ids=["X", "Xp1", "Xp2"])
def test_random_numbers(which: int, seeds: list[tuple[int, ...]]) -> None:
    """What a prime is made of: X even between sqrt(2)/2 and 1; Xp1 and Xp2 of 141 bits, odd, else even."""
    values = [each[which] for each in seeds]
    assert len(set(values)) == len(values)
    if which == 0:
        assert all(value.bit_length() == 1024 and value * value >= 1 << 2047 for value in values)
        assert spread([place(value, 1024) for value in values], 64) < SIGMA
        free = range(1000)
    else:
        assert all(value.bit_length() == 141 and value % 2 for value in values)
        assert spread([(value >> 77) / 2**63 - 1 for value in values], 64) < SIGMA
        free = range(1, 140)
    wide = [abs(sum(value >> bit & 1 for value in values) * 2 - SEEDS) / math.sqrt(SEEDS) for bit in free]
    assert max(wide) < SIGMA + 1
