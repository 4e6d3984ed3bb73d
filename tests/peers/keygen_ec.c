/* keygen_ec.c - libcrypto called from C as a peer of scripts/bench: a line "ec_prime256v1" or "ecdsa_ed25519" in,
   nanoseconds of COUNT keys out. */
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define COUNT 100

static long long now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static EVP_PKEY *generate(const char *type)
{
    return strcmp(type, "ecdsa_ed25519") == 0 ? EVP_PKEY_Q_keygen(NULL, NULL, "ED25519")
                                              : EVP_PKEY_Q_keygen(NULL, NULL, "EC", type + strlen("ec_"));
}

int main(void)
{
    char type[64];

    while (scanf("%63s", type) == 1) {
        long long start = now();
        int i;
        for (i = 0; i < COUNT; i++) {
            EVP_PKEY *pkey = generate(type);
            if (pkey == NULL)
                return 1;
            EVP_PKEY_free(pkey);
        }
        printf("%lld\n", now() - start);
        fflush(stdout);
    }
    return 0;
}
