/* prime.h - probable primes for RSA keys, FIPS 186-5; shared by sieve.c, prime.c, rsagen.c and their tests.
 */
#ifndef IGC_PRIME_H
#define IGC_PRIME_H

#include "inner.h"

#include <openssl/bn.h>

/* The odd primes below a limit of at most 2^22, in order. */
typedef struct {
    uint32_t *primes;
    size_t count;
} igc_primes;
int igc_primes_make(uint32_t limit, igc_primes *out); /* 1, or 0: no memory */
void igc_primes_free(igc_primes *primes);
size_t igc_primes_below(const igc_primes *primes, uint32_t limit);

/* marks[k] becomes 1 where start + k * step (k < len) is a multiple of one of the first `count` primes, else
   0. No prime may divide step; start is larger than any of them. 1, or 0: libcrypto failed. */
int igc_sieve(const igc_primes *primes, size_t count, const BIGNUM *start, const BIGNUM *step, uint8_t *marks,
              size_t len);

/* Miller-Rabin with random bases (FIPS 186-5 B.3.1), any integer: 1 probably prime, 0 not, -1 failure. */
int igc_miller_rabin(const BIGNUM *w, int rounds, BN_CTX *ctx);
/* One round with the base b, 0 < b < w, of an odd w > 2: 1 when b is no witness against w, 0, -1. */
int igc_miller_rabin_base(const BIGNUM *w, const BIGNUM *b, BN_CTX *ctx);

/* What the standard asks of a key of nlen bits. */
typedef struct {
    int nlen;
    int aux_bits;          /* auxiliary primes have at least that many (Table A.1) */
    int aux_sum;           /* and the two of a prime together fewer than that many (Table A.1) */
    int rounds;            /* Miller-Rabin for p, q (Table B.1, C.1) */
    unsigned int security; /* bits, of the random numbers: SP 800-57 */
    uint32_t sieve;        /* sieve limit: costs no more than the tests that it saves */
} igc_rsa_size;
const igc_rsa_size *igc_rsa_size_of(int nlen); /* NULL: not offered */

typedef enum {
    IGC_PRIME_FAILED = -1, /* libcrypto */
    IGC_PRIME_FOUND,
    IGC_PRIME_NONE,    /* none among as many terms as B.9 step 9 allows */
    IGC_PRIME_NEW_X,   /* the progression left its range: B.9 goes back to its step 3 */
    IGC_PRIME_STOPPED, /* *stop, or the caller cancelled */
} igc_prime_result;

/* One thread's search. */
typedef struct {
    const igc_rsa_size *size;
    const igc_primes *primes;
    BN_ULONG e;
    BN_CTX *ctx;
    const int *stop;        /* another thread may set it; NULL: none */
    igc_progress *progress; /* may be NULL */
    int width;              /* candidates per exponentiation: 1 or 2; 0: what pays here */
} igc_prime_search;

/* The random numbers that a prime depends on; nothing else has part in it. Ended by igc_seeds_free(). */
typedef struct {
    BIGNUM *x1, *x2, *x;
} igc_seeds;
int igc_seeds_new(igc_seeds *seeds); /* 1, or 0: no memory */
void igc_seeds_free(igc_seeds *seeds);
int igc_seeds_draw(const igc_rsa_size *size, igc_seeds *seeds, BN_CTX *ctx); /* 1 or 0 */

/* First probable prime in odd steps from `start` on (A.1.6 steps 4.2, 5.2). */
igc_prime_result igc_prime_auxiliary(const igc_prime_search *search, const BIGNUM *start, BIGNUM *out);
/* B.9 with the auxiliary primes r1, r2 and the random number x. */
igc_prime_result igc_prime_derive(const igc_prime_search *search, const BIGNUM *r1, const BIGNUM *r2,
                                  const BIGNUM *x, BIGNUM *out);
/* A.1.6 step 4 or 5 from drawn seeds; x becomes the one that was used, where B.9 asked for another. */
igc_prime_result igc_prime_generate(const igc_prime_search *search, igc_seeds *seeds, BIGNUM *out);

/* A.1.6 step 6: |a - b| > 2^(nlen/2 - 100)? 1, 0, -1. */
int igc_far_apart(const BIGNUM *a, const BIGNUM *b, int nlen);

enum { IGC_N, IGC_E, IGC_D, IGC_P, IGC_Q, IGC_DP, IGC_DQ, IGC_QI, IGC_NUMBERS };
/* The numbers of a key; an array of IGC_NUMBERS. */
int igc_numbers_new(BIGNUM **numbers);
void igc_numbers_free(BIGNUM **numbers);
/* From P and Q, P > Q and gcd(e, (P - 1)(Q - 1)) = 1, to the rest. 1; 0: d is too small (A.1.1); -1 failure.
 */
int igc_numbers_fill(BIGNUM **numbers, BN_ULONG e, BN_CTX *ctx);
/* Bounds of FIPS 186-5 A.1.1 and every relation of RFC 8017 3.2 but primality. 1, 0, -1. */
int igc_numbers_consistent(BIGNUM *const *numbers, BN_CTX *ctx);

EVP_PKEY *igc_numbers_to_pkey(BIGNUM *const *numbers); /* NULL: failure */
/* Pairwise consistency test: signs and verifies. 1 or 0. */
int igc_rsa_pairwise(EVP_PKEY *pkey);

/* A new key, e = 65537, made by `threads` threads (0: as many as there are processors, at most four).
   Reports its failure. progress may be NULL. */
int igc_rsa_generate(int nlen, int threads, igc_progress *progress, EVP_PKEY **out);

#endif
