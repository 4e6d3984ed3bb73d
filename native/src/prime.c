/* prime.c - Miller-Rabin and primes with auxiliary primes: FIPS 186-5 A.1.6, B.3.1, B.9. docs/rsa.md goes
   through it clause by clause. */
#include "prime.h"

#include <openssl/crypto.h>

#define AUX_ROUNDS 46
#define AUX_SIEVE 2048
#define AUX_WINDOW 512
#define AUX_TERMS (1 << 16) /* one of some fifty odd numbers of 141 bits is prime */

/* Security: SP 800-57 part 1, table 2. 8192 is not in the standard's tables; rounds by its formula in C.1. */
static const igc_rsa_size sizes[] = {
    {2048, 141, 1007, 6, 112, 1 << 16},
    {3072, 171, 1518, 4, 128, 1 << 18},
    {4096, 201, 2030, 4, 152, 1 << 19},
    {8192, 201, 2030, 4, 192, 1 << 22},
};

const igc_rsa_size *igc_rsa_size_of(int nlen)
{
    size_t i;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        if (sizes[i].nlen == nlen)
            return &sizes[i];
    return NULL;
}

/* ---- Miller-Rabin ---- */

/* w = 1 + 2^a m with m odd (B.3.1 steps 1, 2) */
typedef struct {
    BIGNUM *w, *last, *m; /* last: w - 1 */
    BIGNUM *range;        /* w - 3 */
    BIGNUM *b, *z;
    BN_MONT_CTX *mont;
    int a;
} candidate;

static void candidate_end(candidate *c)
{
    BN_clear_free(c->w);
    BN_clear_free(c->last);
    BN_clear_free(c->m);
    BN_clear_free(c->range);
    BN_clear_free(c->b);
    BN_clear_free(c->z);
    BN_MONT_CTX_free(c->mont);
}

static int candidate_begin(candidate *c)
{
    *c = (candidate){BN_new(), BN_new(), BN_new(), BN_new(), BN_new(), BN_new(), BN_MONT_CTX_new(), 0};
    if (c->w && c->last && c->m && c->range && c->b && c->z && c->mont)
        return 1;
    candidate_end(c);
    return 0;
}

/* After c->w is set: odd and larger than 3. */
static int candidate_prepare(candidate *c, BN_CTX *ctx)
{
    BN_set_flags(c->w, BN_FLG_CONSTTIME);
    BN_set_flags(c->m, BN_FLG_CONSTTIME);
    if (!BN_copy(c->last, c->w) || !BN_sub_word(c->last, 1) || !BN_copy(c->range, c->w) ||
        !BN_sub_word(c->range, 3))
        return 0;
    for (c->a = 1; !BN_is_bit_set(c->last, c->a); c->a++)
        ;
    return BN_rshift(c->m, c->last, c->a) && BN_MONT_CTX_set(c->mont, c->w, ctx);
}

/* b, 1 < b < w - 1 (step 4.1, 4.2) */
static int draw_base(candidate *c, BN_CTX *ctx)
{
    return BN_priv_rand_range_ex(c->b, c->range, 0, ctx) && BN_add_word(c->b, 2);
}

/* z = b^m mod w (step 4.3) */
static int power(candidate *c, BN_CTX *ctx)
{
    return BN_mod_exp_mont_consttime(c->z, c->b, c->m, c->w, ctx, c->mont);
}

static int power_two(candidate *c, candidate *d, BN_CTX *ctx)
{
    return BN_mod_exp_mont_consttime_x2(c->z, c->b, c->m, c->w, c->mont, d->z, d->b, d->m, d->w, d->mont,
                                        ctx);
}

/* Steps 4.4 to 4.6: 1 when b is no witness, 0 when w is composite, -1. */
static int verdict(candidate *c, BN_CTX *ctx)
{
    int j, rc = 0;

    if (BN_is_one(c->z) || BN_cmp(c->z, c->last) == 0)
        return 1;
    if (c->a == 1)
        return 0;
    /* squares in Montgomery's form; b is not needed any more and takes that of w - 1 */
    if (!BN_to_montgomery(c->z, c->z, c->mont, ctx) || !BN_to_montgomery(c->b, c->last, c->mont, ctx))
        return -1;
    for (j = 1; j < c->a && rc == 0; j++) {
        if (!BN_mod_mul_montgomery(c->z, c->z, c->z, c->mont, ctx))
            return -1;
        rc = BN_cmp(c->z, c->b) == 0;
    }
    return rc;
}

static int one_round(candidate *c, BN_CTX *ctx)
{
    return draw_base(c, ctx) && power(c, ctx) ? verdict(c, ctx) : -1;
}

int igc_miller_rabin_base(const BIGNUM *w, const BIGNUM *b, BN_CTX *ctx)
{
    candidate c;
    int rc;

    if (!candidate_begin(&c))
        return -1;
    rc = BN_copy(c.w, w) && BN_copy(c.b, b) && candidate_prepare(&c, ctx) && power(&c, ctx) ? verdict(&c, ctx)
                                                                                            : -1;
    candidate_end(&c);
    return rc;
}

int igc_miller_rabin(const BIGNUM *w, int rounds, BN_CTX *ctx)
{
    candidate c;
    int rc;

    if (BN_is_negative(w) || BN_is_zero(w) || BN_is_one(w))
        return 0;
    if (!BN_is_odd(w) || BN_is_word(w, 3))
        return BN_is_word(w, 2) || BN_is_word(w, 3);
    if (!candidate_begin(&c))
        return -1;
    rc = BN_copy(c.w, w) && candidate_prepare(&c, ctx) ? 1 : -1;
    while (rc == 1 && rounds-- > 0)
        rc = one_round(&c, ctx);
    candidate_end(&c);
    return rc;
}

/* ---- the search along a progression ---- */

/* Two exponentiations side by side: libcrypto's BN_mod_exp_mont_consttime_x2() has them on AVX-512 IFMA, of
   1024 bits since 3.0, of 1536 and 2048 in 3.2. Where it has not, it makes one after the other. */
static int natural_width(int bits)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512ifma") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return bits == 1024 || ((bits == 1536 || bits == 2048) && OpenSSL_version_num() >= 0x30200000L) ? 2
                                                                                                        : 1;
#endif
    (void)bits;
    return 1;
}

typedef struct {
    const igc_prime_search *search;
    BN_ULONG e;   /* gcd(Y - 1, e) = 1 is asked; 0: it is not */
    int max_bits; /* of a term; 0: any */
    int rounds;
    size_t primes; /* to sieve with */
    size_t window; /* terms sieved at a time */
    size_t terms;  /* of the progression, at most */
} progression;

/* The terms of a window that survived the sieve. */
typedef struct {
    const BIGNUM *start, *step;
    const uint8_t *marks;
    size_t next, len;
} window;

enum { TERM, NO_TERM, TOO_LARGE, TERM_FAILED };

static int coprime_to_predecessor(const BIGNUM *y, BN_ULONG e)
{
    BN_ULONG a = e, b = BN_mod_word(y, e), rest;

    b = b == 0 ? e - 1 : b - 1; /* (y - 1) mod e */
    while (b != 0) {
        rest = a % b;
        a = b;
        b = rest;
    }
    return a == 1;
}

/* The next candidate into c->w. */
static int next_term(const progression *what, window *at, candidate *c)
{
    while (at->next < at->len) {
        size_t k = at->next++;
        if (at->marks[k])
            continue;
        if (!BN_copy(c->w, at->step) || !BN_mul_word(c->w, (BN_ULONG)k) || !BN_add(c->w, c->w, at->start))
            return TERM_FAILED;
        if (what->max_bits && BN_num_bits(c->w) > what->max_bits)
            return TOO_LARGE;
        if (what->e == 0 || coprime_to_predecessor(c->w, what->e))
            return TERM;
    }
    return NO_TERM;
}

static int stopped(const igc_prime_search *search)
{
    return (search->stop && __atomic_load_n(search->stop, __ATOMIC_RELAXED)) ||
           (search->progress && __atomic_load_n(&search->progress->cancel, __ATOMIC_RELAXED));
}

/* The first round of `count` candidates: passed[i] 1, 0. 1, or 0: failure. */
static int first_round(const igc_prime_search *search, candidate *c, int count, int *passed)
{
    BN_CTX *ctx = search->ctx;
    int i;

    for (i = 0; i < count; i++)
        if (!candidate_prepare(&c[i], ctx) || !draw_base(&c[i], ctx))
            return 0;
    if (count == 2 ? !power_two(&c[0], &c[1], ctx) : !power(&c[0], ctx))
        return 0;
    for (i = 0; i < count; i++)
        if ((passed[i] = verdict(&c[i], ctx)) < 0)
            return 0;
    return 1;
}

/* The other rounds of one candidate, two bases at a time where that pays. `spare` lends its numbers. */
static int other_rounds(const progression *what, candidate *c, candidate *spare, int width)
{
    BN_CTX *ctx = what->search->ctx;
    int left = what->rounds - 1, rc = 1;

    if (width == 2 && left > 1 && (!BN_copy(spare->w, c->w) || !candidate_prepare(spare, ctx)))
        return -1;
    while (rc == 1 && left > 0 && !stopped(what->search)) {
        if (width == 2 && left > 1) {
            if (!draw_base(c, ctx) || !draw_base(spare, ctx) || !power_two(c, spare, ctx))
                return -1;
            rc = verdict(c, ctx);
            if (rc == 1)
                rc = verdict(spare, ctx);
            left -= 2;
        } else {
            rc = one_round(c, ctx);
            left--;
        }
    }
    return rc;
}

static igc_prime_result search_window(const progression *what, window *at, candidate *c, int width,
                                      BIGNUM *out)
{
    const igc_prime_search *search = what->search;
    int passed[2] = {0, 0}, count, i, got = TERM;

    while (got == TERM) {
        if (stopped(search))
            return IGC_PRIME_STOPPED;
        for (count = 0; count < width && (got = next_term(what, at, &c[count])) == TERM; count++)
            ;
        if (got == TERM_FAILED || (count && !first_round(search, c, count, passed)))
            return IGC_PRIME_FAILED;
        if (search->progress && what->e)
            __atomic_add_fetch(&search->progress->tested, (uint32_t)count, __ATOMIC_RELAXED);
        for (i = 0; i < count; i++) {
            int rc = passed[i] ? other_rounds(what, &c[i], &c[2], width) : 0;
            if (rc < 0)
                return IGC_PRIME_FAILED;
            if (stopped(search))
                return IGC_PRIME_STOPPED;
            if (rc == 1)
                return BN_copy(out, c[i].w) ? IGC_PRIME_FOUND : IGC_PRIME_FAILED;
        }
    }
    return got == TOO_LARGE ? IGC_PRIME_NEW_X : IGC_PRIME_NONE;
}

/* The first term of start, start + step, ... that is a probable prime: sieving takes away composites only. */
static igc_prime_result search_progression(const progression *what, const BIGNUM *start, const BIGNUM *step,
                                           BIGNUM *out)
{
    const igc_prime_search *search = what->search;
    int width = search->width && what->e ? search->width : natural_width(what->max_bits);
    uint8_t *marks = OPENSSL_malloc(what->window);
    BIGNUM *at = BN_dup(start), *leap = BN_dup(step);
    igc_prime_result rc = IGC_PRIME_FAILED;
    candidate c[3] = {{0}, {0}, {0}};
    size_t done;
    int i, ok = marks && at && leap && BN_mul_word(leap, (BN_ULONG)what->window);

    for (i = 0; i < 3; i++)
        ok = ok && candidate_begin(&c[i]);
    if (ok)
        rc = IGC_PRIME_NONE;
    for (done = 0; rc == IGC_PRIME_NONE && done < what->terms; done += what->window) {
        window here = {at, step, marks, 0, what->window};
        rc = IGC_PRIME_FAILED;
        if (igc_sieve(search->primes, what->primes, at, step, marks, what->window))
            rc = search_window(what, &here, c, width, out);
        if (!BN_add(at, at, leap))
            rc = IGC_PRIME_FAILED;
    }
    for (i = 0; i < 3; i++)
        candidate_end(&c[i]);
    BN_clear_free(at);
    BN_clear_free(leap);
    OPENSSL_clear_free(marks, what->window);
    return rc;
}

/* ---- auxiliary primes, B.9, A.1.6 ---- */

igc_prime_result igc_prime_auxiliary(const igc_prime_search *search, const BIGNUM *start, BIGNUM *out)
{
    progression what = {search,     0,        0, AUX_ROUNDS, igc_primes_below(search->primes, AUX_SIEVE),
                        AUX_WINDOW, AUX_TERMS};
    BIGNUM *two;
    igc_prime_result rc = IGC_PRIME_FAILED;

    BN_CTX_start(search->ctx);
    two = BN_CTX_get(search->ctx);
    if (two && BN_set_word(two, 2))
        rc = search_progression(&what, start, two, out);
    BN_CTX_end(search->ctx);
    return rc;
}

/* B.9 steps 1, 2, 4: y = the first number from x on that is 1 mod 2 r1 and -1 mod r2; step = 2 r1 r2. */
static int first_term(const BIGNUM *r1, const BIGNUM *r2, const BIGNUM *x, BIGNUM *y, BIGNUM *step,
                      BN_CTX *ctx)
{
    BIGNUM *twice, *a, *b;
    int ok;

    BN_CTX_start(ctx);
    twice = BN_CTX_get(ctx);
    a = BN_CTX_get(ctx);
    b = BN_CTX_get(ctx);
    ok = b && BN_lshift1(twice, r1) && BN_mul(step, twice, r2, ctx);
    if (ok) {
        BN_set_flags(twice, BN_FLG_CONSTTIME);
        BN_set_flags(step, BN_FLG_CONSTTIME);
        /* the inverses exist when gcd(2 r1, r2) = 1 */
        ok = BN_mod_inverse(a, r2, twice, ctx) && BN_mul(a, a, r2, ctx) &&
             BN_mod_inverse(b, twice, r2, ctx) && BN_mul(b, b, twice, ctx) && BN_sub(a, a, b) &&
             BN_sub(a, a, x) && BN_nnmod(a, a, step, ctx) && BN_add(y, x, a);
    }
    BN_CTX_end(ctx);
    return ok;
}

igc_prime_result igc_prime_derive(const igc_prime_search *search, const BIGNUM *r1, const BIGNUM *r2,
                                  const BIGNUM *x, BIGNUM *out)
{
    const igc_rsa_size *size = search->size;
    size_t bits = (size_t)size->nlen / 2;
    /* B.9 step 9: at most 20 nlen/2 terms */
    progression what = {
        search,   search->e, (int)bits, size->rounds, igc_primes_below(search->primes, size->sieve),
        4 * bits, 20 * bits};
    BIGNUM *y, *step;
    igc_prime_result rc = IGC_PRIME_FAILED;

    BN_CTX_start(search->ctx);
    y = BN_CTX_get(search->ctx);
    step = BN_CTX_get(search->ctx);
    if (step && first_term(r1, r2, x, y, step, search->ctx))
        rc = search_progression(&what, y, step, out);
    BN_CTX_end(search->ctx);
    return rc;
}

int igc_seeds_new(igc_seeds *seeds)
{
    *seeds = (igc_seeds){BN_new(), BN_new(), BN_new()};
    if (seeds->x1 && seeds->x2 && seeds->x)
        return 1;
    igc_seeds_free(seeds);
    return 0;
}

void igc_seeds_free(igc_seeds *seeds)
{
    BN_clear_free(seeds->x1);
    BN_clear_free(seeds->x2);
    BN_clear_free(seeds->x);
    *seeds = (igc_seeds){NULL, NULL, NULL};
}

/* B.9 step 3: sqrt(2) 2^(bits - 1) <= x < 2^bits. The root is rounded up in its 256th bit. */
static int draw_x(const igc_rsa_size *size, BIGNUM *x, BN_CTX *ctx)
{
    static const char half_root[] = "B504F333F9DE6484597D89B3754ABE9F1D6F60BA893BA84CED17AC8583339916";
    int bits = size->nlen / 2, ok;
    BIGNUM *low, *range;

    BN_CTX_start(ctx);
    low = BN_CTX_get(ctx);
    range = BN_CTX_get(ctx);
    ok = range && BN_hex2bn(&low, half_root) && BN_lshift(low, low, bits - 256) && BN_one(range) &&
         BN_lshift(range, range, bits) && BN_sub(range, range, low) &&
         BN_priv_rand_range_ex(x, range, size->security, ctx) && BN_add(x, x, low);
    BN_CTX_end(ctx);
    return ok;
}

int igc_seeds_draw(const igc_rsa_size *size, igc_seeds *seeds, BN_CTX *ctx)
{
    BN_set_flags(seeds->x1, BN_FLG_CONSTTIME);
    BN_set_flags(seeds->x2, BN_FLG_CONSTTIME);
    BN_set_flags(seeds->x, BN_FLG_CONSTTIME);
    return BN_priv_rand_ex(seeds->x1, size->aux_bits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ODD, size->security,
                           ctx) &&
           BN_priv_rand_ex(seeds->x2, size->aux_bits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ODD, size->security,
                           ctx) &&
           draw_x(size, seeds->x, ctx);
}

igc_prime_result igc_prime_generate(const igc_prime_search *search, igc_seeds *seeds, BIGNUM *out)
{
    const igc_rsa_size *size = search->size;
    BIGNUM *r1, *r2;
    igc_prime_result rc = IGC_PRIME_FAILED;

    BN_CTX_start(search->ctx);
    r1 = BN_CTX_get(search->ctx);
    r2 = BN_CTX_get(search->ctx);
    if (r2) {
        BN_set_flags(r1, BN_FLG_CONSTTIME);
        BN_set_flags(r2, BN_FLG_CONSTTIME);
        rc = igc_prime_auxiliary(search, seeds->x1, r1);
        if (rc == IGC_PRIME_FOUND)
            rc = igc_prime_auxiliary(search, seeds->x2, r2);
        if (rc == IGC_PRIME_FOUND && BN_num_bits(r1) + BN_num_bits(r2) >= size->aux_sum)
            rc = IGC_PRIME_FAILED;
        if (rc == IGC_PRIME_FOUND)
            rc = igc_prime_derive(search, r1, r2, seeds->x, out);
        while (rc == IGC_PRIME_NEW_X)
            rc = draw_x(size, seeds->x, search->ctx) ? igc_prime_derive(search, r1, r2, seeds->x, out)
                                                     : IGC_PRIME_FAILED;
    }
    BN_CTX_end(search->ctx);
    return rc;
}
