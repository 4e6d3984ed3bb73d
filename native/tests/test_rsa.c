/* test_rsa.c - the RSA key generator against a plain search, to be run under the sanitizers.

   The plain search below is FIPS 186-5 A.1.6 and B.9 word for word, with libcrypto's own primality test on
   every candidate: no sieve, no threads, nothing of ours. */
#define _GNU_SOURCE
#include "../src/prime.h"

#include <openssl/err.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int passed, failed;

static int check(int ok, const char *what, int line)
{
    if (ok) {
        passed++;
    } else {
        failed++;
        printf("line %d failed: %s [%s]\n", line, what, igc_reasons());
    }
    return ok;
}
#define CHECK(condition) check((condition) != 0, #condition, __LINE__)

/* ---- a random stream that can be played again: splitmix64 ---- */

static uint64_t stream;

static int stream_bytes(unsigned char *out, int len)
{
    int i;

    for (i = 0; i < len; i++) {
        uint64_t z = stream += 0x9E3779B97F4A7C15;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        out[i] = (unsigned char)(z ^ (z >> 31));
    }
    return 1;
}

static int stream_status(void)
{
    return 1;
}

static const RAND_METHOD stream_method = {NULL, stream_bytes, NULL, NULL, stream_bytes, stream_status};

static void play(uint64_t seed)
{
    stream = seed;
    CHECK(RAND_set_rand_method(&stream_method));
}

/* ---- the plain search ---- */

static void plain_auxiliary(BIGNUM *prime, BN_CTX *ctx)
{
    while (BN_check_prime(prime, ctx, NULL) != 1)
        CHECK(BN_add_word(prime, 2));
}

/* B.9 step 3 */
static void plain_x(BIGNUM *x, int bits, BN_CTX *ctx)
{
    BIGNUM *low = NULL, *range = BN_new();

    BN_hex2bn(&low, "B504F333F9DE6484597D89B3754ABE9F1D6F60BA893BA84CED17AC8583339916");
    BN_lshift(low, low, bits - 256);
    BN_set_bit(range, bits);
    BN_sub(range, range, low);
    CHECK(BN_priv_rand_range_ex(x, range, 0, ctx));
    BN_add(x, x, low);
    BN_free(low);
    BN_free(range);
}

/* B.9 from step 4 on; 0: step 6 asks for another X */
static int plain_derive(BIGNUM *y, const BIGNUM *r1, const BIGNUM *r2, const BIGNUM *x, int bits, BN_ULONG e,
                        BN_CTX *ctx)
{
    BIGNUM *twice = BN_new(), *step = BN_new(), *r = BN_new(), *b = BN_new(), *y1 = BN_new(),
           *big_e = BN_new();
    int found = -1, i;

    BN_set_word(big_e, e);
    BN_lshift1(twice, r1);
    BN_mul(step, twice, r2, ctx);
    CHECK(BN_mod_inverse(r, r2, twice, ctx) && BN_mod_inverse(b, twice, r2, ctx));
    BN_mul(r, r, r2, ctx);
    BN_mul(b, b, twice, ctx);
    BN_sub(r, r, b);
    BN_mod_sub(y, r, x, step, ctx);
    BN_add(y, y, x);
    for (i = 0; found < 0 && i < 20 * bits; i++) {
        if (BN_num_bits(y) > bits) {
            found = 0;
            break;
        }
        BN_sub(y1, y, BN_value_one());
        BN_gcd(y1, y1, big_e, ctx);
        if (BN_is_one(y1) && BN_check_prime(y, ctx, NULL) == 1)
            found = 1;
        else
            BN_add(y, y, step);
    }
    CHECK(found >= 0);
    BN_free(twice);
    BN_free(step);
    BN_free(r);
    BN_free(b);
    BN_free(y1);
    BN_free(big_e);
    return found == 1;
}

/* A.1.6 steps 4.1 to 4.3; the random numbers of a prime are drawn before any base of Miller-Rabin's. */
static void plain_prime(BIGNUM *prime, int nlen, int aux_bits, BN_ULONG e, BN_CTX *ctx)
{
    BIGNUM *r1 = BN_new(), *r2 = BN_new(), *x = BN_new();

    CHECK(BN_priv_rand_ex(r1, aux_bits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ODD, 0, ctx));
    CHECK(BN_priv_rand_ex(r2, aux_bits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ODD, 0, ctx));
    plain_x(x, nlen / 2, ctx);
    plain_auxiliary(r1, ctx);
    plain_auxiliary(r2, ctx);
    CHECK(plain_derive(prime, r1, r2, x, nlen / 2, e, ctx));
    BN_free(r1);
    BN_free(r2);
    BN_free(x);
}

/* ---- the tests ---- */

static igc_prime_search new_search(int nlen, igc_primes *primes, BN_CTX *ctx)
{
    const igc_rsa_size *size = igc_rsa_size_of(nlen);
    igc_prime_search search = {size, primes, 65537, ctx, NULL, NULL, 0};

    CHECK(igc_primes_make(size->sieve, primes));
    return search;
}

static void same_prime(int nlen, int aux_bits, uint64_t seed, BN_ULONG e, int width, BN_CTX *ctx)
{
    igc_primes primes;
    igc_prime_search search = new_search(nlen, &primes, ctx);
    BIGNUM *ours = BN_new(), *theirs = BN_new();
    igc_seeds seeds;

    search.width = width;
    search.e = e;
    CHECK(igc_seeds_new(&seeds));
    play(seed);
    CHECK(igc_seeds_draw(search.size, &seeds, ctx));
    CHECK(igc_prime_generate(&search, &seeds, ours) == IGC_PRIME_FOUND);
    play(seed);
    plain_prime(theirs, nlen, aux_bits, e, ctx);
    if (!CHECK(BN_cmp(ours, theirs) == 0))
        printf("  %d bits, stream %llu, width %d\n", nlen, (unsigned long long)seed, width);
    RAND_set_rand_method(NULL);
    igc_seeds_free(&seeds);
    igc_primes_free(&primes);
    BN_free(ours);
    BN_free(theirs);
}

/* A random number so close to the top that B.9 step 6 asks for another. */
static void another_x(BN_CTX *ctx)
{
    igc_primes primes;
    igc_prime_search search = new_search(2048, &primes, ctx);
    BIGNUM *r1 = BN_new(), *r2 = BN_new(), *ours = BN_new(), *theirs = BN_new(), *top = BN_new();
    igc_seeds seeds;

    CHECK(igc_seeds_new(&seeds));
    play(7);
    CHECK(igc_seeds_draw(search.size, &seeds, ctx));
    BN_copy(r1, seeds.x1);
    BN_copy(r2, seeds.x2);
    plain_auxiliary(r1, ctx);
    plain_auxiliary(r2, ctx);
    BN_set_bit(top, 1024);
    BN_sub_word(top, 5);
    CHECK(!plain_derive(theirs, r1, r2, top, 1024, 65537, ctx));
    CHECK(igc_prime_derive(&search, r1, r2, top, ours) == IGC_PRIME_NEW_X);
    BN_copy(seeds.x, top);
    CHECK(igc_prime_generate(&search, &seeds, ours) == IGC_PRIME_FOUND);
    CHECK(BN_cmp(seeds.x, top) < 0);
    CHECK(plain_derive(theirs, r1, r2, seeds.x, 1024, 65537, ctx));
    CHECK(BN_cmp(ours, theirs) == 0);
    RAND_set_rand_method(NULL);
    igc_seeds_free(&seeds);
    igc_primes_free(&primes);
    BN_free(r1);
    BN_free(r2);
    BN_free(ours);
    BN_free(theirs);
    BN_free(top);
}

/* Every mark against division by every prime. */
static void sieve(int start_bits, int step_bits, uint32_t limit, size_t len)
{
    igc_primes primes;
    uint8_t *marks = malloc(len);
    BIGNUM *start = BN_new(), *step = BN_new(), *term = BN_new();
    size_t wrong = 0, k, i;

    CHECK(igc_primes_make(limit, &primes));
    BN_rand(start, start_bits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ODD);
    do { /* as the generator's steps: no prime of the list divides it */
        BN_rand(step, step_bits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ODD);
        BN_lshift1(step, step);
        for (i = 0; i < primes.count && BN_mod_word(step, primes.primes[i]) != 0; i++)
            ;
    } while (step_bits > 1 && i < primes.count);
    CHECK(igc_sieve(&primes, primes.count, start, step, marks, len));
    BN_copy(term, start);
    for (k = 0; k < len; k++) {
        int composite = 0;
        for (i = 0; i < primes.count; i++)
            composite |= BN_mod_word(term, primes.primes[i]) == 0;
        wrong += composite != marks[k];
        BN_add(term, term, step);
    }
    if (!CHECK(wrong == 0))
        printf("  %zu of %zu marks of %d + k %d bits, limit %u\n", wrong, len, start_bits, step_bits, limit);
    igc_primes_free(&primes);
    free(marks);
    BN_free(start);
    BN_free(step);
    BN_free(term);
}

/* A start that is itself a multiple of one prime, whichever place that has in its group. */
static void sieve_first(void)
{
    igc_primes primes;
    BIGNUM *start = BN_new(), *step = BN_new();
    uint8_t mark;
    size_t i;

    CHECK(igc_primes_make(128, &primes));
    BN_set_word(step, 2);
    for (i = 0; i < primes.count; i++) {
        BN_set_bit(start, 200);
        BN_mul_word(start, primes.primes[i]);
        CHECK(igc_sieve(&primes, primes.count, start, step, &mark, 1) && mark == 1);
        BN_zero(start);
    }
    igc_primes_free(&primes);
    BN_free(start);
    BN_free(step);
}

static void primes_and_small_numbers(BN_CTX *ctx)
{
    igc_primes primes;
    BIGNUM *number = BN_new();
    unsigned i, at = 0;

    CHECK(igc_primes_make(1 << 16, &primes));
    CHECK(primes.count == 6541 && primes.primes[0] == 3 && primes.primes[6540] == 65521);
    CHECK(igc_primes_below(&primes, 3) == 0 && igc_primes_below(&primes, 4) == 1);
    CHECK(igc_primes_below(&primes, 65521) == 6540 && igc_primes_below(&primes, 70000) == 6541);
    for (i = 3; i < 3000; i++) {
        BN_set_word(number, i);
        if (primes.primes[at] == i)
            at += CHECK(igc_miller_rabin(number, 20, ctx) == 1);
        else if (igc_miller_rabin(number, 20, ctx) != 0)
            CHECK(!"a composite number passes");
    }
    igc_primes_free(&primes);
    CHECK(igc_primes_make(1 << 22, &primes) && primes.count == 295946);
    igc_primes_free(&primes);
    BN_free(number);
}

static void stopping(BN_CTX *ctx)
{
    igc_primes primes;
    igc_prime_search search = new_search(2048, &primes, ctx);
    igc_progress progress = {1, 0, 0};
    igc_seeds seeds;
    BIGNUM *prime = BN_new();
    EVP_PKEY *pkey = NULL;
    igc_key *key = NULL;
    int stop = 1;

    CHECK(igc_seeds_new(&seeds) && igc_seeds_draw(search.size, &seeds, ctx));
    search.stop = &stop;
    CHECK(igc_prime_generate(&search, &seeds, prime) == IGC_PRIME_STOPPED);
    search.stop = NULL;
    search.progress = &progress;
    CHECK(igc_prime_generate(&search, &seeds, prime) == IGC_PRIME_STOPPED && progress.tested == 0);
    CHECK(igc_rsa_generate(4096, 2, &progress, &pkey) == IGC_E_CANCELLED && pkey == NULL);
    CHECK(igc_key_generate_with("rsa_4096", "openssl", 0, &progress, &key) == IGC_E_CANCELLED && key == NULL);
    CHECK(igc_rsa_generate(1024, 1, NULL, &pkey) == IGC_E_KEYTYPE && pkey == NULL);
    CHECK(igc_key_generate_with("rsa_2048", "best", 0, NULL, &key) == IGC_E_ARG && key == NULL);
    CHECK(igc_key_generate_with("rsa_2048", "native", 5, NULL, &key) == IGC_E_ARG && key == NULL);
    CHECK(igc_key_generate_with("rsa_2048", "native", -1, NULL, &key) == IGC_E_ARG && key == NULL);
    CHECK(igc_key_generate_with("rsa_2048", NULL, 0, NULL, &key) == IGC_E_ARG && key == NULL);
    igc_seeds_free(&seeds);
    igc_primes_free(&primes);
    BN_free(prime);
}

struct cancel {
    igc_progress progress;
    int done;
};

static void *cancel_later(void *arg)
{
    struct cancel *seen = arg;

    while (__atomic_load_n(&seen->progress.tested, __ATOMIC_RELAXED) < 1 &&
           !__atomic_load_n(&seen->done, __ATOMIC_RELAXED))
        usleep(1000);
    __atomic_store_n(&seen->progress.cancel, 1, __ATOMIC_RELAXED);
    return NULL;
}

/* From another thread, in the middle of it. A key may be found with the first candidates, or before that
 * thread runs. */
static void cancelling(void)
{
    int rc = IGC_OK, tries;

    for (tries = 0; tries < 5 && rc == IGC_OK; tries++) {
        struct cancel seen = {{0, 0, 0}, 0};
        igc_key *key = NULL;
        pthread_t other;

        if (!CHECK(pthread_create(&other, NULL, cancel_later, &seen) == 0))
            return;
        rc = igc_key_generate_with("rsa_8192", "native", 2, &seen.progress, &key);
        __atomic_store_n(&seen.done, 1, __ATOMIC_RELAXED);
        pthread_join(other, NULL);
        CHECK(rc == IGC_OK || (key == NULL && seen.progress.tested >= 1 && seen.progress.primes < 2));
        igc_key_free(key);
    }
    CHECK(rc == IGC_E_CANCELLED);
}

static BIGNUM *number_of(EVP_PKEY *pkey, const char *name)
{
    BIGNUM *number = NULL;

    CHECK(EVP_PKEY_get_bn_param(pkey, name, &number));
    return number;
}

static void keys(int threads, BN_CTX *ctx)
{
    igc_progress progress = {0, 0, 0};
    EVP_PKEY *pkey = NULL;
    EVP_PKEY_CTX *check_ctx;
    BIGNUM *p, *q;

    if (!CHECK(igc_rsa_generate(2048, threads, &progress, &pkey) == IGC_OK && pkey))
        return;
    CHECK(progress.primes == 2 && progress.tested >= 2 && progress.cancel == 0);
    check_ctx = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
    CHECK(EVP_PKEY_check(check_ctx) == 1);
    p = number_of(pkey, "rsa-factor1");
    q = number_of(pkey, "rsa-factor2");
    CHECK(EVP_PKEY_get_bits(pkey) == 2048 && BN_cmp(p, q) > 0 && igc_far_apart(p, q, 2048));
    CHECK(igc_miller_rabin(p, 10, ctx) == 1 && igc_miller_rabin(q, 10, ctx) == 1);
    BN_free(p);
    BN_free(q);
    EVP_PKEY_CTX_free(check_ctx);
    EVP_PKEY_free(pkey);
}

/* A wrong number of any kind must not pass. */
static void consistency(BN_CTX *ctx)
{
    static const char *const names[IGC_NUMBERS] = {
        "n", "e", "d", "rsa-factor1", "rsa-factor2", "rsa-exponent1", "rsa-exponent2", "rsa-coefficient1"};
    EVP_PKEY *pkey = NULL, *bad = NULL;
    BIGNUM *numbers[IGC_NUMBERS];
    int i;

    CHECK(igc_rsa_generate(2048, 0, NULL, &pkey) == IGC_OK);
    for (i = 0; i < IGC_NUMBERS; i++)
        numbers[i] = number_of(pkey, names[i]);
    CHECK(igc_numbers_consistent(numbers, ctx) == 1);
    CHECK(igc_rsa_pairwise(pkey));
    for (i = 0; i < IGC_NUMBERS; i++) {
        BN_add_word(numbers[i], 2);
        CHECK(igc_numbers_consistent(numbers, ctx) == 0);
        BN_sub_word(numbers[i], 2);
    }
    BN_swap(numbers[IGC_P], numbers[IGC_Q]);
    CHECK(igc_numbers_consistent(numbers, ctx) == 0);
    BN_swap(numbers[IGC_P], numbers[IGC_Q]);
    BN_add(numbers[IGC_QI], numbers[IGC_QI], numbers[IGC_P]);
    CHECK(igc_numbers_consistent(numbers, ctx) == 0);
    BN_sub(numbers[IGC_QI], numbers[IGC_QI], numbers[IGC_P]);
    CHECK(igc_numbers_consistent(numbers, ctx) == 1);
    BN_add_word(numbers[IGC_N], 2); /* the public key is another one */
    bad = igc_numbers_to_pkey(numbers);
    CHECK(bad == NULL || !igc_rsa_pairwise(bad));
    EVP_PKEY_free(bad);
    for (i = 0; i < IGC_NUMBERS; i++)
        BN_clear_free(numbers[i]);
    EVP_PKEY_free(pkey);
}

static void gaps(void)
{
    BIGNUM *a = BN_new(), *b = BN_new();

    BN_set_bit(a, 1023);
    BN_copy(b, a);
    CHECK(igc_far_apart(a, b, 2048) == 0);
    BN_set_bit(b, 924);
    CHECK(igc_far_apart(a, b, 2048) == 0 && igc_far_apart(b, a, 2048) == 0); /* exactly 2^(nlen/2 - 100) */
    BN_add_word(b, 1);
    CHECK(igc_far_apart(a, b, 2048) == 1 && igc_far_apart(b, a, 2048) == 1);
    BN_free(a);
    BN_free(b);
}

int main(int argc, char **argv)
{
    int quick = argc > 1 && strcmp(argv[1], "--threads") == 0, i;
    BN_CTX *ctx = BN_CTX_new();

    if (!quick) {
        primes_and_small_numbers(ctx);
        sieve_first();
        sieve(1024, 283, 1 << 14, 2000);
        sieve(1024, 283, 1 << 16, 300);
        sieve(141, 1, 2048, 3000);
        sieve(2048, 403, 1 << 16, 100);
        sieve(64, 40, 1 << 10, 5000);
        sieve(4096, 403, 9, 1000); /* fewer primes than are worked on at a time */
        sieve(1535, 343, 1 << 22, 2);
        for (i = 1; i <= 6; i++) {
            same_prime(2048, 141, (uint64_t)i, 65537, 1, ctx);
            same_prime(2048, 141, (uint64_t)i, 65537, 2, ctx);
            same_prime(2048, 141, (uint64_t)i, 15, 2, ctx); /* refuses most primes, and is none */
        }
        /* streams where the next candidate is prime as well, and was tested along with the right one */
        same_prime(2048, 141, 51, 65537, 2, ctx);
        same_prime(2048, 141, 63, 65537, 2, ctx);
        same_prime(3072, 171, 8, 65537, 0, ctx);
        another_x(ctx);
        gaps();
        consistency(ctx);
    }
    stopping(ctx);
    cancelling();
    for (i = 0; i < 12; i++)
        keys(i % 5, ctx);
    BN_CTX_free(ctx);
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
