/* pfx_write.c - PKCS#12 files (RFC 7292). */
#include "inner.h"

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/pkcs12.h>
#include <string.h>

#define LEGACY_ITERATIONS 2048

static PKCS12 *make(const igc_key *key, X509 *cert, STACK_OF(X509) * cas, const char *password,
                    const char *name, int legacy, int iterations)
{
    int pbe = legacy ? NID_pbe_WithSHA1And3_Key_TripleDES_CBC : NID_aes_256_cbc;
    /* mac_iter -1: no MAC yet; PKCS12_create would choose its digest by itself */
    PKCS12 *p12 =
        PKCS12_create_ex(password, name, key->pkey, cert, cas, pbe, pbe, iterations, -1, 0, NULL, NULL);

    if (p12 && !PKCS12_set_mac(p12, password, -1, NULL, 16, iterations, legacy ? EVP_sha1() : EVP_sha256())) {
        PKCS12_free(p12);
        p12 = NULL;
    }
    return p12;
}

static int write_p12(int fd, const PKCS12 *p12)
{
    unsigned char *der = NULL;
    int len = i2d_PKCS12((PKCS12 *)p12, &der);
    int rc;

    if (len <= 0)
        return igc_fail(IGC_E_INTERNAL, NULL);
    rc = igc_fd_write_all(fd, der, (size_t)len);
    OPENSSL_clear_free(der, (size_t)len);
    return rc;
}

int igc_pfx_write(int fd, const igc_key *key, const uint8_t *cert, size_t cert_len, const uint8_t *cas,
                  size_t cas_len, const uint8_t *password, size_t password_len, const char *name, int legacy,
                  int iterations)
{
    STACK_OF(X509) *others = NULL;
    PKCS12 *p12 = NULL;
    X509 *x = NULL;
    char *secret = NULL;
    const uint8_t *next = cert;
    size_t rest = cert_len;
    int rc = IGC_OK;

    igc_begin();
    if (key == NULL || cert == NULL || (cas == NULL && cas_len) || (password == NULL && password_len) ||
        name == NULL || fd < 0 || password_len > 1024 || iterations < 1000 || iterations > 10000000 ||
        (password_len && memchr(password, 0, password_len)))
        return igc_fail(IGC_E_ARG, NULL);
    if (legacy && iterations > LEGACY_ITERATIONS)
        iterations = LEGACY_ITERATIONS;
    x = igc_list_next(&next, &rest);
    if (x == NULL || rest != 0) {
        rc = igc_fail(IGC_E_PARSE, "this is not a certificate");
        goto out;
    }
    if (X509_check_private_key(x, key->pkey) != 1) {
        rc = igc_fail(IGC_E_MISMATCH, NULL);
        goto out;
    }
    others = igc_list_parse(cas, cas_len, &rc);
    if (others == NULL)
        goto out;
    secret = OPENSSL_zalloc(password_len + 1);
    if (secret == NULL) {
        rc = igc_fail(IGC_E_NOMEM, NULL);
        goto out;
    }
    if (password_len)
        memcpy(secret, password, password_len);
    p12 = make(key, x, others, secret, name, legacy, iterations);
    rc = p12 ? write_p12(fd, p12) : igc_fail(IGC_E_INTERNAL, "the PKCS#12 file could not be made");
out:
    OPENSSL_clear_free(secret, password_len + 1);
    PKCS12_free(p12);
    sk_X509_pop_free(others, X509_free);
    X509_free(x);
    return rc;
}
