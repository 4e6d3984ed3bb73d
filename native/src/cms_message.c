/* cms_message.c - EnvelopedData and SignedData: what SCEP's pkiMessages are made of (RFC 8894, RFC 5652).
   Written from primitives, so that the caller composes DER; read by libcrypto's CMS, which takes BER. */
#include "inner.h"

#include <openssl/cms.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/objects.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <string.h>

#define MAX_MESSAGE (1u << 20)
#define MAX_DEPTH 32
#define MAX_NODES 200000
#define MAX_CERTS 200
#define MAX_ATTRIBUTES 100

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

static CMS_ContentInfo *parse_message(const uint8_t *ber, size_t len, int type, int *code)
{
    const uint8_t *at = ber;
    CMS_ContentInfo *cms;
    size_t used = 0;

    *code = IGC_OK;
    if (len > MAX_MESSAGE) {
        *code = igc_fail(IGC_E_LIMIT, "the message is larger than 1 MiB");
        return NULL;
    }
    *code = igc_ber_scan(ber, len, MAX_DEPTH, MAX_NODES, &used);
    if (*code) {
        igc_fail(*code, "this is not a CMS message");
        return NULL;
    }
    if (used != len) {
        *code = igc_fail(IGC_E_PARSE, "there are bytes after the end of the message");
        return NULL;
    }
    cms = d2i_CMS_ContentInfo(NULL, &at, (long)len);
    if (cms == NULL) {
        *code = igc_fail(IGC_E_PARSE, "this is not a CMS message");
        return NULL;
    }
    if (OBJ_obj2nid(CMS_get0_type(cms)) != type) {
        *code =
            igc_fail(IGC_E_FORMAT, type == NID_pkcs7_signed ? "this is a CMS message, but no SignedData"
                                                            : "this is a CMS message, but no EnvelopedData");
        CMS_ContentInfo_free(cms);
        return NULL;
    }
    return cms;
}

struct igc_certs {
    STACK_OF(X509) * list;
};

int igc_certs_read(const uint8_t *list, size_t len, igc_certs **out)
{
    STACK_OF(X509) * found;
    int rc;

    igc_begin();
    if ((list == NULL && len) || out == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    *out = NULL;
    found = igc_list_parse(list, len, &rc);
    if (found == NULL)
        return rc;
    *out = OPENSSL_zalloc(sizeof(**out));
    if (*out == NULL) {
        sk_X509_pop_free(found, X509_free);
        return igc_fail(IGC_E_NOMEM, NULL);
    }
    (*out)->list = found;
    return IGC_OK;
}

void igc_certs_free(igc_certs *certs)
{
    if (certs == NULL)
        return;
    sk_X509_pop_free(certs->list, X509_free);
    OPENSSL_free(certs);
}

/* ---- EnvelopedData ---- */

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
    if (content_len > MAX_MESSAGE)
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

/* Steps over one DER element; enters it when `enter`. NULL when it does not lie within *end. */
static const uint8_t *der_step(const uint8_t *at, const uint8_t **end, int tag, int enter)
{
    const uint8_t *content = at;
    long size;
    int found, class;

    if (at == NULL || at >= *end)
        return NULL;
    if (ASN1_get_object(&content, &size, &found, &class, *end - at) & 0x81 || (tag >= 0 && *at != tag))
        return NULL;
    if (enter) {
        *end = content + size;
        return content;
    }
    return content + size;
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
        at = der_step(at, &end, 0x30, 1);  /* ContentInfo */
        at = der_step(at, &end, 0x06, 0);  /* contentType */
        at = der_step(at, &end, 0xa0, 1);  /* content [0] */
        at = der_step(at, &end, 0x30, 1);  /* EnvelopedData */
        at = der_step(at, &end, 0x02, 0);  /* version */
        if (at && at < end && *at == 0xa0) /* originatorInfo [0] */
            at = der_step(at, &end, 0xa0, 0);
        at = der_step(at, &end, 0x31, 0); /* recipientInfos */
        at = der_step(at, &end, 0x30, 1); /* EncryptedContentInfo */
        at = der_step(at, &end, 0x06, 0); /* contentType */
        at = der_step(at, &end, 0x30, 1); /* contentEncryptionAlgorithm */
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

    for (i = 0; i < sk_CMS_RecipientInfo_num(recipients) && i < MAX_CERTS && !mine; i++) {
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
    cms = parse_message(ber, len, NID_pkcs7_enveloped, &rc);
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

/* ---- SignedData ---- */

void igc_signed_clear(igc_signed *opened)
{
    if (opened == NULL)
        return;
    igc_buf_free(&opened->content);
    igc_buf_free(&opened->content_type);
    igc_buf_free(&opened->attributes);
    igc_buf_free(&opened->signer);
    igc_buf_free(&opened->certs);
    memset(opened, 0, sizeof(*opened));
}

/* The certificate of the signer out of a stack; borrowed. */
static X509 *signer_in(CMS_SignerInfo *info, STACK_OF(X509) * certs)
{
    int i;

    for (i = 0; i < sk_X509_num(certs); i++)
        if (CMS_SignerInfo_cert_cmp(info, sk_X509_value(certs, i)) == 0)
            return sk_X509_value(certs, i);
    return NULL;
}

/* X509_cmp() would look into every extension first. */
static int same_encoding(X509 *a, X509 *b)
{
    igc_buf one = {NULL, 0}, two = {NULL, 0};
    int same = igc_list_add(&one, a) == IGC_OK && igc_list_add(&two, b) == IGC_OK && one.len == two.len &&
               memcmp(one.data, two.data, one.len) == 0;

    igc_buf_free(&one);
    igc_buf_free(&two);
    return same;
}

/* Name of an acceptable digest, or NULL. */
static const char *digest_name(int nid, int weak)
{
    switch (nid) {
    case NID_sha256:
        return "sha256";
    case NID_sha384:
        return "sha384";
    case NID_sha512:
        return "sha512";
    case NID_sha224:
        return "sha224";
    case NID_sha1:
        return weak ? "sha1" : NULL;
    default:
        return NULL;
    }
}

static int digest_agrees(CMS_SignerInfo *info, const EVP_MD *md, const igc_buf *content)
{
    /* -3: exactly one attribute with exactly one value */
    const ASN1_OCTET_STRING *sent =
        CMS_signed_get0_data_by_OBJ(info, OBJ_nid2obj(NID_pkcs9_messageDigest), -3, V_ASN1_OCTET_STRING);
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned int len = 0;

    return sent &&
           EVP_Digest(content->data ? content->data : (const uint8_t *)"", content->len, digest, &len, md,
                      NULL) &&
           (unsigned int)ASN1_STRING_length(sent) == len &&
           CRYPTO_memcmp(ASN1_STRING_get0_data(sent), digest, len) == 0;
}

/* RFC 5652 5.6: over the attributes as they were sent, or over the content where there are none. */
static int verify_signer(CMS_ContentInfo *cms, CMS_SignerInfo *info, X509 *signer, int weak, igc_signed *out)
{
    X509_ALGOR *digest_alg = NULL, *sig_alg = NULL;
    const ASN1_OBJECT *oid = NULL;
    const char *name;
    const EVP_MD *md;
    EVP_PKEY *pkey = X509_get0_pubkey(signer);
    int rc;

    if (pkey == NULL)
        return igc_fail(IGC_E_KEYTYPE, "the signer's key cannot be read");
    rc = igc_pkey_sane(pkey);
    if (rc)
        return rc;
    CMS_SignerInfo_get0_algs(info, NULL, NULL, &digest_alg, &sig_alg);
    X509_ALGOR_get0(&oid, NULL, NULL, digest_alg);
    name = digest_name(OBJ_obj2nid(oid), weak);
    if (name == NULL)
        return igc_fail(IGC_E_SIGNATURE, OBJ_obj2nid(oid) == NID_sha1
                                             ? "the signature uses SHA-1, which is not allowed"
                                             : "the signature uses a hash that is not acceptable");
    OPENSSL_strlcpy(out->digest, name, sizeof(out->digest));
    md = EVP_get_digestbyname(name);
    if (CMS_signed_get_attr_count(info) > MAX_ATTRIBUTES)
        return igc_fail(IGC_E_LIMIT, "there are more than 100 signed attributes");
    out->signed_attributes = CMS_signed_get_attr_count(info) > 0;
    if (out->signed_attributes) {
        const ASN1_OBJECT *type =
            CMS_signed_get0_data_by_OBJ(info, OBJ_nid2obj(NID_pkcs9_contentType), -3, V_ASN1_OBJECT);
        if (type == NULL || OBJ_cmp(type, CMS_get0_eContentType(cms)) != 0)
            return igc_fail(IGC_E_SIGNATURE, "the signed content type is missing or another one");
        if (!digest_agrees(info, md, &out->content))
            return igc_fail(IGC_E_SIGNATURE, "the message digest does not agree with the content");
        CMS_SignerInfo_set1_signer_cert(info, signer);
        if (CMS_SignerInfo_verify(info) != 1)
            return igc_fail(IGC_E_SIGNATURE, "the signature does not verify");
    } else {
        const ASN1_OCTET_STRING *sig = CMS_SignerInfo_get0_signature(info);
        EVP_MD_CTX *ctx = EVP_MD_CTX_new();
        int ok = ctx && EVP_DigestVerifyInit(ctx, NULL, md, NULL, pkey) == 1 &&
                 EVP_DigestVerify(ctx, ASN1_STRING_get0_data(sig), (size_t)ASN1_STRING_length(sig),
                                  out->content.data ? out->content.data : (const uint8_t *)"",
                                  out->content.len) == 1;
        EVP_MD_CTX_free(ctx);
        if (!ok)
            return igc_fail(IGC_E_SIGNATURE, "the signature does not verify");
    }
    return IGC_OK;
}

static int add_attributes(CMS_SignerInfo *info, igc_buf *attributes)
{
    int i, count = CMS_signed_get_attr_count(info), rc = IGC_OK;

    for (i = 0; rc == IGC_OK && i < count; i++) {
        uint8_t *der = NULL;
        int len = i2d_X509_ATTRIBUTE(CMS_signed_get_attr(info, i), &der);
        rc = len > 0 ? igc_buf_append(attributes, der, (size_t)len) : igc_fail(IGC_E_INTERNAL, NULL);
        OPENSSL_free(der);
    }
    return rc;
}

static int take_content(CMS_ContentInfo *cms, igc_signed *out)
{
    ASN1_OCTET_STRING **content = CMS_get0_content(cms);
    char oid[128];
    int len = OBJ_obj2txt(oid, sizeof(oid), CMS_get0_eContentType(cms), 1);

    if (len <= 0 || (size_t)len >= sizeof(oid))
        return igc_fail(IGC_E_PARSE, "the content type does not parse");
    if (content && *content) {
        out->has_content = 1;
        if (ASN1_STRING_length(*content) > 0 &&
            igc_buf_set(&out->content, ASN1_STRING_get0_data(*content), (size_t)ASN1_STRING_length(*content)))
            return igc_fail(IGC_E_NOMEM, NULL);
    }
    return igc_buf_set(&out->content_type, oid, (size_t)len);
}

int igc_signed_open(const uint8_t *ber, size_t len, const igc_certs *signers, int enclosed, int weak,
                    igc_signed *out)
{
    STACK_OF(X509) *inside = NULL;
    STACK_OF(CMS_SignerInfo) * infos;
    CMS_SignerInfo *info;
    CMS_ContentInfo *cms;
    X509 *signer, *named;
    int rc, i;

    igc_begin();
    if ((ber == NULL && len) || signers == NULL || out == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    memset(out, 0, sizeof(*out));
    cms = parse_message(ber, len, NID_pkcs7_signed, &rc);
    if (cms == NULL)
        return rc;
    inside = CMS_get1_certs(cms); /* NULL when there is none */
    if (sk_X509_num(inside) > MAX_CERTS) {
        rc = igc_fail(IGC_E_LIMIT, "there are more than 200 certificates in it");
        goto out;
    }
    infos = CMS_get0_SignerInfos(cms);
    if (sk_CMS_SignerInfo_num(infos) != 1) {
        rc = igc_fail(IGC_E_PARSE, sk_CMS_SignerInfo_num(infos) > 1 ? "the message has more than one signer"
                                                                    : "the message is not signed");
        goto out;
    }
    info = sk_CMS_SignerInfo_value(infos, 0);
    rc = take_content(cms, out);
    if (rc)
        goto out;
    signer = signer_in(info, signers->list);
    if (signer == NULL && enclosed)
        signer = signer_in(info, inside);
    if (signer == NULL) {
        rc = igc_fail(IGC_E_CHAIN, enclosed ? "the signer's certificate is not in the message"
                                            : "the signer is none of the certificates that may sign");
        goto out;
    }
    /* a certificate of the signer's name and number that is another one: damaged, or worse */
    named = signer_in(info, inside);
    if (named && !same_encoding(named, signer)) {
        rc = igc_fail(IGC_E_CHAIN, "the signer's certificate in the message is not the one that is known");
        goto out;
    }
    rc = verify_signer(cms, info, signer, weak, out);
    for (i = 0; rc == IGC_OK && i < sk_X509_num(inside); i++)
        rc = igc_list_add(&out->certs, sk_X509_value(inside, i));
    if (rc == IGC_OK)
        rc = igc_list_add(&out->signer, signer);
    if (rc == IGC_OK)
        rc = add_attributes(info, &out->attributes);
out:
    if (rc)
        igc_signed_clear(out);
    sk_X509_pop_free(inside, X509_free);
    CMS_ContentInfo_free(cms);
    return rc;
}
