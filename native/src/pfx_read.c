/* pfx_read.c - opening PKCS#12 keystores of any origin, within bounds. */
#include "inner.h"

#include <openssl/asn1t.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/objects.h>
#include <openssl/pkcs12.h>
#include <openssl/provider.h>
#include <openssl/x509v3.h>
#include <string.h>

#define MAX_PFX (1u << 20)
#define MAX_ITERATIONS 1000000
#define MAX_BAGS 500
#define MAX_SAFE_DEPTH 4

/* Java marks a trusted certificate by this bag attribute. */
#define JAVA_TRUSTED "2.16.840.1.113894.746875.1.1"

typedef struct {
    const char *password; /* NUL-terminated; NULL: the absent password of some old files */
    int password_len;
    long iterations; /* derivations so far, bounded by MAX_ITERATIONS */
    int bags;
    EVP_PKEY *key;
    int keys;
    ASN1_OCTET_STRING *key_id; /* localKeyID of the key; borrowed from its bag's copy */
    STACK_OF(X509) * certs;
    STACK_OF(X509) * trusted; /* marked as trusted by Java */
    int id_match;             /* a certificate carries the key's localKeyID */
} store_reader;

/* Before a derivation: is it still within the bound, and are its algorithms there? */
static int admit(store_reader *reader, long iterations)
{
    if (iterations <= 0)
        return igc_fail(IGC_E_PARSE, "an encryption algorithm of the keystore has no valid iteration count");
    if (iterations > MAX_ITERATIONS - reader->iterations)
        return igc_fail(IGC_E_LIMIT, "the keystore asks for more than 1000000 iterations");
    reader->iterations += iterations;
    return IGC_OK;
}

static int admit_pbe(store_reader *reader, const X509_ALGOR *alg)
{
    const ASN1_OBJECT *oid;

    X509_ALGOR_get0(&oid, NULL, NULL, alg);
    switch (OBJ_obj2nid(oid)) {
    case NID_pbe_WithSHA1And40BitRC2_CBC:
    case NID_pbe_WithSHA1And128BitRC2_CBC:
    case NID_pbe_WithSHA1And128BitRC4:
    case NID_pbe_WithSHA1And40BitRC4:
        igc_load_legacy();
    }
    return admit(reader, igc_pbe_cost(alg));
}

static int is_java_trusted(const PKCS12_SAFEBAG *bag)
{
    const STACK_OF(X509_ATTRIBUTE) *attrs = PKCS12_SAFEBAG_get0_attrs(bag);
    char dotted[80];
    int i;

    for (i = 0; i < sk_X509_ATTRIBUTE_num(attrs); i++)
        if (OBJ_obj2txt(dotted, sizeof(dotted), X509_ATTRIBUTE_get0_object(sk_X509_ATTRIBUTE_value(attrs, i)),
                        1) > 0 &&
            strcmp(dotted, JAVA_TRUSTED) == 0)
            return 1;
    return 0;
}

static int add_key(store_reader *reader, const PKCS12_SAFEBAG *bag, const PKCS8_PRIV_KEY_INFO *p8)
{
    EVP_PKEY *pkey = EVP_PKCS82PKEY(p8);
    const ASN1_TYPE *id = PKCS12_SAFEBAG_get0_attr(bag, NID_localKeyID);

    if (pkey == NULL)
        return igc_fail(IGC_E_KEYTYPE, "the private key does not load");
    if (reader->key && EVP_PKEY_eq(reader->key, pkey) == 1) {
        EVP_PKEY_free(pkey);
        return IGC_OK;
    }
    EVP_PKEY_free(reader->key);
    reader->key = pkey;
    reader->keys++;
    ASN1_OCTET_STRING_free(reader->key_id);
    reader->key_id =
        id && id->type == V_ASN1_OCTET_STRING ? ASN1_OCTET_STRING_dup(id->value.octet_string) : NULL;
    return IGC_OK;
}

static int add_shrouded(store_reader *reader, const PKCS12_SAFEBAG *bag)
{
    const X509_ALGOR *alg = NULL;
    PKCS8_PRIV_KEY_INFO *p8;
    int rc;

    X509_SIG_get0(PKCS12_SAFEBAG_get0_pkcs8(bag), &alg, NULL);
    rc = admit_pbe(reader, alg);
    if (rc)
        return rc;
    p8 = PKCS12_decrypt_skey(bag, reader->password, reader->password_len);
    if (p8 == NULL) {
        ERR_clear_error();
        return igc_fail(IGC_E_KEYPASSWORD, NULL);
    }
    rc = add_key(reader, bag, p8);
    PKCS8_PRIV_KEY_INFO_free(p8);
    return rc;
}

static int same_octets(const ASN1_OCTET_STRING *a, const ASN1_TYPE *b)
{
    return a && b && b->type == V_ASN1_OCTET_STRING && ASN1_OCTET_STRING_cmp(a, b->value.octet_string) == 0;
}

static int has_cert(STACK_OF(X509) * certs, const X509 *cert)
{
    int i;

    for (i = 0; i < sk_X509_num(certs); i++)
        if (X509_cmp(sk_X509_value(certs, i), cert) == 0)
            return 1;
    return 0;
}

static int add_cert(store_reader *reader, const PKCS12_SAFEBAG *bag)
{
    X509 *cert;
    STACK_OF(X509) * to;

    if (PKCS12_SAFEBAG_get_bag_nid(bag) != NID_x509Certificate)
        return IGC_OK; /* an SDSI certificate: nothing of ours */
    cert = PKCS12_SAFEBAG_get1_cert(bag);
    if (cert == NULL)
        return igc_fail(IGC_E_PARSE, "a certificate of the keystore does not parse");
    if (same_octets(reader->key_id, PKCS12_SAFEBAG_get0_attr(bag, NID_localKeyID)))
        reader->id_match = 1;
    to = is_java_trusted(bag) ? reader->trusted : reader->certs;
    if (has_cert(to, cert)) {
        X509_free(cert);
    } else if (sk_X509_push(to, cert) <= 0) {
        X509_free(cert);
        return igc_fail(IGC_E_NOMEM, NULL);
    }
    return IGC_OK;
}

static int add_bags(store_reader *reader, const STACK_OF(PKCS12_SAFEBAG) * bags, int depth);

static int add_bag(store_reader *reader, const PKCS12_SAFEBAG *bag, int depth)
{
    switch (PKCS12_SAFEBAG_get_nid(bag)) {
    case NID_keyBag:
        return add_key(reader, bag, PKCS12_SAFEBAG_get0_p8inf(bag));
    case NID_pkcs8ShroudedKeyBag:
        return add_shrouded(reader, bag);
    case NID_certBag:
        return add_cert(reader, bag);
    case NID_safeContentsBag:
        return add_bags(reader, PKCS12_SAFEBAG_get0_safes(bag), depth + 1);
    default: /* CRLs and secrets */
        return IGC_OK;
    }
}

static int add_bags(store_reader *reader, const STACK_OF(PKCS12_SAFEBAG) * bags, int depth)
{
    int i, rc = IGC_OK;

    if (depth > MAX_SAFE_DEPTH)
        return igc_fail(IGC_E_LIMIT, "the keystore is nested too deeply");
    for (i = 0; rc == IGC_OK && i < sk_PKCS12_SAFEBAG_num(bags); i++) {
        if (++reader->bags > MAX_BAGS)
            return igc_fail(IGC_E_LIMIT, "the keystore holds more than 500 entries");
        rc = add_bag(reader, sk_PKCS12_SAFEBAG_value(bags, i), depth);
    }
    return rc;
}

static int open_safe(store_reader *reader, PKCS7 *safe)
{
    STACK_OF(PKCS12_SAFEBAG) *bags = NULL;
    int rc = IGC_OK;

    if (safe->d.ptr == NULL) /* the content is OPTIONAL in a ContentInfo */
        return igc_fail(IGC_E_PARSE, "a part of the keystore has no content");
    if (PKCS7_type_is_data(safe)) {
        bags = PKCS12_unpack_p7data(safe);
        if (bags == NULL)
            return igc_fail(IGC_E_PARSE, "a part of the keystore does not parse");
    } else if (PKCS7_type_is_encrypted(safe)) {
        rc = admit_pbe(reader, safe->d.encrypted->enc_data->algorithm);
        if (rc)
            return rc;
        bags = PKCS12_unpack_p7encdata(safe, reader->password, reader->password_len);
        if (bags == NULL)
            return igc_fail(IGC_E_PASSWORD, "a part of the keystore does not decrypt");
    } else {
        return igc_fail(IGC_E_FORMAT, "a part of the keystore is encrypted to a public key");
    }
    rc = add_bags(reader, bags, 0);
    sk_PKCS12_SAFEBAG_pop_free(bags, PKCS12_SAFEBAG_free);
    return rc;
}

static int open_safes(store_reader *reader, const PKCS12 *p12)
{
    STACK_OF(PKCS7) *safes = PKCS12_unpack_authsafes(p12);
    int i, rc = IGC_OK;

    if (safes == NULL)
        return igc_fail(IGC_E_PARSE, "the keystore does not parse");
    for (i = 0; rc == IGC_OK && i < sk_PKCS7_num(safes); i++)
        rc = open_safe(reader, sk_PKCS7_value(safes, i));
    sk_PKCS7_pop_free(safes, PKCS7_free);
    return rc;
}

static void forget(store_reader *reader)
{
    EVP_PKEY_free(reader->key);
    ASN1_OCTET_STRING_free(reader->key_id);
    sk_X509_pop_free(reader->certs, X509_free);
    sk_X509_pop_free(reader->trusted, X509_free);
    reader->key = NULL;
    reader->key_id = NULL;
    reader->certs = reader->trusted = NULL;
}

/* IGC_OK with *matched telling whether the MAC fits. An empty password is tried as absent, too. */
static int try_mac(store_reader *reader, PKCS12 *p12, int *matched)
{
    const ASN1_INTEGER *count = NULL;
    int rc;

    PKCS12_get0_mac(NULL, NULL, NULL, &count, p12);
    rc = admit(reader, count ? ASN1_INTEGER_get(count) : 1);
    if (rc)
        return rc;
    *matched = PKCS12_verify_mac(p12, reader->password, reader->password_len);
    if (!*matched && reader->password_len == 0 && PKCS12_verify_mac(p12, NULL, 0)) {
        reader->password = NULL;
        *matched = 1;
    }
    ERR_clear_error();
    return IGC_OK;
}

static int read_store(store_reader *reader, PKCS12 *p12, int *flags)
{
    int matched = 1, rc = IGC_OK;

    reader->certs = sk_X509_new_null();
    reader->trusted = sk_X509_new_null();
    if (reader->certs == NULL || reader->trusted == NULL)
        return igc_fail(IGC_E_NOMEM, NULL);
    if (PKCS12_mac_present(p12))
        rc = try_mac(reader, p12, &matched);
    else
        *flags |= IGC_PFX_NO_MAC;
    if (rc)
        return rc;
    rc = open_safes(reader, p12);
    if (matched)
        return rc;
    /* The MAC does not fit: with a password that decrypts everything, the file was altered. */
    if (rc == IGC_OK)
        return igc_fail(IGC_E_INTEGRITY, "the file was altered or damaged");
    if (rc == IGC_E_LIMIT)
        return rc;
    igc_begin();
    return igc_fail(IGC_E_PASSWORD, "the MAC does not fit: a wrong password, or a damaged file");
}

/* The certificate of the key out of reader->certs; the caller gets the reference. */
static X509 *take_own_cert(store_reader *reader)
{
    int i;

    for (i = 0; i < sk_X509_num(reader->certs); i++) {
        EVP_PKEY *pub = X509_get0_pubkey(sk_X509_value(reader->certs, i));
        if (pub && EVP_PKEY_eq(pub, reader->key) == 1)
            return sk_X509_delete(reader->certs, i);
    }
    ERR_clear_error();
    return NULL;
}

/* Moves the issuers of `cert`, upwards, from reader->certs to the list. */
static int take_chain(store_reader *reader, X509 *cert, igc_buf *chain)
{
    X509 *below = cert, *last = NULL;
    int i, rc = IGC_OK;

    for (;;) {
        X509 *issuer = NULL;
        if (X509_check_issued(below, below) == X509_V_OK)
            break;
        for (i = 0; issuer == NULL && i < sk_X509_num(reader->certs); i++)
            if (X509_check_issued(sk_X509_value(reader->certs, i), below) == X509_V_OK)
                issuer = sk_X509_delete(reader->certs, i);
        if (issuer == NULL)
            break;
        rc = igc_list_add(chain, issuer);
        X509_free(last);
        below = last = issuer;
        if (rc)
            break;
    }
    X509_free(last);
    ERR_clear_error();
    return rc;
}

static int any_leaf(STACK_OF(X509) * certs)
{
    int i;

    for (i = 0; i < sk_X509_num(certs); i++)
        if (X509_check_ca(sk_X509_value(certs, i)) == 0)
            return 1;
    return 0;
}

static int hand_over_key(store_reader *reader, igc_pfx *out)
{
    X509 *cert = take_own_cert(reader);
    int rc;

    if (cert == NULL)
        return igc_fail(reader->id_match || any_leaf(reader->certs) ? IGC_E_MISMATCH : IGC_E_NOCERT, NULL);
    rc = igc_list_add(&out->cert, cert);
    if (rc == IGC_OK)
        rc = take_chain(reader, cert, &out->chain);
    X509_free(cert);
    if (rc)
        return rc;
    out->key = OPENSSL_zalloc(sizeof(*out->key));
    if (out->key == NULL)
        return igc_fail(IGC_E_NOMEM, NULL);
    out->key->pkey = reader->key;
    reader->key = NULL;
    igc_pkey_type(out->key->pkey, out->key->type);
    return IGC_OK;
}

static int hand_over(store_reader *reader, int want_key, igc_pfx *out)
{
    int i, rc = IGC_OK;

    if (want_key) {
        if (reader->keys == 0)
            return igc_fail(IGC_E_NOKEY, NULL);
        if (reader->keys > 1)
            return igc_fail(IGC_E_MANYKEYS, NULL);
        rc = hand_over_key(reader, out);
    }
    for (i = 0; rc == IGC_OK && i < sk_X509_num(reader->certs); i++)
        rc = igc_list_add(&out->trusted, sk_X509_value(reader->certs, i));
    for (i = 0; rc == IGC_OK && i < sk_X509_num(reader->trusted); i++)
        rc = igc_list_add(&out->trusted, sk_X509_value(reader->trusted, i));
    return rc;
}

static int recognise(const uint8_t *data, size_t len)
{
    static const uint8_t jks[] = {0xfe, 0xed, 0xfe, 0xed}, jceks[] = {0xce, 0xce, 0xce, 0xce};
    size_t i;

    if (len > MAX_PFX)
        return igc_fail(IGC_E_LIMIT, "the keystore is larger than 1 MiB");
    if (len >= 4 && (memcmp(data, jks, 4) == 0 || memcmp(data, jceks, 4) == 0))
        return igc_fail(IGC_E_FORMAT, "this is a Java keystore (JKS), not PKCS#12");
    for (i = 0; len >= 11 && i + 11 <= len && i < 4096; i++)
        if (memcmp(data + i, "-----BEGIN ", 11) == 0 && data[0] != 0x30)
            return igc_fail(IGC_E_FORMAT, "this is a PEM file, not PKCS#12");
    if (len < 2 || data[0] != 0x30)
        return igc_fail(IGC_E_FORMAT, "this is not a PKCS#12 file");
    return IGC_OK;
}

static PKCS12 *parse(const uint8_t *data, size_t len, int *flags, int *code)
{
    const uint8_t *at = data;
    PKCS12 *p12 = NULL;
    size_t used = 0;
    int rc = igc_ber_scan(data, len, 32, 100000, &used);

    if (rc == IGC_OK)
        p12 = d2i_PKCS12(NULL, &at, (long)used);
    if (p12 == NULL)
        *code = igc_fail(rc ? rc : IGC_E_FORMAT, rc ? "the file is not complete, or it is not PKCS#12"
                                                    : "this is not a PKCS#12 file");
    else if (used != len)
        *flags |= IGC_PFX_TRAILING;
    return p12;
}

int igc_pfx_read(const uint8_t *data, size_t len, const uint8_t *password, size_t password_len, int want_key,
                 igc_pfx *out)
{
    store_reader reader;
    PKCS12 *p12;
    char *secret;
    int rc;

    igc_begin();
    if ((data == NULL && len) || (password == NULL && password_len) || out == NULL || password_len > 1024)
        return igc_fail(IGC_E_ARG, NULL);
    memset(out, 0, sizeof(*out));
    memset(&reader, 0, sizeof(reader));
    if (password_len && memchr(password, 0, password_len))
        return igc_fail(IGC_E_PASSWORD, "the password holds a NUL");
    rc = recognise(data, len);
    if (rc)
        return rc;
    p12 = parse(data, len, &out->flags, &rc);
    if (p12 == NULL)
        return rc;
    secret = OPENSSL_zalloc(password_len + 1);
    if (secret && password_len)
        memcpy(secret, password, password_len);
    reader.password = secret;
    reader.password_len = (int)password_len;
    rc = secret ? read_store(&reader, p12, &out->flags) : igc_fail(IGC_E_NOMEM, NULL);
    if (rc == IGC_OK)
        rc = hand_over(&reader, want_key, out);
    if (rc)
        igc_pfx_clear(out);
    forget(&reader);
    OPENSSL_clear_free(secret, password_len + 1);
    PKCS12_free(p12);
    return rc;
}

void igc_pfx_clear(igc_pfx *pfx)
{
    if (pfx == NULL)
        return;
    igc_key_free(pfx->key);
    igc_buf_free(&pfx->cert);
    igc_buf_free(&pfx->chain);
    igc_buf_free(&pfx->trusted);
    memset(pfx, 0, sizeof(*pfx));
}
