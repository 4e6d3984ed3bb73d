/* key.c - private keys: making, reading, writing, checking, signing. */
#include "prime.h"

#include <errno.h>
#include <limits.h>
#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/objects.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>
#include <openssl/rsa.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *type;
    unsigned int rsa_bits; /* 0: not RSA */
    const char *curve;     /* NULL: Ed25519 */
} key_kind;

static const key_kind kinds[] = {
    {"rsa_2048", 2048, NULL},
    {"rsa_3072", 3072, NULL},
    {"rsa_4096", 4096, NULL},
    {"rsa_8192", 8192, NULL},
    {"ecdsa_ed25519", 0, NULL},
    {"ec_brainpoolP256r1", 0, "brainpoolP256r1"},
    {"ec_brainpoolP384r1", 0, "brainpoolP384r1"},
    {"ec_brainpoolP512r1", 0, "brainpoolP512r1"},
    {"ec_prime256v1", 0, "prime256v1"},
    {"ec_secp256k1", 0, "secp256k1"},
    {"ec_secp384r1", 0, "secp384r1"},
    {"ec_secp521r1", 0, "secp521r1"},
};

/* type: NULL when it has to be found out */
static int wrap(EVP_PKEY *pkey, const char *type, igc_key **out)
{
    igc_key *key = OPENSSL_zalloc(sizeof(*key));

    if (key == NULL)
        return igc_fail(IGC_E_NOMEM, NULL);
    key->pkey = pkey;
    if (type)
        strcpy(key->type, type);
    else
        igc_pkey_type(pkey, key->type);
    *out = key;
    return IGC_OK;
}

/* libcrypto calls this between its steps; 0 ends the generation. */
static int watch_libcrypto(EVP_PKEY_CTX *ctx)
{
    igc_progress *progress = EVP_PKEY_CTX_get_app_data(ctx);
    int event = EVP_PKEY_CTX_get_keygen_info(ctx, 0);

    if (event == 0) /* as BN_GENCB_call() says: 0 a candidate, 3 a prime */
        __atomic_add_fetch(&progress->tested, 1, __ATOMIC_RELAXED);
    else if (event == 3)
        __atomic_add_fetch(&progress->primes, 1, __ATOMIC_RELAXED);
    return !__atomic_load_n(&progress->cancel, __ATOMIC_RELAXED);
}

static int libcrypto_rsa(int bits, igc_progress *progress, EVP_PKEY **out)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    int rc = IGC_OK;

    if (ctx == NULL || EVP_PKEY_keygen_init(ctx) <= 0 || EVP_PKEY_CTX_set_rsa_keygen_bits(ctx, bits) <= 0)
        rc = igc_fail(IGC_E_INTERNAL, "the key could not be generated");
    if (rc == IGC_OK && progress) {
        EVP_PKEY_CTX_set_app_data(ctx, progress);
        EVP_PKEY_CTX_set_cb(ctx, watch_libcrypto);
    }
    if (rc == IGC_OK && EVP_PKEY_generate(ctx, out) <= 0)
        rc = progress && __atomic_load_n(&progress->cancel, __ATOMIC_RELAXED)
                 ? igc_fail(IGC_E_CANCELLED, NULL)
                 : igc_fail(IGC_E_INTERNAL, "the key could not be generated");
    EVP_PKEY_CTX_free(ctx);
    return rc;
}

int igc_key_generate(const char *type, igc_key **out)
{
    return igc_key_generate_with(type, "native", 0, NULL, out);
}

int igc_key_generate_with(const char *type, const char *generator, int threads, igc_progress *progress,
                          igc_key **out)
{
    const key_kind *kind = NULL;
    EVP_PKEY *pkey = NULL;
    size_t i;
    int native, rc = IGC_OK;

    igc_begin();
    if (type == NULL || generator == NULL || out == NULL || threads < 0 || threads > 4)
        return igc_fail(IGC_E_ARG, NULL);
    *out = NULL;
    native = strcmp(generator, "native") == 0;
    if (!native && strcmp(generator, "openssl") != 0)
        return igc_fail(IGC_E_ARG, "there is no such key generator");
    for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strcmp(type, kinds[i].type) == 0)
            kind = &kinds[i];
    if (kind == NULL)
        return igc_fail(IGC_E_KEYTYPE, NULL);
    if (kind->rsa_bits)
        rc = native ? igc_rsa_generate((int)kind->rsa_bits, threads, progress, &pkey)
                    : libcrypto_rsa((int)kind->rsa_bits, progress, &pkey);
    else if (kind->curve)
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", kind->curve);
    else
        pkey = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    if (rc)
        return rc;
    if (pkey == NULL)
        return igc_fail(IGC_E_INTERNAL, "the key could not be generated");
    rc = wrap(pkey, kind->type, out);
    if (rc)
        EVP_PKEY_free(pkey);
    return rc;
}

void igc_key_free(igc_key *key)
{
    if (key == NULL)
        return;
    EVP_PKEY_free(key->pkey); /* libcrypto clears private numbers when it frees them */
    OPENSSL_clear_free(key, sizeof(*key));
}

const char *igc_key_type(const igc_key *key)
{
    return key ? key->type : "";
}

typedef struct {
    const uint8_t *password;
    size_t len;
    int asked;
} pem_password;

static int give_password(char *buf, int size, int rwflag, void *arg)
{
    pem_password *given = arg;

    (void)rwflag;
    given->asked = 1;
    if (given->password == NULL || given->len > (size_t)size)
        return -1;
    memcpy(buf, given->password, given->len);
    return (int)given->len;
}

/* The whole of a descriptor into `data` (size IGC_MAX_PEM + 1). */
static int read_all(int fd, uint8_t *data, size_t *len)
{
    *len = 0;
    for (;;) {
        ssize_t got = read(fd, data + *len, IGC_MAX_PEM + 1 - *len);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return igc_fail(IGC_E_IO, strerror(errno));
        if (got == 0)
            return IGC_OK;
        *len += (size_t)got;
        if (*len > IGC_MAX_PEM)
            return igc_fail(IGC_E_LIMIT, "the key file is larger than 64 KiB");
    }
}

static long scrypt_cost(const ASN1_TYPE *parameter)
{
    SCRYPT_PARAMS *scrypt = ASN1_TYPE_unpack_sequence(ASN1_ITEM_rptr(SCRYPT_PARAMS), parameter);
    const ASN1_INTEGER *factors[3];
    long cost = scrypt ? 1 : -1;
    int i;

    if (scrypt) {
        factors[0] = scrypt->costParameter;
        factors[1] = scrypt->blockSize;
        factors[2] = scrypt->parallelizationParameter;
    }
    for (i = 0; cost > 0 && i < 3; i++) {
        long factor = ASN1_INTEGER_get(factors[i]);
        if (factor <= 0)
            cost = -1;
        else
            cost = cost > LONG_MAX / factor ? LONG_MAX : cost * factor;
    }
    SCRYPT_PARAMS_free(scrypt);
    return cost;
}

long igc_pbe_cost(const X509_ALGOR *alg)
{
    const ASN1_OBJECT *oid;
    const void *value;
    int type;
    long cost = -1;

    X509_ALGOR_get0(&oid, &type, &value, alg);
    if (type != V_ASN1_SEQUENCE)
        return -1;
    if (OBJ_obj2nid(oid) == NID_pbes2) {
        PBE2PARAM *pbe2 = ASN1_TYPE_unpack_sequence(ASN1_ITEM_rptr(PBE2PARAM), alg->parameter);
        if (pbe2 && OBJ_obj2nid(pbe2->keyfunc->algorithm) == NID_id_pbkdf2) {
            PBKDF2PARAM *kdf =
                ASN1_TYPE_unpack_sequence(ASN1_ITEM_rptr(PBKDF2PARAM), pbe2->keyfunc->parameter);
            cost = kdf ? ASN1_INTEGER_get(kdf->iter) : -1;
            PBKDF2PARAM_free(kdf);
        } else if (pbe2) { /* libcrypto knows no third */
            cost = scrypt_cost(pbe2->keyfunc->parameter);
        }
        PBE2PARAM_free(pbe2);
    } else {
        PBEPARAM *pbe = ASN1_TYPE_unpack_sequence(ASN1_ITEM_rptr(PBEPARAM), alg->parameter);
        cost = pbe ? ASN1_INTEGER_get(pbe->iter) : -1;
        PBEPARAM_free(pbe);
    }
    return cost;
}

/* Before any derivation: does an encrypted key of the file ask for more than anybody would? Passes over
   what does not parse, as libcrypto's own reader does. */
static int bounded(const uint8_t *data, size_t len)
{
    BIO *bio = BIO_new_mem_buf(data, (int)len);
    int ok = bio != NULL;

    while (ok && !BIO_eof(bio)) {
        char *name = NULL, *header = NULL;
        unsigned char *der = NULL;
        int before = BIO_pending(bio);
        long size = 0;

        if (PEM_read_bio(bio, &name, &header, &der, &size)) {
            if (strcmp(name, PEM_STRING_PKCS8) == 0) {
                const unsigned char *at = der;
                X509_SIG *sig = d2i_X509_SIG(NULL, &at, size);
                const X509_ALGOR *alg = NULL;
                if (sig)
                    X509_SIG_get0(sig, &alg, NULL);
                ok = alg == NULL || igc_pbe_cost(alg) <= IGC_MAX_KEY_ITERATIONS;
                X509_SIG_free(sig);
            }
            OPENSSL_free(name);
            OPENSSL_free(header);
            OPENSSL_clear_free(der, (size_t)size);
        } else if (BIO_pending(bio) >= before) {
            break;
        }
    }
    BIO_free(bio);
    ERR_clear_error();
    return ok;
}

int igc_key_read(int fd, const uint8_t *password, size_t password_len, igc_key **out)
{
    pem_password given = {password, password_len, 0};
    uint8_t *data = NULL;
    EVP_PKEY *pkey = NULL;
    BIO *bio = NULL;
    size_t len = 0;
    int rc;

    igc_begin();
    if (out == NULL || fd < 0)
        return igc_fail(IGC_E_ARG, NULL);
    *out = NULL;
    data = OPENSSL_malloc(IGC_MAX_PEM + 1);
    if (data == NULL)
        return igc_fail(IGC_E_NOMEM, NULL);
    rc = read_all(fd, data, &len);
    if (rc)
        goto out;
    if (password && !bounded(data, len)) {
        rc = igc_fail(IGC_E_LIMIT, "the encryption of the key asks for more than 10000000 iterations");
        goto out;
    }
    bio = BIO_new_mem_buf(data, (int)len);
    if (bio == NULL) {
        rc = igc_fail(IGC_E_NOMEM, NULL);
        goto out;
    }
    pkey = PEM_read_bio_PrivateKey(bio, NULL, give_password, &given);
    if (pkey == NULL) {
        rc = given.asked ? igc_fail(IGC_E_PASSWORD, given.password ? NULL : "the key is encrypted")
                         : igc_fail(IGC_E_PARSE, "this is not a private key in PEM");
        goto out;
    }
    rc = wrap(pkey, NULL, out);
    if (rc == IGC_OK)
        pkey = NULL;
out:
    EVP_PKEY_free(pkey);
    BIO_free(bio);
    OPENSSL_clear_free(data, IGC_MAX_PEM + 1);
    return rc;
}

int igc_key_write(const igc_key *key, int fd, const igc_secret *secret)
{
    PKCS8_PRIV_KEY_INFO *p8 = NULL;
    X509_SIG *sig = NULL;
    BIO *bio = NULL;
    igc_buf pem = {NULL, 0};
    int ok = 0, rc;

    igc_begin();
    if (key == NULL || fd < 0 || (secret && igc_secret_len(secret) == 0))
        return igc_fail(IGC_E_ARG, NULL);
    bio = BIO_new(BIO_s_secmem() ? BIO_s_secmem() : BIO_s_mem());
    p8 = EVP_PKEY2PKCS8(key->pkey);
    if (bio == NULL || p8 == NULL) {
        rc = igc_fail(IGC_E_INTERNAL, NULL);
        goto out;
    }
    if (secret) {
        sig = igc_secret_seal_key(secret, p8);
        ok = sig && PEM_write_bio_PKCS8(bio, sig);
    } else {
        ok = PEM_write_bio_PKCS8_PRIV_KEY_INFO(bio, p8);
    }
    rc = ok ? igc_buf_take_bio(&pem, bio) : igc_fail(IGC_E_INTERNAL, NULL);
    if (rc == IGC_OK)
        rc = igc_fd_write_all(fd, pem.data, pem.len);
out:
    igc_buf_free(&pem);
    X509_SIG_free(sig);
    PKCS8_PRIV_KEY_INFO_free(p8); /* clears the key it holds */
    BIO_free(bio);
    return rc;
}

/* FIPS 186-5 A.1.1: |p - q| > 2^(nlen/2 - 100), else Fermat's method factors n. A key without its primes
 * passes. */
static int primes_apart(const EVP_PKEY *pkey)
{
    BIGNUM *p = NULL, *q = NULL;
    int apart = 1;

    if (EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_FACTOR1, &p) &&
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_FACTOR2, &q))
        apart = BN_sub(p, p, q) && BN_num_bits(p) > EVP_PKEY_get_bits(pkey) / 2 - 100;
    BN_clear_free(p);
    BN_clear_free(q);
    ERR_clear_error();
    return apart;
}

int igc_key_check(const igc_key *key)
{
    EVP_PKEY_CTX *ctx;
    int ok;

    igc_begin();
    if (key == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key->pkey, NULL);
    if (ctx == NULL)
        return igc_fail(IGC_E_INTERNAL, NULL);
    ok = EVP_PKEY_check(ctx) == 1;
    EVP_PKEY_CTX_free(ctx);
    if (ok && EVP_PKEY_is_a(key->pkey, "RSA") && !primes_apart(key->pkey))
        return igc_fail(IGC_E_BADKEY, "the primes of the key are too close to each other");
    return ok ? IGC_OK : igc_fail(IGC_E_BADKEY, NULL);
}

int igc_key_spki(const igc_key *key, igc_buf *out)
{
    unsigned char *der = NULL;
    int len, rc;

    igc_begin();
    if (key == NULL || out == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    *out = (igc_buf){NULL, 0};
    len = i2d_PUBKEY(key->pkey, &der);
    if (len <= 0)
        return igc_fail(IGC_E_INTERNAL, NULL);
    rc = igc_buf_set(out, der, (size_t)len);
    OPENSSL_free(der);
    return rc;
}

/* NULL: the algorithm has its own hash (Ed25519, Ed448). */
static const EVP_MD *fitting_hash(const EVP_PKEY *pkey)
{
    int bits = EVP_PKEY_get_bits(pkey);

    if (EVP_PKEY_is_a(pkey, "RSA"))
        return bits >= 8192 ? EVP_sha512() : bits >= 4096 ? EVP_sha384() : EVP_sha256();
    if (EVP_PKEY_is_a(pkey, "EC"))
        return bits > 384 ? EVP_sha512() : bits > 256 ? EVP_sha384() : EVP_sha256();
    return NULL;
}

/* AlgorithmIdentifier: RSA with NULL parameters (RFC 8017 A.2.4), the others without (RFC 5758, 8410). */
static int signature_algorithm(const EVP_PKEY *pkey, const EVP_MD *md, igc_buf *out)
{
    X509_ALGOR *alg = X509_ALGOR_new();
    unsigned char *der = NULL;
    int base = EVP_PKEY_get_base_id(pkey);
    int nid = base, len, rc = IGC_E_INTERNAL;

    if (alg == NULL)
        return igc_fail(IGC_E_NOMEM, NULL);
    if (md && !OBJ_find_sigid_by_algs(&nid, EVP_MD_get_type(md), base))
        goto out;
    if (!X509_ALGOR_set0(alg, OBJ_nid2obj(nid), base == EVP_PKEY_RSA ? V_ASN1_NULL : V_ASN1_UNDEF, NULL))
        goto out;
    len = i2d_X509_ALGOR(alg, &der);
    if (len <= 0)
        goto out;
    rc = igc_buf_set(out, der, (size_t)len);
    OPENSSL_free(der);
out:
    X509_ALGOR_free(alg);
    return rc ? igc_fail(rc, NULL) : IGC_OK;
}

static int sign(const igc_key *key, const EVP_MD *md, const uint8_t *tbs, size_t tbs_len, igc_buf *alg,
                igc_buf *sig)
{
    EVP_MD_CTX *ctx = NULL;
    uint8_t *data = NULL;
    size_t len = 0;
    int rc = signature_algorithm(key->pkey, md, alg);

    if (rc)
        return rc;
    ctx = EVP_MD_CTX_new();
    if (ctx == NULL || EVP_DigestSignInit(ctx, NULL, md, NULL, key->pkey) != 1 ||
        EVP_DigestSign(ctx, NULL, &len, tbs, tbs_len) != 1 || (data = OPENSSL_malloc(len)) == NULL ||
        EVP_DigestSign(ctx, data, &len, tbs, tbs_len) != 1)
        rc = igc_fail(IGC_E_INTERNAL, "the key could not sign");
    else
        rc = igc_buf_set(sig, data, len);
    if (rc)
        igc_buf_free(alg);
    OPENSSL_free(data);
    EVP_MD_CTX_free(ctx);
    return rc;
}

int igc_key_sign(const igc_key *key, const uint8_t *tbs, size_t tbs_len, igc_buf *alg, igc_buf *sig)
{
    igc_begin();
    if (key == NULL || (tbs == NULL && tbs_len) || alg == NULL || sig == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    *alg = *sig = (igc_buf){NULL, 0};
    if (!EVP_PKEY_is_a(key->pkey, "RSA") && !EVP_PKEY_is_a(key->pkey, "EC") &&
        !EVP_PKEY_is_a(key->pkey, "ED25519") && !EVP_PKEY_is_a(key->pkey, "ED448"))
        return igc_fail(IGC_E_KEYTYPE, NULL);
    return sign(key, fitting_hash(key->pkey), tbs, tbs_len, alg, sig);
}

int igc_key_sign_with(const igc_key *key, const char *digest, const uint8_t *tbs, size_t tbs_len,
                      igc_buf *alg, igc_buf *sig)
{
    static const char *const allowed[] = {"sha1", "sha256", "sha384", "sha512"};
    size_t i;

    igc_begin();
    if (key == NULL || digest == NULL || (tbs == NULL && tbs_len) || alg == NULL || sig == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    *alg = *sig = (igc_buf){NULL, 0};
    if (!EVP_PKEY_is_a(key->pkey, "RSA") && !EVP_PKEY_is_a(key->pkey, "EC"))
        return igc_fail(IGC_E_KEYTYPE, NULL);
    for (i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++)
        if (strcmp(digest, allowed[i]) == 0)
            return sign(key, EVP_get_digestbyname(digest), tbs, tbs_len, alg, sig);
    return igc_fail(IGC_E_ARG, "this digest is not offered");
}
