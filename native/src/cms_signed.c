/* cms_signed.c - SignedData that is not certs-only (RFC 5652 5): opened, its one signature verified. */
#include "cms.h"

#include <openssl/crypto.h>
#include <openssl/objects.h>
#include <string.h>

#define MAX_ATTRIBUTES 100
#define FEW_CERTS 8

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

static int is_known(const igc_certs *signers, const uint8_t *der, size_t len)
{
    igc_buf one = {NULL, 0};
    int i, same = 0;

    for (i = 0; i < sk_X509_num(signers->list) && !same; i++) {
        same = igc_list_add(&one, sk_X509_value(signers->list, i)) == IGC_OK && one.len == len &&
               memcmp(one.data, der, len) == 0;
        igc_buf_free(&one);
    }
    return same;
}

/* The message without its certificates, when it is DER and every one of them is known: libcrypto would parse
   each again, which takes longer than to verify the signature. `certs`: what was left out. 0: take it as it
   is. */
static int without_known(const uint8_t *ber, size_t len, const igc_certs *signers, igc_buf *lean,
                         igc_buf *certs)
{
    const uint8_t *end1 = ber + len, *end2, *end3, *end4, *info, *tagged, *data, *set, *each, *next;
    size_t kept;
    int size1, size2, size3, count = 0, ok = 1;
    unsigned char *to;

    info = igc_der_step(ber, &end1, 0x30, 1); /* ContentInfo */
    end2 = end3 = end4 = end1;
    next = igc_der_step(info, &end1, 0x06, 0); /* contentType */
    tagged = igc_der_step(next, &end2, 0xa0, 1);
    end3 = end2;
    data = igc_der_step(tagged, &end3, 0x30, 1); /* SignedData */
    each = igc_der_step(data, &end3, 0x02, 0);   /* version */
    each = igc_der_step(each, &end3, 0x31, 0);   /* digestAlgorithms */
    set = igc_der_step(each, &end3, 0x30, 0);    /* encapContentInfo */
    end4 = end3;
    each = igc_der_step(set, &end4, 0xa0, 1); /* certificates */
    if (each == NULL || end1 != ber + len || end2 != end1 || end3 != end2)
        return 0;
    for (; ok && each < end4; each = next) {
        const uint8_t *end = end4;
        next = igc_der_step(each, &end, 0x30, 0);
        ok = next && ++count <= FEW_CERTS && is_known(signers, each, (size_t)(next - each)) &&
             igc_buf_append(certs, each, (size_t)(next - each)) == IGC_OK;
    }
    if (!ok || count == 0) {
        igc_buf_free(certs);
        return 0;
    }
    kept = (size_t)(set - data) + (size_t)(end3 - end4);
    next = igc_der_step(info, &end1, 0x06, 0);
    size3 = ASN1_object_size(1, (int)kept, V_ASN1_SEQUENCE);
    size2 = ASN1_object_size(1, size3, 0);
    size1 = ASN1_object_size(1, (int)(next - info) + size2, V_ASN1_SEQUENCE);
    lean->data = to = OPENSSL_malloc((size_t)size1);
    if (to == NULL) {
        igc_buf_free(certs);
        return 0;
    }
    lean->len = (size_t)size1;
    ASN1_put_object(&to, 1, (int)(next - info) + size2, V_ASN1_SEQUENCE, V_ASN1_UNIVERSAL);
    memcpy(to, info, (size_t)(next - info));
    to += next - info;
    ASN1_put_object(&to, 1, size3, 0, V_ASN1_CONTEXT_SPECIFIC);
    ASN1_put_object(&to, 1, (int)kept, V_ASN1_SEQUENCE, V_ASN1_UNIVERSAL);
    memcpy(to, data, (size_t)(set - data));
    memcpy(to + (set - data), end4, (size_t)(end3 - end4));
    return 1;
}

int igc_signed_open(const uint8_t *ber, size_t len, const igc_certs *signers, int enclosed, int weak,
                    igc_signed *out)
{
    STACK_OF(X509) *inside = NULL;
    STACK_OF(CMS_SignerInfo) * infos;
    CMS_SignerInfo *info;
    CMS_ContentInfo *cms;
    X509 *signer, *named;
    igc_buf lean = {NULL, 0};
    int rc, i;

    igc_begin();
    if ((ber == NULL && len) || signers == NULL || out == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    memset(out, 0, sizeof(*out));
    if (len <= IGC_MAX_MESSAGE && without_known(ber, len, signers, &lean, &out->certs))
        cms = igc_cms_parse(lean.data, lean.len, NID_pkcs7_signed, &rc);
    else
        cms = igc_cms_parse(ber, len, NID_pkcs7_signed, &rc);
    igc_buf_free(&lean);
    if (cms == NULL)
        goto out;
    inside = CMS_get1_certs(cms); /* NULL when there is none */
    if (sk_X509_num(inside) > IGC_MAX_MESSAGE_CERTS) {
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
