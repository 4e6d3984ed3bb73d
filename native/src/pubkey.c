/* pubkey.c - public keys: naming, sanity, signatures. */
#include "inner.h"

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/objects.h>
#include <openssl/rsa.h>
#include <stdio.h>
#include <string.h>

#define MAX_RSA_BITS 16384

void igc_pkey_type(const EVP_PKEY *pkey, char *type)
{
    char curve[48] = "";
    size_t len = 0;

    if (EVP_PKEY_is_a(pkey, "RSA"))
        snprintf(type, 64, "rsa_%d", EVP_PKEY_get_bits(pkey));
    else if (EVP_PKEY_is_a(pkey, "RSA-PSS"))
        snprintf(type, 64, "rsapss_%d", EVP_PKEY_get_bits(pkey));
    else if (EVP_PKEY_is_a(pkey, "DSA"))
        snprintf(type, 64, "dsa_%d", EVP_PKEY_get_bits(pkey));
    else if (EVP_PKEY_is_a(pkey, "ED25519"))
        snprintf(type, 64, "ecdsa_ed25519");
    else if (EVP_PKEY_is_a(pkey, "ED448"))
        snprintf(type, 64, "ed448");
    else if (EVP_PKEY_is_a(pkey, "EC") &&
             EVP_PKEY_get_utf8_string_param(pkey, OSSL_PKEY_PARAM_GROUP_NAME, curve, sizeof(curve), &len))
        snprintf(type, 64, "ec_%s", curve);
    else
        snprintf(type, 64, "unknown");
}

static int rsa_sane(const EVP_PKEY *pkey)
{
    BIGNUM *n = NULL, *e = NULL;
    int ok = EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_N, &n) &&
             EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_E, &e) && BN_num_bits(n) >= 512 &&
             BN_num_bits(n) <= MAX_RSA_BITS && BN_is_odd(n) && BN_is_odd(e) && !BN_is_one(e) &&
             BN_ucmp(e, n) < 0;

    BN_free(n);
    BN_free(e);
    return ok ? IGC_OK : igc_fail(IGC_E_BADKEY, "the RSA modulus or exponent is not acceptable");
}

/* Where the cofactor is 1, as on every curve that we make keys on, each point of the curve but infinity has
   the right order: multiplying it by the order, which costs more than all else here, would say nothing new.
 */
static int right_point(EVP_PKEY *pkey)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
    BIGNUM *cofactor = NULL;
    int prime = EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_EC_COFACTOR, &cofactor) && BN_is_one(cofactor);
    int ok = ctx && (prime ? EVP_PKEY_public_check_quick(ctx) : EVP_PKEY_public_check(ctx)) == 1;

    BN_free(cofactor);
    EVP_PKEY_CTX_free(ctx);
    return ok;
}

static int ec_sane(const EVP_PKEY *pkey)
{
    char encoding[32] = "";
    size_t len = 0;

    if (!EVP_PKEY_get_utf8_string_param(pkey, OSSL_PKEY_PARAM_EC_ENCODING, encoding, sizeof(encoding),
                                        &len) ||
        strcmp(encoding, OSSL_PKEY_EC_ENCODING_GROUP) != 0)
        return igc_fail(IGC_E_KEYTYPE, "the curve is given by explicit parameters, not by name");
    /* on the curve, not infinity, right order */
    return right_point((EVP_PKEY *)pkey)
               ? IGC_OK
               : igc_fail(IGC_E_BADKEY, "the point is not a public key of its curve");
}

int igc_pkey_sane(const EVP_PKEY *pkey)
{
    if (EVP_PKEY_is_a(pkey, "RSA") || EVP_PKEY_is_a(pkey, "RSA-PSS"))
        return rsa_sane(pkey);
    if (EVP_PKEY_is_a(pkey, "EC"))
        return ec_sane(pkey);
    if (EVP_PKEY_is_a(pkey, "ED25519") || EVP_PKEY_is_a(pkey, "ED448"))
        return IGC_OK;
    return igc_fail(IGC_E_KEYTYPE, NULL);
}

/* A whole SubjectPublicKeyInfo without trailing bytes. A modulus beyond reason is stopped by its
   length, before libcrypto makes a number of it. */
static EVP_PKEY *parse_spki(const uint8_t *spki, size_t len, int *code)
{
    const uint8_t *at = spki;
    X509_PUBKEY *holder = NULL;
    EVP_PKEY *pkey;

    *code = IGC_OK;
    if (len > MAX_RSA_BITS / 8 + 256) {
        *code = igc_fail(IGC_E_BADKEY, "the public key is larger than allowed");
        return NULL;
    }
    holder = d2i_X509_PUBKEY(NULL, &at, (long)len);
    if (holder == NULL || at != spki + len) {
        X509_PUBKEY_free(holder);
        *code = igc_fail(IGC_E_PARSE, "this is not a public key");
        return NULL;
    }
    pkey = X509_PUBKEY_get(holder);
    X509_PUBKEY_free(holder);
    if (pkey == NULL) {
        unsigned long err = ERR_peek_error();
        int reason = ERR_GET_REASON(err), lib = ERR_GET_LIB(err);
        *code = igc_fail(lib == ERR_LIB_EC || lib == ERR_LIB_RSA || reason == ERR_R_EC_LIB ? IGC_E_BADKEY
                                                                                           : IGC_E_KEYTYPE,
                         NULL);
    }
    return pkey;
}

int igc_spki_type(const uint8_t *spki, size_t len, char *type)
{
    EVP_PKEY *pkey;
    int rc;

    igc_begin();
    if ((spki == NULL && len) || type == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    type[0] = '\0';
    pkey = parse_spki(spki, len, &rc);
    if (pkey == NULL)
        return rc;
    igc_pkey_type(pkey, type);
    /* Key types outside ours have a name and no further check. */
    if (strncmp(type, "dsa_", 4) != 0 && strcmp(type, "unknown") != 0)
        rc = igc_pkey_sane(pkey);
    else if (strcmp(type, "unknown") == 0)
        rc = igc_fail(IGC_E_KEYTYPE, NULL);
    EVP_PKEY_free(pkey);
    return rc;
}

static int acceptable_hash(int nid)
{
    return nid == NID_sha1 || nid == NID_sha224 || nid == NID_sha256 || nid == NID_sha384 ||
           nid == NID_sha512;
}

/* Digest of a signature algorithm that fits the key, or an error. *md NULL for EdDSA. */
static int signature_hash(const X509_ALGOR *alg, const EVP_PKEY *pkey, const EVP_MD **md)
{
    const ASN1_OBJECT *oid;
    int md_nid = NID_undef, key_nid = NID_undef, ptype;

    *md = NULL;
    X509_ALGOR_get0(&oid, &ptype, NULL, alg);
    if (!OBJ_find_sigid_algs(OBJ_obj2nid(oid), &md_nid, &key_nid))
        return igc_fail(IGC_E_SIGNATURE, "the signature algorithm is not known");
    if (key_nid != EVP_PKEY_get_base_id(pkey))
        return igc_fail(IGC_E_SIGNATURE, "the signature algorithm does not fit the key");
    if (key_nid == EVP_PKEY_ED25519 || key_nid == EVP_PKEY_ED448)
        return IGC_OK;
    if (!acceptable_hash(md_nid))
        return igc_fail(IGC_E_SIGNATURE, "the signature uses a hash that is not acceptable");
    *md = EVP_get_digestbynid(md_nid);
    return IGC_OK;
}

static int is_pss(const X509_ALGOR *alg)
{
    const ASN1_OBJECT *oid;

    X509_ALGOR_get0(&oid, NULL, NULL, alg);
    return OBJ_obj2nid(oid) == NID_rsassaPss;
}

/* Hash and mask hash of RSASSA-PSS parameters; SHA-1 is the default of both. */
static int pss_hashes_acceptable(const X509_ALGOR *alg)
{
    RSA_PSS_PARAMS *params = ASN1_TYPE_unpack_sequence(ASN1_ITEM_rptr(RSA_PSS_PARAMS), alg->parameter);
    X509_ALGOR *mask = NULL;
    int ok = params != NULL;

    if (ok && params->hashAlgorithm)
        ok = acceptable_hash(OBJ_obj2nid(params->hashAlgorithm->algorithm));
    if (ok && params->maskGenAlgorithm) {
        mask = ASN1_TYPE_unpack_sequence(ASN1_ITEM_rptr(X509_ALGOR), params->maskGenAlgorithm->parameter);
        ok = mask && acceptable_hash(OBJ_obj2nid(mask->algorithm));
    }
    X509_ALGOR_free(mask);
    RSA_PSS_PARAMS_free(params);
    return ok;
}

/* RSASSA-PSS (RFC 4055): hash, mask and salt length come from the parameters. ASN1_item_verify_ctx
   reads them; it wants an encoded item, so the bytes are handed over as a pre-encoded type. */
static int verify_pss(X509_ALGOR *alg, EVP_PKEY *pkey, const uint8_t *tbs, size_t tbs_len, const uint8_t *sig,
                      size_t sig_len)
{
    ASN1_BIT_STRING *bits = ASN1_BIT_STRING_new();
    ASN1_TYPE *item = NULL;
    const uint8_t *at = tbs;
    int ok = 0;

    item = d2i_ASN1_TYPE(NULL, &at, (long)tbs_len);
    if (bits && item && at == tbs + tbs_len &&
        ASN1_BIT_STRING_set(bits, (unsigned char *)sig, (int)sig_len)) {
        bits->flags &= ~(ASN1_STRING_FLAG_BITS_LEFT | 0x07);
        bits->flags |= ASN1_STRING_FLAG_BITS_LEFT;
        ok = ASN1_item_verify(ASN1_ITEM_rptr(ASN1_ANY), alg, bits, item, pkey) == 1;
    }
    ASN1_TYPE_free(item);
    ASN1_BIT_STRING_free(bits);
    return ok;
}

int igc_spki_verify(const uint8_t *spki, size_t spki_len, const uint8_t *alg, size_t alg_len,
                    const uint8_t *tbs, size_t tbs_len, const uint8_t *sig, size_t sig_len)
{
    const uint8_t *at = alg;
    const EVP_MD *md = NULL;
    X509_ALGOR *algorithm = NULL;
    EVP_MD_CTX *ctx = NULL;
    EVP_PKEY *pkey;
    int rc, ok;

    igc_begin();
    if ((spki == NULL && spki_len) || (alg == NULL && alg_len) || (tbs == NULL && tbs_len) ||
        (sig == NULL && sig_len) || tbs_len > (64u << 20) || sig_len > (64u << 10) || alg_len > 4096)
        return igc_fail(IGC_E_ARG, NULL);
    pkey = parse_spki(spki, spki_len, &rc);
    if (pkey == NULL)
        return rc;
    rc = igc_pkey_sane(pkey);
    if (rc)
        goto out;
    algorithm = d2i_X509_ALGOR(NULL, &at, (long)alg_len);
    if (algorithm == NULL || at != alg + alg_len) {
        rc = igc_fail(IGC_E_PARSE, "this is not a signature algorithm");
        goto out;
    }
    if (is_pss(algorithm) && EVP_PKEY_is_a(pkey, "RSA")) {
        if (!pss_hashes_acceptable(algorithm)) {
            rc = igc_fail(IGC_E_SIGNATURE, "the signature uses a hash that is not acceptable");
            goto out;
        }
        ok = verify_pss(algorithm, pkey, tbs, tbs_len, sig, sig_len);
    } else {
        rc = signature_hash(algorithm, pkey, &md);
        if (rc)
            goto out;
        ctx = EVP_MD_CTX_new();
        ok = ctx && EVP_DigestVerifyInit(ctx, NULL, md, NULL, pkey) == 1 &&
             EVP_DigestVerify(ctx, sig, sig_len, tbs, tbs_len) == 1;
    }
    rc = ok ? IGC_OK : igc_fail(IGC_E_SIGNATURE, NULL);
out:
    EVP_MD_CTX_free(ctx);
    X509_ALGOR_free(algorithm);
    EVP_PKEY_free(pkey);
    return rc;
}
