/* core_keys.c - keys: signing, files, refusals, messages for a recipient. */
#include "core.h"

#include <openssl/pem.h>
#include <openssl/rsa.h>

void signing(const igc_key *key)
{
    igc_buf spki = {NULL, 0}, alg = {NULL, 0}, sig = {NULL, 0};
    const uint8_t *text = u8("what is to be signed");
    char type[64];

    CODE(OK, igc_key_spki(key, &spki));
    CODE(OK, igc_spki_type(spki.data, spki.len, type));
    CHECK(strcmp(type, igc_key_type(key)) == 0);
    CODE(OK, igc_key_sign(key, text, 20, &alg, &sig));
#define VERIFY(count) \
    igc_spki_verify(spki.data, spki.len, alg.data, alg.len, text, (count), sig.data, sig.len)
    CODE(OK, VERIFY(20));
    CODE(SIGNATURE, VERIFY(19));
    CODE(SIGNATURE, VERIFY(0));
    if (sig.len) {
        sig.data[sig.len / 2] ^= 1;
        CODE(SIGNATURE, VERIFY(20));
        sig.data[sig.len / 2] ^= 1;
        sig.len--;
        CODE(SIGNATURE, VERIFY(20));
        sig.len++;
    }
    CODE(PARSE, igc_spki_verify(spki.data, spki.len, alg.data, alg.len - 1, text, 20, sig.data, sig.len));
    CODE(PARSE, igc_spki_verify(spki.data, spki.len, NULL, 0, text, 20, sig.data, sig.len));
    CODE(SIGNATURE, igc_spki_verify(spki.data, spki.len, alg.data, alg.len, text, 20, NULL, 0));
    CODE(PARSE, igc_spki_type(spki.data, spki.len - 1, type));
    CODE(PARSE, igc_spki_type(NULL, 0, type));
    igc_buf_free(&spki);
    igc_buf_free(&alg);
    igc_buf_free(&sig);
    CODE(OK, igc_key_sign(key, NULL, 0, &alg, &sig));
    igc_buf_free(&alg);
    igc_buf_free(&sig);
}

void storing(const igc_key *key)
{
    igc_key *again = NULL;
    igc_secret *secret = new_secret("secret");
    uint8_t pem[8192], other[8192];
    size_t len;
    int fd = file_with(NULL, 0);

    CODE(OK, igc_key_write(key, fd, secret));
    len = content(fd, pem, sizeof(pem) - 1);
    pem[len] = 0;
    close(fd);
    fd = file_with(NULL, 0);
    CODE(OK, igc_key_write(key, fd, secret));
    igc_secret_free(secret);
    /* the same key under the same derived key, and yet another text: the IV is new */
    CHECK(content(fd, other, sizeof(other)) == len && memcmp(pem, other, len) != 0);
    CHECK(strstr((char *)pem, "-----BEGIN ENCRYPTED PRIVATE KEY-----") == (char *)pem);
    lseek(fd, 0, SEEK_SET);
    CODE(PASSWORD, igc_key_read(fd, u8("Secret"), 6, &again));
    CHECK(again == NULL);
    lseek(fd, 0, SEEK_SET);
    CODE(PASSWORD, igc_key_read(fd, NULL, 0, &again));
    lseek(fd, 0, SEEK_SET);
    if (CODE(OK, igc_key_read(fd, u8("secret"), 6, &again))) {
        CHECK(same_key(key, again));
        CHECK(strcmp(igc_key_type(key), igc_key_type(again)) == 0);
        CODE(OK, igc_key_check(again));
    }
    igc_key_free(again);
    close(fd);
    fd = file_with(pem, len / 2);
    CHECK(igc_key_read(fd, u8("secret"), 6, &again) != IGC_OK && again == NULL);
    close(fd);

    fd = file_with(NULL, 0);
    CODE(OK, igc_key_write(key, fd, NULL));
    lseek(fd, 0, SEEK_SET);
    if (CODE(OK, igc_key_read(fd, NULL, 0, &again)))
        CHECK(same_key(key, again));
    igc_key_free(again);
    close(fd);
}

void key_refusals(const igc_key *key)
{
    static uint8_t big[IGC_MAX_PEM + 1];
    igc_key *out = NULL;
    igc_secret *secret = NULL;
    int fd;

    CODE(KEYTYPE, igc_key_generate("rsa_1024", &out));
    CODE(KEYTYPE, igc_key_generate("", &out));
    CODE(ARG, igc_key_generate(NULL, &out));
    CODE(ARG, igc_key_generate("rsa_2048", NULL));
    CODE(ARG, igc_secret_new(u8("x"), 1, 999, &secret));
    CODE(ARG, igc_secret_new(u8("x"), 1, 10000001, &secret));
    CODE(ARG, igc_secret_new(big, 1025, ITERATIONS, &secret));
    CODE(ARG, igc_secret_new(NULL, 1, ITERATIONS, &secret));
    CODE(ARG, igc_secret_new(u8("x"), 1, ITERATIONS, NULL));
    CHECK(secret == NULL);
    CODE(OK, igc_secret_new(big, 1024, ITERATIONS, &secret));
    igc_secret_free(secret);
    CODE(OK, igc_secret_new(NULL, 0, ITERATIONS, &secret));
    CODE(ARG, igc_key_write(key, 1, secret));
    igc_secret_free(secret);
    igc_secret_free(NULL);
    CODE(ARG, igc_key_write(NULL, 1, NULL));
    CODE(ARG, igc_key_read(-1, NULL, 0, &out));
    CODE(ARG, igc_key_check(NULL));
    CODE(IO, igc_key_read(1000, NULL, 0, &out));
    CODE(IO, igc_key_write(key, 1000, NULL));
    fd = file_with(NULL, 0);
    CODE(PARSE, igc_key_read(fd, NULL, 0, &out));
    close(fd);
    memset(big, 'A', sizeof(big));
    fd = file_with(big, sizeof(big));
    CODE(LIMIT, igc_key_read(fd, NULL, 0, &out));
    close(fd);
    fd = file_with(big, sizeof(big) - 1);
    CODE(PARSE, igc_key_read(fd, NULL, 0, &out));
    close(fd);
    CHECK(out == NULL);
    igc_key_free(NULL);
}

/* An encrypted key that asks for 2^31 - 1 rounds, or for scrypt far beyond reason. */
/* EnvelopedData and SignedData: refusals, and that a round trip through parts gives the content again. */
void messages(const igc_key *rsa, const igc_key *other)
{
    igc_buf der = new_cert(rsa, "rsa", rsa, "rsa", 0, NULL),
            foreign_der = new_cert(other, "other", other, "other", 0, NULL);
    igc_buf wrapped, iv, sealed, alg, sig, content;
    igc_certs *set = NULL, *foreign_set = NULL, *empty = NULL;
    igc_signed opened;
    char cipher[32];

    CODE(OK, igc_certs_read(der.data, der.len, &set));
    CODE(OK, igc_certs_read(foreign_der.data, foreign_der.len, &foreign_set));
    CODE(OK, igc_certs_read(NULL, 0, &empty));
    CODE(PARSE, igc_certs_read(der.data, der.len - 1, &(igc_certs *){NULL}));
    CODE(OK, igc_envelope_make(set, "aes-256-cbc", u8("content"), 7, &wrapped, &iv, &sealed));
    CHECK(wrapped.len == 256 && iv.len == 16 && sealed.len == 16);
    igc_buf_free(&wrapped);
    igc_buf_free(&iv);
    igc_buf_free(&sealed);
    CODE(ARG, igc_envelope_make(set, "des-cbc", u8("content"), 7, &wrapped, &iv, &sealed));
    CODE(ARG, igc_envelope_make(empty, "aes-256-cbc", u8("content"), 7, &wrapped, &iv, &sealed));
    CODE(KEYTYPE, igc_envelope_make(foreign_set, "aes-256-cbc", u8("content"), 7, &wrapped, &iv, &sealed));
    CHECK(wrapped.data == NULL && iv.data == NULL && sealed.data == NULL);
    CODE(KEYTYPE, igc_envelope_open(der.data, der.len, other, foreign_set, 0, &content, cipher));
    CODE(PARSE, igc_envelope_open(der.data, der.len, rsa, set, 0, &content, cipher));
    CODE(PARSE, igc_signed_open(der.data, der.len, empty, 1, 0, &opened));
    CODE(PARSE, igc_signed_open(der.data, der.len - 1, empty, 1, 0, &opened));
    CHECK(opened.content.data == NULL);
    CODE(OK, igc_key_sign_with(rsa, "sha512", u8("x"), 1, &alg, &sig));
    CHECK(sig.len == 256);
    igc_buf_free(&alg);
    igc_buf_free(&sig);
    CODE(ARG, igc_key_sign_with(rsa, "md5", u8("x"), 1, &alg, &sig));
    igc_certs_free(set);
    igc_certs_free(foreign_set);
    igc_certs_free(empty);
    igc_certs_free(NULL);
    igc_buf_free(&der);
    igc_buf_free(&foreign_der);
}

void costly_key(void)
{
    ASN1_OCTET_STRING *bytes = ASN1_OCTET_STRING_new();
    int round;

    ASN1_OCTET_STRING_set(bytes, u8("0123456789abcdef"), 16);
    for (round = 0; round < 2; round++) {
        X509_SIG *sig = X509_SIG_new();
        X509_ALGOR *alg = NULL, *into;
        ASN1_OCTET_STRING *data;
        BIO *bio = BIO_new(BIO_s_mem());
        igc_key *out = NULL;
        char *pem;
        long len;
        int fd;

        if (round == 0)
            alg = PKCS5_pbe2_set_iv(EVP_aes_256_cbc(), 2147483647, NULL, 16, NULL, NID_hmacWithSHA256);
        else
            alg = PKCS5_pbe2_set_scrypt(EVP_aes_256_cbc(), NULL, 16, NULL, 16384, 1, 32768);
        X509_SIG_getm(sig, &into, &data);
        CHECK(alg && X509_ALGOR_copy(into, alg));
        ASN1_STRING_copy(data, bytes);
        PEM_write_bio_PKCS8(bio, sig);
        len = BIO_get_mem_data(bio, &pem);
        fd = file_with(pem, (size_t)len);
        CODE(LIMIT, igc_key_read(fd, u8("secret"), 6, &out));
        close(fd);
        BIO_free(bio);
        X509_ALGOR_free(alg);
        X509_SIG_free(sig);
    }
    ASN1_OCTET_STRING_free(bytes);
}

/* AlgorithmIdentifier of RSASSA-PSS (RFC 4055), MGF1 with the same hash, salt as long as the hash. */
static igc_buf pss_algorithm(const EVP_MD *md)
{
    RSA_PSS_PARAMS *params = RSA_PSS_PARAMS_new();
    X509_ALGOR *hash = X509_ALGOR_new(), *alg = X509_ALGOR_new();
    ASN1_STRING *packed = NULL;
    igc_buf out = {NULL, 0};
    unsigned char *der = NULL;
    int len;

    params->hashAlgorithm = X509_ALGOR_new();
    params->maskGenAlgorithm = X509_ALGOR_new();
    params->saltLength = ASN1_INTEGER_new();
    X509_ALGOR_set_md(hash, md);
    X509_ALGOR_set_md(params->hashAlgorithm, md);
    ASN1_item_pack(hash, ASN1_ITEM_rptr(X509_ALGOR), &packed);
    X509_ALGOR_set0(params->maskGenAlgorithm, OBJ_nid2obj(NID_mgf1), V_ASN1_SEQUENCE, packed);
    ASN1_INTEGER_set(params->saltLength, EVP_MD_get_size(md));
    packed = NULL;
    ASN1_item_pack(params, ASN1_ITEM_rptr(RSA_PSS_PARAMS), &packed);
    X509_ALGOR_set0(alg, OBJ_nid2obj(NID_rsassaPss), V_ASN1_SEQUENCE, packed);
    len = i2d_X509_ALGOR(alg, &der);
    CHECK(len > 0 && igc_buf_set(&out, der, (size_t)len) == IGC_OK);
    OPENSSL_free(der);
    X509_ALGOR_free(alg);
    X509_ALGOR_free(hash);
    RSA_PSS_PARAMS_free(params);
    return out;
}

/* RSASSA-PSS: SHA-256 verifies, MD5 never does. */
void pss(const igc_key *key)
{
    static const uint8_t tbs[] = {0x30, 3, 2, 1, 7};
    const EVP_MD *hashes[] = {EVP_sha256(), EVP_md5()};
    igc_buf spki = {NULL, 0};
    int i;

    CODE(OK, igc_key_spki(key, &spki));
    for (i = 0; i < 2; i++) {
        igc_buf alg = pss_algorithm(hashes[i]);
        EVP_MD_CTX *ctx = EVP_MD_CTX_new();
        EVP_PKEY_CTX *pctx = NULL;
        uint8_t sig[256];
        size_t len = sizeof(sig);

        CHECK(EVP_DigestSignInit(ctx, &pctx, hashes[i], NULL, key->pkey) == 1 &&
              EVP_PKEY_CTX_set_rsa_padding(pctx, RSA_PKCS1_PSS_PADDING) > 0 &&
              EVP_PKEY_CTX_set_rsa_pss_saltlen(pctx, RSA_PSS_SALTLEN_DIGEST) > 0 &&
              EVP_DigestSign(ctx, sig, &len, tbs, sizeof(tbs)) == 1);
        check_code(i ? IGC_E_SIGNATURE : IGC_OK,
                   igc_spki_verify(spki.data, spki.len, alg.data, alg.len, tbs, sizeof(tbs), sig, len),
                   i ? "PSS with MD5" : "PSS with SHA-256", __FILE__, __LINE__);
        CODE(SIGNATURE,
             igc_spki_verify(spki.data, spki.len, alg.data, alg.len, tbs, sizeof(tbs), sig, len - 1));
        EVP_MD_CTX_free(ctx);
        igc_buf_free(&alg);
    }
    igc_buf_free(&spki);
}
