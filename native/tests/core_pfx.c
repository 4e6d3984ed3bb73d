/* core_pfx.c - PKCS#12. */
#include "core.h"

void pfx_round_trip(const igc_key *key, int legacy)
{
    igc_key *ca_key = new_key("ec_prime256v1");
    igc_buf ca = new_cert(ca_key, "ca", ca_key, "ca", 1, NULL);
    igc_buf cert = new_cert(key, "device", ca_key, "ca", 0, NULL);
    igc_buf web = new_cert(ca_key, "web", ca_key, "web", 0, NULL);
    igc_buf cas = {NULL, 0};
    igc_secret *secret = new_secret("geheim\xc3\xa4");
    static uint8_t data[32768];
    int fd = file_with(NULL, 0);
    size_t len, i;
    igc_pfx pfx;

    igc_buf_append(&cas, web.data, web.len);
    igc_buf_append(&cas, ca.data, ca.len);
    CODE(OK, igc_pfx_write(fd, key, cert.data, cert.len, cas.data, cas.len, secret, "device", legacy));
    len = content(fd, data, sizeof(data));
    close(fd);
    if (CODE(OK, igc_pfx_read(data, len, u8("geheim\xc3\xa4"), 8, 1, &pfx))) {
        CHECK(same_key(pfx.key, key));
        CHECK(same(&pfx.cert, &cert) && same(&pfx.chain, &ca) && same(&pfx.trusted, &web));
        CHECK(pfx.flags == 0);
    }
    igc_pfx_clear(&pfx);
    CODE(OK, igc_pfx_read(data, len, u8("geheim\xc3\xa4"), 8, 0, &pfx));
    CHECK(pfx.key == NULL && pfx.trusted.len == cert.len + ca.len + web.len);
    igc_pfx_clear(&pfx);
    CODE(PASSWORD, igc_pfx_read(data, len, u8("wrong"), 5, 1, &pfx));
    CODE(PASSWORD, igc_pfx_read(data, len, NULL, 0, 1, &pfx));
    CODE(PASSWORD, igc_pfx_read(data, len, u8("a\0b"), 3, 1, &pfx));
    CODE(OK, igc_pfx_read(data, len + 1, u8("geheim\xc3\xa4"), 8, 1, &pfx));
    CHECK(pfx.flags == IGC_PFX_TRAILING);
    igc_pfx_clear(&pfx);
    for (i = 0; i < len; i += 1 + i / 40) {
        uint8_t *cut = OPENSSL_memdup(data, i ? i : 1);
        CHECK(igc_pfx_read(cut, i, u8("geheim\xc3\xa4"), 8, 1, &pfx) != IGC_OK && pfx.key == NULL);
        OPENSSL_free(cut);
    }
    data[len - 40] ^= 1;
    CHECK(igc_pfx_read(data, len, u8("geheim\xc3\xa4"), 8, 1, &pfx) != IGC_OK && pfx.key == NULL);
    CODE(MISMATCH, igc_pfx_write(1, key, ca.data, ca.len, NULL, 0, secret, "n", 0));
    CODE(PARSE, igc_pfx_write(1, key, cert.data, cert.len - 1, NULL, 0, secret, "n", 0));
    CODE(PARSE, igc_pfx_write(1, key, cert.data, cert.len, ca.data, 3, secret, "n", 0));
    CODE(ARG, igc_pfx_write(1, key, cert.data, cert.len, NULL, 0, NULL, "n", 0));
    CODE(IO, igc_pfx_write(1000, key, cert.data, cert.len, NULL, 0, secret, "n", 0));
    igc_secret_free(secret);
    CODE(OK, igc_secret_new(u8("a\0b"), 3, ITERATIONS, &secret));
    CODE(ARG, igc_pfx_write(1, key, cert.data, cert.len, NULL, 0, secret, "n", 0));
    igc_secret_free(secret);
    igc_buf_free(&web);
    igc_buf_free(&cas);
    igc_buf_free(&cert);
    igc_buf_free(&ca);
    igc_key_free(ca_key);
}

void pfx_refusals(void)
{
    /* version 3; data; one safe of type encryptedData (last octet 6) or data (1) without its content */
    uint8_t hollow[] = {0x30, 0x23, 2,    1,    3,    0x30, 0x1e, 6,    9,    0x2a, 0x86, 0x48, 0x86,
                        0xf7, 0x0d, 1,    7,    1,    0xa0, 0x11, 4,    0x0f, 0x30, 0x0d, 0x30, 0x0b,
                        6,    9,    0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1,    7,    6};
    static const uint8_t jks[] = {0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2};
    static const char pem[] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    igc_pfx pfx;

    CODE(PARSE, igc_pfx_read(hollow, sizeof(hollow), u8("x"), 1, 1, &pfx));
    hollow[sizeof(hollow) - 1] = 1;
    CODE(PARSE, igc_pfx_read(hollow, sizeof(hollow), u8("x"), 1, 1, &pfx));
    hollow[sizeof(hollow) - 1] = 3; /* envelopedData */
    CODE(PARSE, igc_pfx_read(hollow, sizeof(hollow), u8("x"), 1, 1, &pfx));
    CODE(FORMAT, igc_pfx_read(jks, sizeof(jks), u8("x"), 1, 1, &pfx));
    CODE(FORMAT, igc_pfx_read(u8(pem), sizeof(pem) - 1, u8("x"), 1, 1, &pfx));
    CODE(FORMAT, igc_pfx_read(NULL, 0, NULL, 0, 1, &pfx));
    CODE(PARSE, igc_pfx_read(u8("\x30\x82"), 2, NULL, 0, 1, &pfx));
    CODE(FORMAT, igc_pfx_read(u8("\x30\x00"), 2, NULL, 0, 1, &pfx));
    CODE(LIMIT, igc_pfx_read(jks, (1u << 20) + 1, u8("x"), 1, 1, &pfx));
    CODE(ARG, igc_pfx_read(NULL, 1, NULL, 0, 1, &pfx));
    igc_pfx_clear(&pfx);
    igc_pfx_clear(NULL);
}
