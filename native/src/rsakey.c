/* rsakey.c - from two primes to an RSA key; the relations between its numbers; the pairwise test. */
#include "prime.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/rsa.h>

static const char *const names[IGC_NUMBERS] = {
    OSSL_PKEY_PARAM_RSA_N,         OSSL_PKEY_PARAM_RSA_E,
    OSSL_PKEY_PARAM_RSA_D,         OSSL_PKEY_PARAM_RSA_FACTOR1,
    OSSL_PKEY_PARAM_RSA_FACTOR2,   OSSL_PKEY_PARAM_RSA_EXPONENT1,
    OSSL_PKEY_PARAM_RSA_EXPONENT2, OSSL_PKEY_PARAM_RSA_COEFFICIENT1,
};

int igc_numbers_new(BIGNUM **numbers)
{
    int i, ok = 1;

    for (i = 0; i < IGC_NUMBERS; i++) {
        numbers[i] = BN_new();
        if (numbers[i])
            BN_set_flags(numbers[i], BN_FLG_CONSTTIME);
        ok = ok && numbers[i];
    }
    if (!ok)
        igc_numbers_free(numbers);
    return ok;
}

void igc_numbers_free(BIGNUM **numbers)
{
    int i;

    for (i = 0; i < IGC_NUMBERS; i++) {
        BN_clear_free(numbers[i]);
        numbers[i] = NULL;
    }
}

int igc_far_apart(const BIGNUM *a, const BIGNUM *b, int nlen)
{
    BIGNUM *gap = BN_new(), *least = BN_new();
    int rc = -1;

    if (gap && least && BN_sub(gap, a, b) && BN_set_bit(least, nlen / 2 - 100))
        rc = BN_ucmp(gap, least) > 0;
    BN_clear_free(gap);
    BN_free(least);
    return rc;
}

/* 1/a mod e for a in 1 .. e - 1 and gcd(a, e) = 1: the extended algorithm of Euclid. */
static BN_ULONG word_inverse(BN_ULONG a, BN_ULONG e)
{
    BN_ULONG r0 = e, r1 = a, t0 = 0, t1 = 1; /* r = +-t a mod e, the signs alternate */
    int odd = 1;

    while (r1 > 1) {
        BN_ULONG times = r0 / r1, rest = r0 % r1, t = t0 + times * t1;
        r0 = r1;
        r1 = rest;
        t0 = t1;
        t1 = t;
        odd = !odd;
    }
    return odd ? t1 : e - t1;
}

/* out = 1/e mod m: (1 + k m) / e with k = -1/m mod e. 1 or 0. */
static int inverse_of(BIGNUM *out, BN_ULONG e, const BIGNUM *m)
{
    BN_ULONG k = e - word_inverse(BN_mod_word(m, e), e);

    return BN_copy(out, m) && BN_mul_word(out, k) && BN_add_word(out, 1) && BN_div_word(out, e) == 0;
}

int igc_numbers_fill(BIGNUM **numbers, BN_ULONG e, BN_CTX *ctx)
{
    const BIGNUM *p = numbers[IGC_P], *q = numbers[IGC_Q];
    BIGNUM *p1, *q1, *lcm, *common;
    int rc = -1;

    BN_CTX_start(ctx);
    p1 = BN_CTX_get(ctx);
    q1 = BN_CTX_get(ctx);
    lcm = BN_CTX_get(ctx);
    common = BN_CTX_get(ctx);
    if (common == NULL)
        goto out;
    BN_set_flags(p1, BN_FLG_CONSTTIME);
    BN_set_flags(q1, BN_FLG_CONSTTIME);
    BN_set_flags(lcm, BN_FLG_CONSTTIME);
    BN_set_flags(common, BN_FLG_CONSTTIME);
    if (!BN_sub(p1, p, BN_value_one()) || !BN_sub(q1, q, BN_value_one()) || !BN_gcd(common, p1, q1, ctx) ||
        !BN_div(lcm, NULL, p1, common, ctx) || !BN_mul(lcm, lcm, q1, ctx))
        goto out;
    /* 1/q mod p = q^(p - 2) mod p: in constant time, unlike Euclid's algorithm */
    if (!BN_set_word(numbers[IGC_E], e) || !BN_mul(numbers[IGC_N], p, q, ctx) ||
        !inverse_of(numbers[IGC_D], e, lcm) || !inverse_of(numbers[IGC_DP], e, p1) ||
        !inverse_of(numbers[IGC_DQ], e, q1) || !BN_sub_word(p1, 1) ||
        !BN_mod_exp_mont_consttime(numbers[IGC_QI], q, p1, p, ctx, NULL))
        goto out;
    rc = BN_num_bits(numbers[IGC_D]) > BN_num_bits(numbers[IGC_N]) / 2;
out:
    BN_CTX_end(ctx);
    return rc;
}

/* a b mod m = 1? 1, 0, -1 */
static int inverses(const BIGNUM *a, const BIGNUM *b, const BIGNUM *m, BN_CTX *ctx)
{
    BIGNUM *product;
    int rc = -1;

    BN_CTX_start(ctx);
    product = BN_CTX_get(ctx);
    if (product && BN_mod_mul(product, a, b, m, ctx))
        rc = BN_is_one(product);
    BN_CTX_end(ctx);
    return rc;
}

/* A.1.1: sqrt(2) 2^(nlen/2 - 1) <= prime < 2^(nlen/2). 1, 0, -1 */
static int prime_in_bounds(const BIGNUM *prime, int nlen, BN_CTX *ctx)
{
    BIGNUM *square;
    int rc = -1;

    BN_CTX_start(ctx);
    square = BN_CTX_get(ctx);
    if (square && BN_sqr(square, prime, ctx)) /* of nlen bits: from 2^(nlen - 1) to below 2^nlen */
        rc = BN_num_bits(square) == nlen;
    BN_CTX_end(ctx);
    return rc;
}

static int exponents_consistent(BIGNUM *const *numbers, BN_CTX *ctx)
{
    BIGNUM *p1, *q1;
    int rc = -1;

    BN_CTX_start(ctx);
    p1 = BN_CTX_get(ctx);
    q1 = BN_CTX_get(ctx);
    if (q1 && BN_sub(p1, numbers[IGC_P], BN_value_one()) && BN_sub(q1, numbers[IGC_Q], BN_value_one())) {
        BN_set_flags(p1, BN_FLG_CONSTTIME);
        BN_set_flags(q1, BN_FLG_CONSTTIME);
        rc = BN_ucmp(numbers[IGC_DP], p1) < 0 && BN_ucmp(numbers[IGC_DQ], q1) < 0;
        rc = rc == 1 ? inverses(numbers[IGC_E], numbers[IGC_D], p1, ctx) : rc;
        rc = rc == 1 ? inverses(numbers[IGC_E], numbers[IGC_D], q1, ctx) : rc;
        rc = rc == 1 ? inverses(numbers[IGC_E], numbers[IGC_DP], p1, ctx) : rc;
        rc = rc == 1 ? inverses(numbers[IGC_E], numbers[IGC_DQ], q1, ctx) : rc;
    }
    BN_CTX_end(ctx);
    return rc;
}

int igc_numbers_consistent(BIGNUM *const *numbers, BN_CTX *ctx)
{
    const BIGNUM *n = numbers[IGC_N], *e = numbers[IGC_E], *p = numbers[IGC_P], *q = numbers[IGC_Q];
    int nlen = BN_num_bits(n), e_bits = BN_num_bits(e), rc = -1;
    BIGNUM *product;

    BN_CTX_start(ctx);
    product = BN_CTX_get(ctx);
    if (product && BN_mul(product, p, q, ctx))
        rc = nlen % 2 == 0 && BN_cmp(product, n) == 0;
    BN_CTX_end(ctx);
    /* 2^16 < e < 2^256 and odd; d > 2^(nlen/2) */
    if (rc == 1)
        rc = BN_is_odd(e) && e_bits > 16 && e_bits <= 256 && BN_num_bits(numbers[IGC_D]) > nlen / 2;
    rc = rc == 1 ? prime_in_bounds(p, nlen, ctx) : rc;
    rc = rc == 1 ? prime_in_bounds(q, nlen, ctx) : rc;
    rc = rc == 1 ? igc_far_apart(p, q, nlen) : rc;
    rc = rc == 1 ? exponents_consistent(numbers, ctx) : rc;
    if (rc == 1)
        rc = BN_ucmp(numbers[IGC_QI], p) < 0 ? inverses(q, numbers[IGC_QI], p, ctx) : 0;
    return rc;
}

EVP_PKEY *igc_numbers_to_pkey(BIGNUM *const *numbers)
{
    size_t width = ((size_t)BN_num_bits(numbers[IGC_N]) + 7) / 8;
    uint8_t *octets = OPENSSL_malloc(IGC_NUMBERS * width);
    OSSL_PARAM params[IGC_NUMBERS + 1];
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    EVP_PKEY *pkey = NULL;
    int i, ok = octets && ctx && EVP_PKEY_fromdata_init(ctx) > 0;

    for (i = 0; ok && i < IGC_NUMBERS; i++) {
        ok = BN_bn2nativepad(numbers[i], octets + (size_t)i * width, (int)width) >= 0;
        params[i] = OSSL_PARAM_construct_BN(names[i], octets + (size_t)i * width, width);
    }
    params[IGC_NUMBERS] = OSSL_PARAM_construct_end();
    if (ok && EVP_PKEY_fromdata(ctx, &pkey, EVP_PKEY_KEYPAIR, params) <= 0)
        pkey = NULL;
    EVP_PKEY_CTX_free(ctx);
    OPENSSL_clear_free(octets, IGC_NUMBERS * width);
    return pkey;
}

int igc_rsa_pairwise(EVP_PKEY *pkey)
{
    static const uint8_t digest[32] = "igelcert pairwise consistency...";
    size_t len = (size_t)EVP_PKEY_get_size(pkey);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
    uint8_t *sig = OPENSSL_malloc(len);
    int ok;

    ok = ctx && sig && EVP_PKEY_sign_init(ctx) > 0 &&
         EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PADDING) > 0 &&
         EVP_PKEY_CTX_set_signature_md(ctx, EVP_sha256()) > 0 &&
         EVP_PKEY_sign(ctx, sig, &len, digest, sizeof(digest)) > 0 && EVP_PKEY_verify_init(ctx) > 0 &&
         EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PADDING) > 0 &&
         EVP_PKEY_CTX_set_signature_md(ctx, EVP_sha256()) > 0 &&
         EVP_PKEY_verify(ctx, sig, len, digest, sizeof(digest)) > 0;
    EVP_PKEY_CTX_free(ctx);
    OPENSSL_free(sig);
    return ok;
}
