/*
 * igc.h - the native core of igelcert, on libcrypto 3.0 or later.
 *
 * Ownership
 *   Inputs are borrowed for the length of the call and never kept.
 *   Outputs (igc_buf, igc_key *, igc_secret *, igc_cert, igc_pfx) belong to the caller, who ends them
 *   with the matching igc_*_free / igc_*_clear; each wipes what it frees. All of them
 *   accept NULL or an empty value. On failure an output is left empty.
 *   NULL is an error (IGC_E_ARG) for every other pointer unless the comment allows it.
 *   A pointer with length 0 is an empty input; the pointer may then be NULL.
 *
 * Private keys
 *   live in igc_key only. They enter and leave through file descriptors, never through a
 *   buffer of the caller. The serialised form is built in memory that is wiped.
 *
 * Errors
 *   Every int function returns IGC_OK or one of IGC_E_*. libcrypto's error queue is
 *   cleared on entry; on failure its reasons, and a detail of our own, are kept for the
 *   calling thread: igc_reasons(). No message ever holds a secret.
 *
 * Threads
 *   No function touches shared mutable state. A handle may be used by several threads at
 *   once for reading (sign, write, spki); freeing it must come last. Making an RSA key starts
 *   threads, which have ended when the call returns.
 *
 * Certificate lists
 *   are DER certificates one after the other, with nothing between.
 *
 * Records
 *   (igc_cert.subject, .issuer, .san) are one after the other: one byte tag, four bytes
 *   length (big-endian), then that many bytes.
 */
#ifndef IGC_H
#define IGC_H

#include <stddef.h>
#include <stdint.h>

/* name, sentence. The order is the number: append only. */
#define IGC_ERRORS(X) \
    X(OK, "no error") \
    X(ARG, "invalid argument") \
    X(NOMEM, "out of memory") \
    X(INTERNAL, "the crypto library refused the operation") \
    X(IO, "reading or writing failed") \
    X(PARSE, "the data is not well-formed") \
    X(LIMIT, "the data is larger or more complex than allowed") \
    X(KEYTYPE, "the key type is not supported") \
    X(PASSWORD, "the password is wrong or missing") \
    X(SIGNATURE, "the signature does not verify") \
    X(MISMATCH, "the private key and the certificate do not belong together") \
    X(BADKEY, "the key is not consistent") \
    X(CHAIN, "the certificate chain does not verify") \
    X(NOKEY, "there is no private key in it") \
    X(NOCERT, "there is no certificate for the private key in it") \
    X(MANYKEYS, "there is more than one private key in it") \
    X(KEYPASSWORD, "the private key has a password of its own that differs from the store's") \
    X(FORMAT, "the data is in another format") \
    X(INTEGRITY, "the integrity check (MAC) fails") \
    X(CANCELLED, "the operation was cancelled")

enum igc_error {
#define IGC_X(name, text) IGC_E_##name,
    IGC_ERRORS(IGC_X)
#undef IGC_X
        IGC_E_COUNT
};
#define IGC_OK IGC_E_OK

const char *igc_error_name(int code); /* "PARSE"; "?" for an unknown code */
const char *igc_error_text(int code);
/* Reasons of the last failure in this thread, one per line, oldest first; "" when none.
   Valid until the next call into the core from this thread. */
const char *igc_reasons(void);
const char *igc_version(void); /* of libcrypto */
void igc_sha256(const uint8_t *data, size_t len, uint8_t digest[32]);

typedef struct {
    uint8_t *data;
    size_t len;
} igc_buf;
void igc_buf_free(igc_buf *buf); /* wipes, frees, empties */

/* ---- passwords ---- */
/* A password (UTF-8, at most 1024 bytes) with the key that PBKDF2-HMAC-SHA256 (RFC 8018 5.2) makes of it
   with a random 16 byte salt and `iterations` (1 000 .. 10 000 000). Derived here, once: all that is
   written under it has this key, and an IV of its own. Never changes, so threads may share it. */
typedef struct igc_secret igc_secret;
int igc_secret_new(const uint8_t *password, size_t len, int iterations, igc_secret **out);
void igc_secret_free(igc_secret *secret); /* wipes */

/* ---- keys ---- */
typedef struct igc_key igc_key;

/* Key types: rsa_2048 rsa_3072 rsa_4096 rsa_8192 ecdsa_ed25519 ec_brainpoolP256r1
   ec_brainpoolP384r1 ec_brainpoolP512r1 ec_prime256v1 ec_secp256k1 ec_secp384r1
   ec_secp521r1. EC keys carry a named curve, never explicit parameters. */
int igc_key_generate(const char *type, igc_key **out);
/* For another thread to look at while a key is made. All zero at first. */
typedef struct {
    int cancel;      /* in: 1 stops the generation, which then gives IGC_E_CANCELLED */
    uint32_t tested; /* out, RSA: candidates that were tested for primality */
    uint32_t primes; /* out, RSA: primes found, 0 .. 2 */
} igc_progress;
/* generator, of RSA keys only: "native" (FIPS 186-5 A.1.6, see docs/rsa.md) or "openssl"
   (libcrypto's own). threads: 1 .. 4 for the native one; 0: as many as there are processors,
   at most four. progress may be NULL. */
int igc_key_generate_with(const char *type, const char *generator, int threads, igc_progress *progress,
                          igc_key **out);
void igc_key_free(igc_key *key);
/* One of the twelve names, or another descriptive one ("rsa_1024", "ed448", "dsa_2048",
   "unknown") for a key that was read. Lives as long as the key. */
const char *igc_key_type(const igc_key *key);
/* Reads PEM (PKCS#8 encrypted or plain, or a traditional form) of at most 64 KiB from a
   descriptor. password may be NULL: then an encrypted key gives IGC_E_PASSWORD. A file that asks
   for more than ten million iterations of its key derivation gives IGC_E_LIMIT before any runs. */
int igc_key_read(int fd, const uint8_t *password, size_t password_len, igc_key **out);
/* PKCS#8 PEM: PBES2 (RFC 8018) with AES-256-CBC under `secret`, which is not empty; plain when it
   is NULL. Writes all or fails. */
int igc_key_write(const igc_key *key, int fd, const igc_secret *secret);
/* Every relation of the key (RSA: primes and CRT values), IGC_E_BADKEY when one fails. */
int igc_key_check(const igc_key *key);
int igc_key_spki(const igc_key *key, igc_buf *out); /* SubjectPublicKeyInfo, DER */
/* Signs with the hash that fits the key (RSA PKCS#1 v1.5: SHA-256, from 4096 bits SHA-384,
   from 8192 SHA-512; ECDSA: SHA-256/384/512 by curve size; Ed25519/Ed448 pure).
   alg: AlgorithmIdentifier, DER. */
int igc_key_sign(const igc_key *key, const uint8_t *tbs, size_t tbs_len, igc_buf *alg, igc_buf *sig);

/* The same with a digest of the caller's choice for RSA and ECDSA: "sha1" "sha256" "sha384" "sha512". Keys
   whose signatures fix it (Ed25519, Ed448) give IGC_E_KEYTYPE: RFC 8419 binds them to a digest of their own.
 */
int igc_key_sign_with(const igc_key *key, const char *digest, const uint8_t *tbs, size_t tbs_len,
                      igc_buf *alg, igc_buf *sig);

/* ---- public keys ---- */
/* Type of a SubjectPublicKeyInfo, as igc_key_type(). IGC_E_KEYTYPE: unknown algorithm or
   explicit EC parameters; IGC_E_BADKEY: point not on the curve or infinity, RSA modulus
   even, above 16384 bits or exponent < 3. `type` has room for 64 bytes. */
int igc_spki_type(const uint8_t *spki, size_t len, char *type);
/* alg: AlgorithmIdentifier, DER: RSA PKCS#1 v1.5 or PSS, ECDSA, Ed25519, Ed448; SHA-1 (old
   requests), SHA-2. MD5 and older give IGC_E_SIGNATURE; an algorithm that does not fit the
   key likewise. Trailing bytes in any input are refused. */
int igc_spki_verify(const uint8_t *spki, size_t spki_len, const uint8_t *alg, size_t alg_len,
                    const uint8_t *tbs, size_t tbs_len, const uint8_t *sig, size_t sig_len);

/* ---- X.509 ---- */
typedef struct {
    /* records; tag 1: starts an RDN, 2: one more value of the same RDN; bytes: dotted OID,
       one NUL, value as UTF-8 */
    igc_buf subject, issuer;
    igc_buf subject_der, issuer_der;
    igc_buf subject_text, issuer_text; /* RFC 4514-like, one line, control characters escaped */
    igc_buf cn;                        /* last CN of the subject, UTF-8; empty when none */
    igc_buf serial;                    /* big-endian content octets of the INTEGER */
    /* records; tag = GeneralName context number (1 email, 2 dns, 6 uri: text; 7 ip: 4 or
       16 bytes; others: DER of the value) */
    igc_buf san;
    igc_buf spki;
    char key_type[64];
    uint8_t sha256[32];            /* of the whole certificate */
    uint8_t spki_sha256[32];       /* of the SubjectPublicKeyInfo */
    uint32_t subject_hash;         /* X509_NAME_hash: the name of the links in a hashed directory */
    int64_t not_before, not_after; /* seconds since 1970, UTC */
    int is_ca;                     /* basicConstraints CA, or a self-issued v1 certificate: 0 */
    int self_issued;               /* subject equals issuer */
    int64_t key_usage;             /* KU_* bits as X509_get_key_usage(); -1 when absent */
} igc_cert;
/* One certificate, DER, no trailing bytes, at most 256 KiB. Refuses (IGC_E_PARSE) what RFC
   5280 forbids and libcrypto lets pass: dates that are no dates, notAfter before notBefore,
   an extension twice, inner and outer signature algorithm differing, a version above 3,
   names that are not valid in their string type, a SAN that does not parse. An unknown key
   type is no error (key_type "unknown"). */
int igc_cert_parse(const uint8_t *der, size_t len, igc_cert *out);
void igc_cert_clear(igc_cert *cert);

enum igc_purpose { IGC_PURPOSE_ANY, IGC_PURPOSE_TLS_SERVER, IGC_PURPOSE_TLS_CLIENT };
/* Builds and verifies a chain at `at` (seconds since 1970) from `leaf` over the list `pool`
   to an anchor of the list `anchors`. Anchors need not be self-signed (partial chain) but
   only self-signed ones end a chain when `partial` is 0. host: a DNS name or IP address
   literal the leaf must carry, or NULL. chain: leaf .. anchor as a certificate list.
   IGC_E_CHAIN with the plain reason in igc_reasons(). No revocation. Lists of at most 100
   certificates each; depth at most 10. */
int igc_chain_verify(const uint8_t *leaf, size_t leaf_len, const uint8_t *pool, size_t pool_len,
                     const uint8_t *anchors, size_t anchors_len, int64_t at, int purpose, const char *host,
                     int partial, igc_buf *chain);

/* ---- CMS ---- */
/* Certificates of a SignedData (certs-only: RFC 5652 5.1, RFC 7030 4.1.3), DER or BER
   (indefinite length, segments), as a certificate list in their order. None is no error.
   At most 1 MiB, 200 certificates, nesting 32. Trailing bytes are refused. */
int igc_cms_certs(const uint8_t *ber, size_t len, igc_buf *certs);

/* A certificate list read once, for those who use it again and again (public keys cost more to read than to
   use). As libcrypto reads them: SCEP peers send some that RFC 5280 would not have. At most 100. */
typedef struct igc_certs igc_certs;
int igc_certs_read(const uint8_t *list, size_t len, igc_certs **out);
void igc_certs_free(igc_certs *certs);

/* What an EnvelopedData (RFC 5652 6.1) with one RSA recipient is made of. The content-encryption key is drawn
   here and never leaves but wrapped (RSAES-PKCS1-v1_5). cipher: "aes-128-cbc" "aes-256-cbc" "des-ede3-cbc".
   The recipient is the first of `to`. IGC_E_KEYTYPE when its key is not RSA. */
int igc_envelope_make(const igc_certs *to, const char *cipher, const uint8_t *content, size_t content_len,
                      igc_buf *wrapped, igc_buf *iv, igc_buf *sealed);
/* The content of an EnvelopedData in DER or BER. We are found in it by the first of `mine`, the certificate
   of `key`. cipher (32 bytes) names what it was under, as above. With weak 0 only AES is opened; with 1
   triple DES and single DES, too, which servers write to this day and which is never written here.
   IGC_E_MISMATCH: meant for somebody else; IGC_E_INTEGRITY: it does not decrypt, whatever the cause (no
   oracle: a wrong key and wrong padding are one); IGC_E_LIMIT as in igc_cms_certs. */
int igc_envelope_open(const uint8_t *ber, size_t len, const igc_key *key, const igc_certs *mine, int weak,
                      igc_buf *content, char *cipher);

typedef struct {
    igc_buf content;       /* octets, segments joined */
    int has_content;       /* 0: detached or none */
    igc_buf content_type;  /* dotted OID */
    igc_buf attributes;    /* signed attributes: Attribute, DER, one after the other, as sent */
    igc_buf signer;        /* the certificate that verified, DER */
    igc_buf certs;         /* enclosed certificates, list */
    char digest[32];       /* "sha256" */
    int signed_attributes; /* 0: there are none, and the signature is over the content itself */
} igc_signed;
/* Opens and verifies a SignedData (RFC 5652 5.1) with exactly one signer, DER or BER. The signer's
   certificate is looked for in `signers`, and with `enclosed` in the message, too; no chain is built: who the
   signer is, the caller judges. With signed attributes content type and message digest must be there once
   and agree (RFC 5652 11.1, 11.2). With weak 0 SHA-1 is refused; MD5 always.
   IGC_E_CHAIN: the signer is none of those; IGC_E_SIGNATURE with the reason. */
int igc_signed_open(const uint8_t *ber, size_t len, const igc_certs *signers, int enclosed, int weak,
                    igc_signed *out);
void igc_signed_clear(igc_signed *opened);

/* ---- PKCS#12 ---- */
/* PFX with key, certificate (localKeyID, friendlyName = name) and the list `cas`. modern
   (legacy 0): PBES2 AES-256-CBC, PBKDF2-HMAC-SHA256, MAC SHA-256 of as many iterations;
   legacy 1, for old readers: PBE-SHA1-3DES, MAC SHA-1, at most 2048 iterations. The password
   holds no NUL, and may be empty. */
int igc_pfx_write(int fd, const igc_key *key, const uint8_t *cert, size_t cert_len, const uint8_t *cas,
                  size_t cas_len, const igc_secret *secret, const char *name, int legacy);

enum igc_pfx_flag {
    IGC_PFX_NO_MAC = 1,   /* integrity was not protected */
    IGC_PFX_TRAILING = 2, /* bytes after the end were passed over */
};
typedef struct {
    igc_key *key;
    igc_buf cert;    /* the certificate of the key */
    igc_buf chain;   /* list: certificates that lead from it upwards, leaf's issuer first */
    igc_buf trusted; /* list: all others (Java trustedCertEntry, a server's web certificate) */
    int flags;
} igc_pfx;
/* Opens a keystore: DER or BER, PBES2 and the PKCS#12 PBEs (3DES, RC2-40 by the legacy
   provider when there), any MAC of libcrypto. Bounded: at most 1 MiB, 1 000 000 iterations in total over
   key, bags and MAC (IGC_E_LIMIT, before any derivation runs). IGC_E_FORMAT with the reason when it is a JKS,
   a PEM or not PKCS#12 at all; INTEGRITY never apart from PASSWORD unless the two can be told apart (a broken
   MAC with a password that decrypts); NOKEY, NOCERT, MANYKEYS, KEYPASSWORD, MISMATCH. With want_key 0 a store
   without key opens as a trust store (key NULL). */
int igc_pfx_read(const uint8_t *data, size_t len, const uint8_t *password, size_t password_len, int want_key,
                 igc_pfx *out);
void igc_pfx_clear(igc_pfx *pfx);

#endif
