/* cms_envelope.c - EnvelopedData (RFC 5652 6): written from primitives, so that the caller composes DER. */
#include "cms.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/objects.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <string.h>

/* The ciphers that are opened; `weak` ones only where the caller allows it. `write`: ours, too. */
static const struct {
    const char *name;
    int nid, weak, write;
} ciphers[] = {
    {"aes-128-cbc", NID_aes_128_cbc, 0, 1}, {"aes-192-cbc", NID_aes_192_cbc, 0, 1},
    {"aes-256-cbc", NID_aes_256_cbc, 0, 1}, {"des-ede3-cbc", NID_des_ede3_cbc, 1, 1},
    {"des-cbc", NID_des_cbc, 1, 0},
};
#define CIPHERS (sizeof(ciphers) / sizeof(ciphers[0]))

/* The content-encryption key wrapped for the certificate's RSA key. */
static int wrap(X509 *cert, const uint8_t *cek, size_t cek_len, igc_buf *wrapped)
{
    EVP_PKEY *pkey = X509_get0_pubkey(cert);
    EVP_PKEY_CTX *ctx = NULL;
    uint8_t *data = NULL;
    size_t len = 0;
    int rc;

    if (pkey == NULL || !EVP_PKEY_is_a(pkey, "RSA"))
        return igc_fail(IGC_E_KEYTYPE, "the recipient's key is not RSA");
    rc = igc_pkey_sane(pkey);
    if (rc)
        return rc;
    ctx = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
    if (ctx == NULL || EVP_PKEY_encrypt_init(ctx) != 1 ||
        EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PADDING) != 1 ||
        EVP_PKEY_encrypt(ctx, NULL, &len, cek, cek_len) != 1 || (data = OPENSSL_malloc(len)) == NULL ||
        EVP_PKEY_encrypt(ctx, data, &len, cek, cek_len) != 1)
        rc = igc_fail(IGC_E_INTERNAL, "nothing can be encrypted for the recipient's key");
    else
        rc = igc_buf_set(wrapped, data, len);
    OPENSSL_free(data);
    EVP_PKEY_CTX_free(ctx);
    return rc;
}

static int encrypt(const EVP_CIPHER *cipher, const uint8_t *cek, const uint8_t *iv, const uint8_t *content,
                   size_t len, igc_buf *sealed)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint8_t *data = OPENSSL_malloc(len + EVP_MAX_BLOCK_LENGTH);
    int first = 0, last = 0, rc;

    if (ctx == NULL || data == NULL || EVP_EncryptInit_ex(ctx, cipher, NULL, cek, iv) != 1 ||
        EVP_EncryptUpdate(ctx, data, &first, content, (int)len) != 1 ||
        EVP_EncryptFinal_ex(ctx, data + first, &last) != 1)
        rc = igc_fail(IGC_E_INTERNAL, NULL);
    else
        rc = igc_buf_set(sealed, data, (size_t)first + (size_t)last);
    OPENSSL_free(data);
    EVP_CIPHER_CTX_free(ctx);
    return rc;
}

int igc_envelope_make(const igc_certs *to, const char *cipher, const uint8_t *content, size_t content_len,
                      igc_buf *wrapped, igc_buf *iv, igc_buf *sealed)
{
    uint8_t cek[EVP_MAX_KEY_LENGTH], vector[EVP_MAX_IV_LENGTH];
    const EVP_CIPHER *chosen = NULL;
    size_t i;
    int rc;

    igc_begin();
    if (to == NULL || sk_X509_num(to->list) < 1 || cipher == NULL || (content == NULL && content_len) ||
        wrapped == NULL || iv == NULL || sealed == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    *wrapped = *iv = *sealed = (igc_buf){NULL, 0};
    if (content_len > IGC_MAX_MESSAGE)
        return igc_fail(IGC_E_LIMIT, "the content is larger than 1 MiB");
    for (i = 0; i < CIPHERS && chosen == NULL; i++)
        if (ciphers[i].write && strcmp(cipher, ciphers[i].name) == 0)
            chosen = EVP_get_cipherbynid(ciphers[i].nid);
    if (chosen == NULL)
        return igc_fail(IGC_E_ARG, "this cipher is not offered");
    if (RAND_priv_bytes(cek, EVP_CIPHER_get_key_length(chosen)) != 1 ||
        RAND_bytes(vector, EVP_CIPHER_get_iv_length(chosen)) != 1) {
        rc = igc_fail(IGC_E_INTERNAL, NULL);
        goto out;
    }
    rc = wrap(sk_X509_value(to->list, 0), cek, (size_t)EVP_CIPHER_get_key_length(chosen), wrapped);
    if (rc == IGC_OK)
        rc = encrypt(chosen, cek, vector, content, content_len, sealed);
    if (rc == IGC_OK)
        rc = igc_buf_set(iv, vector, (size_t)EVP_CIPHER_get_iv_length(chosen));
    if (rc) {
        igc_buf_free(wrapped);
        igc_buf_free(sealed);
    }
out:
    OPENSSL_cleanse(cek, sizeof(cek));
    return rc;
}

/* The cipher of a parsed EnvelopedData, which libcrypto keeps to itself: read from its encoding, which i2d
   makes DER. NID_undef when it cannot be told. */
static int cipher_nid(CMS_ContentInfo *cms)
{
    uint8_t *der = NULL;
    int len = i2d_CMS_ContentInfo(cms, &der), nid = NID_undef;
    const uint8_t *at = der, *end = der + (len > 0 ? len : 0);
    ASN1_OBJECT *oid = NULL;

    if (len > 0) {
        at = igc_der_step(at, &end, 0x30, 1); /* ContentInfo */
        at = igc_der_step(at, &end, 0x06, 0); /* contentType */
        at = igc_der_step(at, &end, 0xa0, 1); /* content [0] */
        at = igc_der_step(at, &end, 0x30, 1); /* EnvelopedData */
        at = igc_der_step(at, &end, 0x02, 0); /* version */
        if (at && at < end && *at == 0xa0)    /* originatorInfo [0] */
            at = igc_der_step(at, &end, 0xa0, 0);
        at = igc_der_step(at, &end, 0x31, 0); /* recipientInfos */
        at = igc_der_step(at, &end, 0x30, 1); /* EncryptedContentInfo */
        at = igc_der_step(at, &end, 0x06, 0); /* contentType */
        at = igc_der_step(at, &end, 0x30, 1); /* contentEncryptionAlgorithm */
        if (at && at < end)
            oid = d2i_ASN1_OBJECT(NULL, &at, end - at);
        if (oid)
            nid = OBJ_obj2nid(oid);
    }
    ASN1_OBJECT_free(oid);
    OPENSSL_free(der);
    return nid;
}

static int open_envelope(CMS_ContentInfo *cms, const igc_key *key, X509 *cert, igc_buf *content)
{
    STACK_OF(CMS_RecipientInfo) *recipients = CMS_get0_RecipientInfos(cms);
    BIO *out = NULL;
    int i, mine = 0, rc;

    for (i = 0; i < sk_CMS_RecipientInfo_num(recipients) && i < IGC_MAX_MESSAGE_CERTS && !mine; i++) {
        CMS_RecipientInfo *each = sk_CMS_RecipientInfo_value(recipients, i);
        mine = CMS_RecipientInfo_type(each) == CMS_RECIPINFO_TRANS &&
               CMS_RecipientInfo_ktri_cert_cmp(each, cert) == 0;
    }
    if (!mine)
        return igc_fail(IGC_E_MISMATCH, "it is encrypted for somebody else");
    if (CMS_get0_content(cms) == NULL || *CMS_get0_content(cms) == NULL)
        return igc_fail(IGC_E_PARSE, "there is nothing to open in it");
    out = BIO_new(BIO_s_mem());
    if (out == NULL)
        return igc_fail(IGC_E_NOMEM, NULL);
    /* without CMS_DEBUG_DECRYPT libcrypto goes on with a random key where unwrapping failed */
    if (CMS_decrypt(cms, key->pkey, cert, NULL, out, 0) != 1) {
        ERR_clear_error(); /* which of its steps it was stays inside */
        rc = igc_fail(IGC_E_INTEGRITY, "the content does not decrypt");
    } else {
        rc = igc_buf_take_bio(content, out);
    }
    BIO_free(out);
    return rc;
}

int igc_envelope_open(const uint8_t *ber, size_t len, const igc_key *key, const igc_certs *mine, int weak,
                      igc_buf *content, char *cipher)
{
    CMS_ContentInfo *cms = NULL;
    size_t i;
    int rc, nid;

    igc_begin();
    if ((ber == NULL && len) || key == NULL || mine == NULL || sk_X509_num(mine->list) < 1 ||
        content == NULL || cipher == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    *content = (igc_buf){NULL, 0};
    cipher[0] = '\0';
    if (!EVP_PKEY_is_a(key->pkey, "RSA"))
        return igc_fail(IGC_E_KEYTYPE, "only an RSA key opens an envelope");
    cms = igc_cms_parse(ber, len, NID_pkcs7_enveloped, &rc);
    if (cms == NULL)
        return rc;
    nid = cipher_nid(cms);
    for (i = 0; i < CIPHERS; i++)
        if (ciphers[i].nid == nid)
            break;
    if (i == CIPHERS || (ciphers[i].weak && !weak)) {
        const char *name = OBJ_nid2sn(nid);
        rc = igc_fail(IGC_E_FORMAT, i == CIPHERS ? "it is encrypted with a cipher that is not supported"
                                    : nid == NID_des_cbc
                                        ? "it is encrypted with single DES, which is not allowed"
                                        : "it is encrypted with triple DES, which is not allowed");
        OPENSSL_strlcpy(cipher, name ? name : "", 32);
        goto out;
    }
    OPENSSL_strlcpy(cipher, ciphers[i].name, 32);
    if (nid == NID_des_cbc) {
        EVP_CIPHER *des;
        igc_load_legacy();
        des = EVP_CIPHER_fetch(NULL, "DES-CBC", NULL);
        if (des == NULL) {
            rc = igc_fail(IGC_E_FORMAT,
                          "it is encrypted with single DES, which this system's libcrypto lacks");
            goto out;
        }
        EVP_CIPHER_free(des);
    }
    rc = open_envelope(cms, key, sk_X509_value(mine->list, 0), content);
out:
    CMS_ContentInfo_free(cms);
    return rc;
}
