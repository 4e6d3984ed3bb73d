/* pfx_write.c - PKCS#12 files (RFC 7292). */
#include "inner.h"

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/pkcs12.h>
#include <string.h>

#define LEGACY_ITERATIONS 2048

static int named(PKCS12_SAFEBAG *bag, const char *name, uint8_t *id, unsigned int len)
{
    return bag && (!*name || PKCS12_add_friendlyname_utf8(bag, name, -1)) &&
           PKCS12_add_localkeyid(bag, id, (int)len);
}

/* An EncryptedData (RFC 7292 4.1) with the bags. */
static PKCS7 *sealed_safe(const igc_secret *secret, STACK_OF(PKCS12_SAFEBAG) * bags)
{
    PKCS7 *made = PKCS7_new();
    unsigned char *der = NULL;
    int len = ASN1_item_i2d((ASN1_VALUE *)bags, &der, ASN1_ITEM_rptr(PKCS12_SAFEBAGS));
    X509_ALGOR *alg = NULL;
    ASN1_OCTET_STRING *sealed = NULL;
    int ok = made && len > 0 && PKCS7_set_type(made, NID_pkcs7_encrypted) &&
             igc_secret_seal(secret, der, len, &alg, &sealed);

    if (ok) {
        PKCS7_ENC_CONTENT *content = made->d.encrypted->enc_data;
        X509_ALGOR_free(content->algorithm);
        ASN1_OCTET_STRING_free(content->enc_data);
        content->algorithm = alg;
        content->enc_data = sealed;
        content->content_type = OBJ_nid2obj(NID_pkcs7_data);
    } else {
        PKCS7_free(made);
        made = NULL;
    }
    OPENSSL_free(der);
    return made;
}

/* The safe with the certificates, the first with name and id of the key. */
static PKCS7 *safe_of_certs(const igc_secret *secret, X509 *cert, STACK_OF(X509) * cas, const char *name,
                            uint8_t *id, unsigned int id_len)
{
    STACK_OF(PKCS12_SAFEBAG) *bags = NULL;
    PKCS7 *safe = NULL;
    int ok = named(PKCS12_add_cert(&bags, cert), name, id, id_len), i;

    for (i = 0; ok && i < sk_X509_num(cas); i++)
        ok = PKCS12_add_cert(&bags, sk_X509_value(cas, i)) != NULL;
    if (ok)
        safe = sealed_safe(secret, bags);
    sk_PKCS12_SAFEBAG_pop_free(bags, PKCS12_SAFEBAG_free);
    return safe;
}

/* The safe with the key, which is encrypted by itself. */
static PKCS7 *safe_of_key(const igc_secret *secret, const igc_key *key, const char *name, uint8_t *id,
                          unsigned int id_len)
{
    STACK_OF(PKCS12_SAFEBAG) *bags = sk_PKCS12_SAFEBAG_new_null();
    PKCS8_PRIV_KEY_INFO *p8 = EVP_PKEY2PKCS8(key->pkey);
    X509_SIG *sig = p8 ? igc_secret_seal_key(secret, p8) : NULL;
    PKCS12_SAFEBAG *bag = sig ? PKCS12_SAFEBAG_create0_pkcs8(sig) : NULL;
    PKCS7 *safe = NULL;

    if (bag == NULL)
        X509_SIG_free(sig);
    if (bags && named(bag, name, id, id_len) && sk_PKCS12_SAFEBAG_push(bags, bag)) {
        bag = NULL;
        safe = PKCS12_pack_p7data(bags);
    }
    PKCS12_SAFEBAG_free(bag);
    sk_PKCS12_SAFEBAG_pop_free(bags, PKCS12_SAFEBAG_free);
    PKCS8_PRIV_KEY_INFO_free(p8);
    return safe;
}

/* What PKCS12_create() makes, which would derive a key for each safe and each bag. */
static PKCS12 *make(const igc_key *key, X509 *cert, STACK_OF(X509) * cas, const igc_secret *secret,
                    const char *name)
{
    STACK_OF(PKCS7) *safes = sk_PKCS7_new_reserve(NULL, 2);
    uint8_t id[EVP_MAX_MD_SIZE];
    unsigned int id_len;
    PKCS12 *p12 = NULL;

    if (safes && X509_digest(cert, EVP_sha1(), id, &id_len)) {
        PKCS7 *certs = safe_of_certs(secret, cert, cas, name, id, id_len);
        PKCS7 *keys = certs ? safe_of_key(secret, key, name, id, id_len) : NULL;
        if (keys) {
            sk_PKCS7_push(safes, certs); /* there is room for them */
            sk_PKCS7_push(safes, keys);
            p12 = PKCS12_add_safes(safes, 0);
        } else {
            PKCS7_free(certs);
        }
    }
    sk_PKCS7_pop_free(safes, PKCS7_free);
    return p12;
}

/* mac_iter -1: no MAC yet */
static PKCS12 *make_legacy(const igc_key *key, X509 *cert, STACK_OF(X509) * cas, const igc_secret *secret,
                           const char *name, int iterations)
{
    int pbe = NID_pbe_WithSHA1And3_Key_TripleDES_CBC;

    return PKCS12_create_ex(igc_secret_text(secret), name, key->pkey, cert, cas, pbe, pbe, iterations, -1, 0,
                            NULL, NULL);
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
                  size_t cas_len, const igc_secret *secret, const char *name, int legacy)
{
    STACK_OF(X509) *others = NULL;
    PKCS12 *p12 = NULL;
    X509 *x = NULL;
    const uint8_t *next = cert;
    size_t rest = cert_len;
    int iterations, rc = IGC_OK;

    igc_begin();
    if (key == NULL || cert == NULL || (cas == NULL && cas_len) || secret == NULL || name == NULL || fd < 0 ||
        strlen(igc_secret_text(secret)) != igc_secret_len(secret))
        return igc_fail(IGC_E_ARG, NULL);
    iterations = igc_secret_iterations(secret);
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
    p12 = legacy ? make_legacy(key, x, others, secret, name, iterations) : make(key, x, others, secret, name);
    rc = p12 && PKCS12_set_mac(p12, igc_secret_text(secret), -1, NULL, 16, iterations,
                               legacy ? EVP_sha1() : EVP_sha256())
             ? write_p12(fd, p12)
             : igc_fail(IGC_E_INTERNAL, "the PKCS#12 file could not be made");
out:
    PKCS12_free(p12);
    sk_X509_pop_free(others, X509_free);
    X509_free(x);
    return rc;
}
