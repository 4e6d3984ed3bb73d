/* secret.c - a password, and what is encrypted under it (PBES2, RFC 8018 6.2).

   The derivation is what costs: it is done once, and all that is written under one password at one time
   shares it. For whoever guesses passwords nothing changes, they are tried against one of the files anyway;
   AES-CBC asks for an IV of its own for each message under one key, and each has it. */
#include "inner.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <string.h>

#define SALT_LEN 16
#define KEY_LEN 32 /* AES-256 */

struct igc_secret {
    size_t len;
    int iterations;
    uint8_t salt[SALT_LEN], key[KEY_LEN];
    char password[IGC_MAX_PASSWORD + 1]; /* ends with NUL, as libcrypto wants it */
};

int igc_secret_new(const uint8_t *password, size_t len, int iterations, igc_secret **out)
{
    igc_secret *made;

    igc_begin();
    if (out == NULL || (password == NULL && len) || len > IGC_MAX_PASSWORD || iterations < 1000 ||
        iterations > IGC_MAX_KEY_ITERATIONS)
        return igc_fail(IGC_E_ARG, NULL);
    *out = NULL;
    made = OPENSSL_zalloc(sizeof(*made));
    if (made == NULL)
        return igc_fail(IGC_E_NOMEM, NULL);
    made->len = len;
    made->iterations = iterations;
    if (len)
        memcpy(made->password, password, len);
    if (RAND_bytes(made->salt, SALT_LEN) != 1 ||
        !PKCS5_PBKDF2_HMAC(made->password, (int)len, made->salt, SALT_LEN, iterations, EVP_sha256(), KEY_LEN,
                           made->key)) {
        igc_secret_free(made);
        return igc_fail(IGC_E_INTERNAL, NULL);
    }
    *out = made;
    return IGC_OK;
}

void igc_secret_free(igc_secret *secret)
{
    OPENSSL_clear_free(secret, sizeof(*secret));
}

const char *igc_secret_text(const igc_secret *secret)
{
    return secret->password;
}

size_t igc_secret_len(const igc_secret *secret)
{
    return secret->len;
}

int igc_secret_iterations(const igc_secret *secret)
{
    return secret->iterations;
}

/* AES-256-CBC with PKCS#7 padding; the length of the result, 0 on failure. `sealed` has room for a block
 * more. */
static int encrypt(const uint8_t *key, const uint8_t *iv, const uint8_t *der, int len, uint8_t *sealed)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int most = 0, last = 0;
    int ok = ctx && EVP_EncryptInit_ex(ctx, EVP_aes_256_cbc(), NULL, key, iv) &&
             EVP_EncryptUpdate(ctx, sealed, &most, der, len) &&
             EVP_EncryptFinal_ex(ctx, sealed + most, &last);

    EVP_CIPHER_CTX_free(ctx);
    return ok ? most + last : 0;
}

int igc_secret_seal(const igc_secret *secret, const uint8_t *der, int len, X509_ALGOR **alg,
                    ASN1_OCTET_STRING **sealed)
{
    uint8_t iv[EVP_MAX_IV_LENGTH];
    uint8_t *text = OPENSSL_malloc((size_t)len + EVP_MAX_BLOCK_LENGTH);
    int size = 0;

    *alg = NULL;
    *sealed = ASN1_OCTET_STRING_new();
    if (text && *sealed && RAND_bytes(iv, sizeof(iv)) == 1) {
        *alg = PKCS5_pbe2_set_iv(EVP_aes_256_cbc(), secret->iterations, (unsigned char *)secret->salt,
                                 SALT_LEN, iv, NID_hmacWithSHA256);
        size = *alg ? encrypt(secret->key, iv, der, len, text) : 0;
    }
    if (size == 0 || !ASN1_OCTET_STRING_set(*sealed, text, size)) {
        X509_ALGOR_free(*alg);
        ASN1_OCTET_STRING_free(*sealed);
        *alg = NULL;
        *sealed = NULL;
    }
    OPENSSL_free(text);
    return *alg != NULL;
}

X509_SIG *igc_secret_seal_key(const igc_secret *secret, const PKCS8_PRIV_KEY_INFO *p8)
{
    X509_SIG *made = X509_SIG_new();
    X509_ALGOR *alg = NULL, *place = NULL;
    ASN1_OCTET_STRING *sealed = NULL, *content = NULL;
    unsigned char *der = NULL;
    int len = i2d_PKCS8_PRIV_KEY_INFO(p8, &der);
    int ok = 0;

    if (made && len > 0 && igc_secret_seal(secret, der, len, &alg, &sealed)) {
        X509_SIG_getm(made, &place, &content);
        ok = X509_ALGOR_copy(place, alg) && ASN1_STRING_copy(content, sealed);
    }
    OPENSSL_clear_free(der, len > 0 ? (size_t)len : 0);
    X509_ALGOR_free(alg);
    ASN1_OCTET_STRING_free(sealed);
    if (ok)
        return made;
    X509_SIG_free(made);
    return NULL;
}
