/* core_certificates.c - certificates, chains, certs-only CMS. */
#include "core.h"

static int empty_cert(const igc_cert *cert)
{
    static const igc_cert empty;

    return memcmp(cert, &empty, sizeof(empty)) == 0;
}

void certificate(const igc_key *key)
{
    igc_buf der = new_cert(key, "gerät", key, "gerät", 0, "DNS:dev.example.test,IP:192.0.2.7,email:a@b.test");
    igc_buf spki = {NULL, 0}, longer = {NULL, 0};
    static const uint8_t junk[] = "\x30\x82\xff\xff not a certificate at all";
    igc_cert cert;
    size_t i, accepted = 0;

    CODE(OK, igc_key_spki(key, &spki));
    if (CODE(OK, igc_cert_parse(der.data, der.len, &cert))) {
        CHECK(cert.not_before == NOW && cert.not_after == NOW + YEAR);
        CHECK(same(&cert.spki, &spki));
        CHECK(strcmp(cert.key_type, igc_key_type(key)) == 0);
        CHECK(cert.self_issued && !cert.is_ca && cert.key_usage == KU_DIGITAL_SIGNATURE);
        CHECK(cert.cn.len == 6 && memcmp(cert.cn.data, "ger\xc3\xa4t", 6) == 0);
        CHECK(cert.serial.len == 2 && memcmp(cert.serial.data, "\x12\x67", 2) == 0);
        CHECK(cert.san.len == 3 * 5 + 16 + 4 + 8 && cert.san.data[0] == 2 && cert.san.data[21] == 7);
        CHECK(same(&cert.subject_der, &cert.issuer_der) && same(&cert.subject_text, &cert.issuer_text));
    }
    igc_cert_clear(&cert);
    CHECK(empty_cert(&cert));
    for (i = 0; i < der.len; i++) /* cut at every length, each copy exactly as long as it says */
    {
        uint8_t *cut = OPENSSL_memdup(der.data, i ? i : 1);
        accepted += igc_cert_parse(cut, i, &cert) == IGC_OK || !empty_cert(&cert);
        OPENSSL_free(cut);
    }
    CHECK(accepted == 0);
    for (i = 0; i < der.len; i++) { /* any outcome, but a clean one */
        der.data[i] ^= 0x81;
        if (igc_cert_parse(der.data, der.len, &cert) != IGC_OK)
            accepted += !empty_cert(&cert);
        igc_cert_clear(&cert);
        der.data[i] ^= 0x81;
    }
    CHECK(accepted == 0);
    igc_buf_set(&longer, der.data, der.len);
    igc_buf_append(&longer, "", 1);
    CODE(PARSE, igc_cert_parse(longer.data, longer.len, &cert));
    CODE(PARSE, igc_cert_parse(junk, sizeof(junk), &cert));
    CODE(PARSE, igc_cert_parse(NULL, 0, &cert));
    CODE(ARG, igc_cert_parse(NULL, 1, &cert));
    CODE(LIMIT, igc_cert_parse(der.data, IGC_MAX_CERT + 1, &cert));
    igc_cert_clear(NULL);
    igc_buf_free(&longer);
    igc_buf_free(&spki);
    igc_buf_free(&der);
}

void chain(const igc_key *root_key, const igc_key *ca_key, const igc_key *leaf_key)
{
    igc_buf root = new_cert(root_key, "root", root_key, "root", 1, NULL);
    igc_buf ca = new_cert(ca_key, "ca", root_key, "root", 1, NULL);
    igc_buf leaf = new_cert(leaf_key, "leaf", ca_key, "ca", 0, "DNS:host.example.test,IP:192.0.2.7");
    igc_buf other = new_cert(leaf_key, "root", leaf_key, "root", 1, NULL);
    igc_buf out = {NULL, 0};

#define CHAIN(pool, anchors, at, host, partial) \
    igc_chain_verify(leaf.data, leaf.len, (pool).data, (pool).len, (anchors).data, (anchors).len, (at), \
                     IGC_PURPOSE_ANY, (host), (partial), &out)
    if (CODE(OK, CHAIN(ca, root, NOW + 1, NULL, 0)))
        CHECK(out.len == root.len + ca.len + leaf.len && memcmp(out.data, leaf.data, leaf.len) == 0);
    igc_buf_free(&out);
    CODE(OK, CHAIN(ca, root, NOW + 1, "host.example.test", 0));
    igc_buf_free(&out);
    CODE(OK, CHAIN(ca, root, NOW + 1, "192.0.2.7", 0));
    igc_buf_free(&out);
    CODE(OK, CHAIN(ca, ca, NOW + 1, NULL, 1));
    igc_buf_free(&out);
    CODE(CHAIN, CHAIN(ca, ca, NOW + 1, NULL, 0));
    CODE(CHAIN, CHAIN(ca, root, NOW + 1, "other.example.test", 0));
    CHECK(igc_reasons()[0] != 0);
    CODE(CHAIN, CHAIN(ca, root, NOW - 1, NULL, 0));
    CODE(CHAIN, CHAIN(ca, root, NOW + 2 * (int64_t)YEAR, NULL, 0));
    CODE(CHAIN, CHAIN(root, root, NOW + 1, NULL, 0));
    CODE(CHAIN, CHAIN(ca, other, NOW + 1, NULL, 0));
    CODE(CHAIN, CHAIN(ca, out, NOW + 1, NULL, 0));
    root.len--;
    CODE(PARSE, CHAIN(ca, root, NOW + 1, NULL, 0));
    root.len++;
    CODE(ARG, igc_chain_verify(leaf.data, leaf.len, NULL, 0, NULL, 0, NOW, 3, NULL, 0, &out));
    CODE(PARSE, igc_chain_verify(leaf.data, 0, NULL, 0, NULL, 0, NOW, 0, NULL, 0, &out));
    CHECK(out.data == NULL && out.len == 0);
    igc_buf_free(&root);
    igc_buf_free(&ca);
    igc_buf_free(&leaf);
    igc_buf_free(&other);
}

/* ---- CMS ---- */

/* Certs-only; the core only reads it. */
static igc_buf certs_only(const igc_buf *list)
{
    PKCS7 *p7 = PKCS7_new();
    const uint8_t *at = list->data;
    size_t rest = list->len;
    igc_buf out = {NULL, 0};
    unsigned char *der = NULL;
    X509 *x;
    int len;

    PKCS7_set_type(p7, NID_pkcs7_signed);
    PKCS7_content_new(p7, NID_pkcs7_data);
    PKCS7_set_detached(p7, 1);
    while ((x = igc_list_next(&at, &rest)) != NULL) {
        PKCS7_add_certificate(p7, x);
        X509_free(x);
    }
    len = i2d_PKCS7(p7, &der);
    CHECK(len > 0 && igc_buf_set(&out, der, (size_t)len) == IGC_OK);
    OPENSSL_free(der);
    PKCS7_free(p7);
    return out;
}

void cms(const igc_key *key)
{
    igc_buf list = new_cert(key, "one", key, "one", 1, NULL);
    igc_buf more = new_cert(key, "two", key, "two", 0, NULL);
    igc_buf none = {NULL, 0}, out = {NULL, 0}, message, bare;
    static const uint8_t stray[] = {0x30, 0x80, 0x00}, deep = 0x30;
    uint8_t nested[200];
    size_t i, accepted = 0;

    igc_buf_append(&list, more.data, more.len);
    message = certs_only(&list);
    bare = certs_only(&none);
    if (CODE(OK, igc_cms_certs(message.data, message.len, &out)))
        CHECK(same(&out, &list));
    igc_buf_free(&out);
    CODE(OK, igc_cms_certs(bare.data, bare.len, &out));
    CHECK(out.len == 0);
    igc_buf_free(&out);
    for (i = 0; i < message.len; i++) {
        uint8_t *cut = OPENSSL_memdup(message.data, i ? i : 1);
        accepted += igc_cms_certs(cut, i, &out) == IGC_OK || out.data != NULL;
        OPENSSL_free(cut);
    }
    CHECK(accepted == 0);
    for (i = 0; i < message.len; i++) {
        message.data[i] ^= 0x81;
        if (igc_cms_certs(message.data, message.len, &out) != IGC_OK)
            accepted += out.data != NULL;
        igc_buf_free(&out);
        message.data[i] ^= 0x81;
    }
    CHECK(accepted == 0);
    igc_buf_append(&message, "", 1);
    CODE(PARSE, igc_cms_certs(message.data, message.len, &out));
    CODE(PARSE, igc_cms_certs(stray, sizeof(stray), &out));
    CODE(PARSE, igc_cms_certs(&deep, 1, &out));
    CODE(PARSE, igc_cms_certs(NULL, 0, &out));
    CODE(LIMIT, igc_cms_certs(message.data, (1u << 20) + 1, &out));
    for (i = 0; i < sizeof(nested); i += 2)
        memcpy(nested + i, "\x30\x80", 2);
    CODE(LIMIT, igc_cms_certs(nested, sizeof(nested), &out));
    CODE(ARG, igc_cms_certs(NULL, 1, &out));
    igc_buf_free(&list);
    igc_buf_free(&more);
    igc_buf_free(&message);
    igc_buf_free(&bare);
}
