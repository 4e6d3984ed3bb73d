/* rsagen.c - RSA key generation: threads search, the first two primes found win. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "prime.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#define MAX_THREADS 4
#define E 65537

/* Shared by the threads of one generation. */
typedef struct {
    const igc_rsa_size *size;
    igc_primes primes; /* only read */
    igc_progress *progress;
    int stop; /* atomic: nobody needs another prime */
    pthread_mutex_t lock;
    /* under the lock */
    int found;
    BIGNUM *prime[2], *x[2];
    igc_prime_result failure; /* IGC_PRIME_FOUND: none */
} pool;

static int pool_open(pool *p, const igc_rsa_size *size, igc_progress *progress)
{
    *p = (pool){.size = size,
                .progress = progress,
                .lock = PTHREAD_MUTEX_INITIALIZER,
                .prime = {BN_new(), BN_new()},
                .x = {BN_new(), BN_new()},
                .failure = IGC_PRIME_FOUND};
    return p->prime[0] && p->prime[1] && p->x[0] && p->x[1] && igc_primes_make(size->sieve, &p->primes);
}

static void pool_close(pool *p)
{
    BN_clear_free(p->prime[0]);
    BN_clear_free(p->prime[1]);
    BN_clear_free(p->x[0]);
    BN_clear_free(p->x[1]);
    igc_primes_free(&p->primes);
    pthread_mutex_destroy(&p->lock);
}

/* A prime for the pool; A.1.6 step 6 throws the second away when it is too close to the first. */
static igc_prime_result offer(pool *p, const BIGNUM *prime, const BIGNUM *x)
{
    int apart = 1;

    if (p->found == 2) /* came too late */
        return IGC_PRIME_STOPPED;
    if (p->found == 1) {
        int values = igc_far_apart(p->prime[0], prime, p->size->nlen);
        int randoms = igc_far_apart(p->x[0], x, p->size->nlen);
        if (values < 0 || randoms < 0)
            return IGC_PRIME_FAILED;
        apart = values && randoms;
    }
    if (!apart)
        return IGC_PRIME_FOUND;
    if (!BN_copy(p->prime[p->found], prime) || !BN_copy(p->x[p->found], x))
        return IGC_PRIME_FAILED;
    p->found++;
    if (p->progress)
        __atomic_store_n(&p->progress->primes, (uint32_t)p->found, __ATOMIC_RELAXED);
    return p->found == 2 ? IGC_PRIME_STOPPED : IGC_PRIME_FOUND;
}

static igc_prime_result search_until_stopped(pool *p, BN_CTX *ctx)
{
    const igc_prime_search search = {p->size, &p->primes, E, ctx, &p->stop, p->progress, 0};
    igc_seeds seeds = {NULL, NULL, NULL};
    BIGNUM *prime = BN_new();
    igc_prime_result rc = prime && igc_seeds_new(&seeds) ? IGC_PRIME_FOUND : IGC_PRIME_FAILED;

    while (rc == IGC_PRIME_FOUND) {
        BN_set_flags(prime, BN_FLG_CONSTTIME);
        rc = igc_seeds_draw(p->size, &seeds, ctx) ? igc_prime_generate(&search, &seeds, prime)
                                                  : IGC_PRIME_FAILED;
        if (rc == IGC_PRIME_FOUND) {
            pthread_mutex_lock(&p->lock);
            rc = offer(p, prime, seeds.x);
            pthread_mutex_unlock(&p->lock);
        }
    }
    igc_seeds_free(&seeds);
    BN_clear_free(prime);
    return rc;
}

static void *work(void *arg)
{
    pool *p = arg;
    BN_CTX *ctx = BN_CTX_new();
    igc_prime_result rc = ctx ? search_until_stopped(p, ctx) : IGC_PRIME_FAILED;

    BN_CTX_free(ctx);
    if (rc != IGC_PRIME_STOPPED) {
        pthread_mutex_lock(&p->lock);
        p->failure = rc;
        pthread_mutex_unlock(&p->lock);
    }
    __atomic_store_n(&p->stop, 1, __ATOMIC_RELAXED);
    return NULL;
}

static int processors(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;

    return count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
}

/* The caller's thread is one of them. Fewer do when no more can be had. Signals stay the caller's. */
static void search_in_threads(pool *p, int threads)
{
    pthread_t others[MAX_THREADS];
    sigset_t all, before;
    int i, started = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started < threads - 1 && pthread_create(&others[started], NULL, work, p) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    work(p);
    for (i = 0; i < started; i++)
        pthread_join(others[i], NULL);
}

/* The numbers of a key from the pool's primes, the larger one first. 1; 0: d is too small; -1. */
static int assemble(pool *p, BIGNUM **numbers, BN_CTX *ctx)
{
    int first = BN_cmp(p->prime[0], p->prime[1]) > 0 ? 0 : 1;

    if (!BN_copy(numbers[IGC_P], p->prime[first]) || !BN_copy(numbers[IGC_Q], p->prime[!first]))
        return -1;
    return igc_numbers_fill(numbers, E, ctx);
}

static int to_key(BIGNUM **numbers, BN_CTX *ctx, EVP_PKEY **out)
{
    EVP_PKEY *pkey;

    if (igc_numbers_consistent(numbers, ctx) != 1)
        return igc_fail(IGC_E_INTERNAL, "the numbers of the new key do not fit each other");
    pkey = igc_numbers_to_pkey(numbers);
    if (pkey == NULL)
        return igc_fail(IGC_E_INTERNAL, "the key could not be generated");
    if (!igc_rsa_pairwise(pkey)) {
        EVP_PKEY_free(pkey);
        return igc_fail(IGC_E_INTERNAL, "the new key fails its pairwise consistency test");
    }
    *out = pkey;
    return IGC_OK;
}

static int cancelled(const igc_progress *progress)
{
    return progress && __atomic_load_n(&progress->cancel, __ATOMIC_RELAXED);
}

int igc_rsa_generate(int nlen, int threads, igc_progress *progress, EVP_PKEY **out)
{
    const igc_rsa_size *size = igc_rsa_size_of(nlen);
    BIGNUM *numbers[IGC_NUMBERS] = {NULL};
    BN_CTX *ctx = BN_CTX_new();
    int rc = IGC_OK, enough = 0;
    pool p;

    if (size == NULL || ctx == NULL || !igc_numbers_new(numbers)) {
        BN_CTX_free(ctx);
        return igc_fail(size ? IGC_E_NOMEM : IGC_E_KEYTYPE, NULL);
    }
    while (rc == IGC_OK && !enough) { /* again only when d is too small, which nobody has seen */
        if (!pool_open(&p, size, progress)) {
            rc = igc_fail(IGC_E_NOMEM, NULL);
        } else {
            search_in_threads(&p, threads ? threads : processors());
            if (cancelled(progress))
                rc = igc_fail(IGC_E_CANCELLED, NULL);
            else if (p.failure != IGC_PRIME_FOUND || (enough = assemble(&p, numbers, ctx)) < 0)
                rc = igc_fail(IGC_E_INTERNAL, "no prime could be generated");
        }
        pool_close(&p);
    }
    if (rc == IGC_OK)
        rc = to_key(numbers, ctx, out);
    igc_numbers_free(numbers);
    BN_CTX_free(ctx);
    return rc;
}
