/* sieve.c - which terms of an arithmetic progression have a small prime factor. */
#include "prime.h"

#include <openssl/crypto.h>
#include <string.h>

#define LANES 8 /* independent computations, so that none waits for a multiplication */

int igc_primes_make(uint32_t limit, igc_primes *out)
{
    size_t half = limit / 2, found = 0, i, j;
    uint8_t *composite = OPENSSL_zalloc(half + 1); /* [i]: 2 i + 1 */

    *out = (igc_primes){NULL, 0};
    if (composite == NULL)
        return 0;
    for (i = 1; i < half; i++) {
        found += !composite[i];
        for (j = 2 * i * (i + 1); !composite[i] && j < half; j += 2 * i + 1)
            composite[j] = 1;
    }
    out->primes = OPENSSL_malloc((found + 1) * sizeof(uint32_t));
    for (i = 1; out->primes && i < half; i++)
        if (!composite[i])
            out->primes[out->count++] = (uint32_t)(2 * i + 1);
    OPENSSL_free(composite);
    return out->primes != NULL;
}

void igc_primes_free(igc_primes *primes)
{
    OPENSSL_free(primes->primes);
    *primes = (igc_primes){NULL, 0};
}

size_t igc_primes_below(const igc_primes *primes, uint32_t limit)
{
    size_t low = 0, high = primes->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (primes->primes[middle] < limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* t / 2^32 mod p (Montgomery), k = -1/p mod 2^32; the result is at most t / 2^32 + p. So for p < 2^22 it is
   below p + 2^13 as long as t is a product of two such results, or one of them plus a digit: nothing
   overflows, and it is below 2 p, which `below` wants. */
static inline uint32_t reduce(uint64_t t, uint32_t p, uint32_t k)
{
    return (uint32_t)((t + (uint64_t)((uint32_t)t * k) * p) >> 32);
}

static inline uint32_t below(uint32_t value, uint32_t p)
{
    return value >= p ? value - p : value;
}

typedef struct {
    uint32_t p[LANES], k[LANES];
} moduli;

static void set_moduli(moduli *m, const uint32_t *primes)
{
    int l, i;

    for (l = 0; l < LANES; l++) {
        uint32_t p = primes[l], inverse = (3 * p) ^ 2; /* right in 5 bits; each step doubles that */
        for (i = 0; i < 3; i++)
            inverse *= 2 - p * inverse;
        m->p[l] = p;
        m->k[l] = -inverse;
    }
}

/* number / 2^(32 count) mod p; the digits are the number's, 32 bits each, lowest first. */
static void residues(const moduli *m, const uint32_t *digits, size_t count, uint32_t *out)
{
    uint32_t r[LANES] = {0};
    size_t i;
    int l;

    for (i = 0; i < count; i++)
        for (l = 0; l < LANES; l++)
            r[l] = reduce((uint64_t)r[l] + digits[i], m->p[l], m->k[l]);
    memcpy(out, r, sizeof(r));
}

/* first[l]: the smallest k for which p[l] divides start + k * step, that is -start / step mod p. By Fermat
   1/step = step^(p - 2). Both residues carry the factor 2^(-32 count), which cancels; b stands for step
   with one factor 2^32 more than it needs, so the quotient is multiplied by 2^32, which the last line takes
   away. */
static void first_multiples(const moduli *m, const uint32_t *start, const uint32_t *step, size_t count,
                            uint32_t *first)
{
    uint32_t r[LANES], b[LANES];
    uint32_t top = m->p[LANES - 1];
    int i, l;

    residues(m, start, count, r);
    residues(m, step, count, b);
    for (l = 0; l < LANES; l++)
        r[l] = m->p[l] - below(r[l], m->p[l]);
    for (i = 0; top >> i; i++) {
        for (l = 0; l < LANES; l++) {
            uint32_t use = -(((m->p[l] - 2) >> i) & 1);
            uint32_t product = reduce((uint64_t)r[l] * b[l], m->p[l], m->k[l]);
            r[l] = (product & use) | (r[l] & ~use);
            b[l] = reduce((uint64_t)b[l] * b[l], m->p[l], m->k[l]);
        }
    }
    for (l = 0; l < LANES; l++)
        first[l] = below(reduce(r[l], m->p[l], m->k[l]), m->p[l]);
}

static int to_digits(const BIGNUM *number, uint32_t *digits, size_t count)
{
    uint8_t *octets = (uint8_t *)digits;
    size_t i;

    if (BN_bn2lebinpad(number, octets, (int)(4 * count)) < 0)
        return 0;
    for (i = 0; i < count; i++) {
        const uint8_t *at = octets + 4 * i;
        digits[i] = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    }
    return 1;
}

int igc_sieve(const igc_primes *primes, size_t count, const BIGNUM *start, const BIGNUM *step, uint8_t *marks,
              size_t len)
{
    int bits = BN_num_bits(start) > BN_num_bits(step) ? BN_num_bits(start) : BN_num_bits(step);
    size_t digits = ((size_t)bits + 31) / 32, i, at;
    uint32_t *numbers = OPENSSL_malloc(2 * digits * sizeof(uint32_t));
    uint32_t group[LANES], first[LANES];
    moduli m;
    int l, ok;

    ok = numbers && to_digits(start, numbers, digits) && to_digits(step, numbers + digits, digits);
    memset(marks, 0, len);
    for (i = 0; ok && i < count; i += LANES) {
        for (l = 0; l < LANES; l++) /* the last group repeats its last prime */
            group[l] = primes->primes[i + (size_t)l < count ? i + (size_t)l : count - 1];
        set_moduli(&m, group);
        first_multiples(&m, numbers, numbers + digits, digits, first);
        for (l = 0; l < LANES; l++)
            for (at = first[l]; at < len; at += group[l])
                marks[at] = 1;
    }
    OPENSSL_clear_free(numbers, 2 * digits * sizeof(uint32_t));
    OPENSSL_cleanse(first, sizeof(first));
    return ok;
}
