/* probe_rsa.c - the primality test and the key generator behind one line per question, for the Python tests.
   Numbers are hexadecimal; answers are one line each.

     prime W              probable prime? 1 or 0, by as many rounds as an auxiliary prime gets
     base W B             is B no witness against W? 1 or 0
     derive NLEN E X X1 X2  the prime of B.9 from these random numbers, or "none"
     fill E P Q           N D DP DQ QI
     consistent N E D P Q DP DQ QI   1 or 0
     seeds NLEN           fresh random numbers X X1 X2 of a prime */
#define _GNU_SOURCE
#include "../src/prime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS 9

static BN_CTX *ctx;
static BIGNUM *numbers[WORDS];

static void print(const BIGNUM *number, const char *after)
{
    char *text = BN_bn2hex(number);

    printf("%s%s", text, after);
    OPENSSL_free(text);
}

static igc_prime_search new_search(int nlen, igc_primes *primes)
{
    igc_prime_search search = {igc_rsa_size_of(nlen), primes, 0, ctx, NULL, NULL, 0};

    if (search.size == NULL || !igc_primes_make(search.size->sieve, primes))
        exit(2);
    return search;
}

static void derive(int nlen)
{
    BIGNUM *r1 = BN_new(), *r2 = BN_new(), *prime = BN_new();
    igc_primes primes;
    igc_prime_search search = new_search(nlen, &primes);

    search.e = BN_get_word(numbers[1]);
    if (igc_prime_auxiliary(&search, numbers[3], r1) == IGC_PRIME_FOUND &&
        igc_prime_auxiliary(&search, numbers[4], r2) == IGC_PRIME_FOUND &&
        igc_prime_derive(&search, r1, r2, numbers[2], prime) == IGC_PRIME_FOUND)
        print(prime, "\n");
    else
        printf("none\n");
    igc_primes_free(&primes);
    BN_free(r1);
    BN_free(r2);
    BN_free(prime);
}

static void fill(void)
{
    BIGNUM *key[IGC_NUMBERS];

    if (!igc_numbers_new(key) || !BN_copy(key[IGC_P], numbers[1]) || !BN_copy(key[IGC_Q], numbers[2]))
        exit(2);
    printf("%d ", igc_numbers_fill(key, BN_get_word(numbers[0]), ctx));
    print(key[IGC_N], " ");
    print(key[IGC_D], " ");
    print(key[IGC_DP], " ");
    print(key[IGC_DQ], " ");
    print(key[IGC_QI], "\n");
    igc_numbers_free(key);
}

static void seeds(int nlen)
{
    igc_seeds drawn;

    if (!igc_seeds_new(&drawn) || !igc_seeds_draw(igc_rsa_size_of(nlen), &drawn, ctx))
        exit(2);
    print(drawn.x, " ");
    print(drawn.x1, " ");
    print(drawn.x2, "\n");
    igc_seeds_free(&drawn);
}

static void answer(const char *question, int nlen)
{
    if (strcmp(question, "prime") == 0)
        printf("%d\n", igc_miller_rabin(numbers[0], 46, ctx));
    else if (strcmp(question, "base") == 0)
        printf("%d\n", igc_miller_rabin_base(numbers[0], numbers[1], ctx));
    else if (strcmp(question, "derive") == 0)
        derive(nlen);
    else if (strcmp(question, "fill") == 0)
        fill();
    else if (strcmp(question, "consistent") == 0)
        printf("%d\n", igc_numbers_consistent(numbers, ctx));
    else if (strcmp(question, "seeds") == 0)
        seeds(nlen);
    else
        exit(2);
}

int main(void)
{
    char *line = NULL, *word, *rest;
    size_t room = 0;
    int i;

    ctx = BN_CTX_new();
    while (getline(&line, &room, stdin) > 0) {
        const char *question = strtok_r(line, " \n", &rest);
        int nlen = 0;
        for (i = 0; question && i < WORDS && (word = strtok_r(NULL, " \n", &rest)) != NULL; i++) {
            if (i == 0)
                nlen = atoi(word);
            if (!BN_hex2bn(&numbers[i], word))
                return 2;
        }
        if (question)
            answer(question, nlen);
        fflush(stdout);
    }
    for (i = 0; i < WORDS; i++)
        BN_free(numbers[i]);
    BN_CTX_free(ctx);
    free(line);
    return 0;
}
