/* inner.h - shared by the files of the core; not part of its interface. */
#ifndef IGC_INNER_H
#define IGC_INNER_H

#include "../include/igc.h"

#include <openssl/asn1.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#define IGC_MAX_CERT (256u << 10)
#define IGC_MAX_LIST_CERTS 100
#define IGC_MAX_PEM (64u << 10)
#define IGC_MAX_PASSWORD 1024
#define IGC_MAX_KEY_ITERATIONS 10000000 /* that are made, and that are followed when read */

struct igc_key {
    EVP_PKEY *pkey;
    char type[64];
};

/* Every public function starts with this: empties libcrypto's queue and our own detail. */
void igc_begin(void);
/* Fail with `code`; collects libcrypto's queue. `detail` is a plain sentence or NULL. Returns code. */
int igc_fail(int code, const char *detail);

/* RC2-40 and RC4 of old keystores, and single DES, live in libcrypto's legacy provider, which an image may
 * lack. */
void igc_load_legacy(void);

int igc_buf_set(igc_buf *buf, const void *data, size_t len); /* IGC_OK or IGC_E_NOMEM */
int igc_buf_append(igc_buf *buf, const void *data, size_t len);
int igc_buf_record(igc_buf *buf, uint8_t tag, const void *data, size_t len);
/* Moves the content of a memory BIO out and wipes what the BIO held. */
int igc_buf_take_bio(igc_buf *buf, BIO *bio);

int igc_fd_write_all(int fd, const uint8_t *data, size_t len); /* IGC_OK or IGC_E_IO */

/* Name of the type of `pkey` into `type` (64 bytes). IGC_OK also for types outside the twelve. */
void igc_pkey_type(const EVP_PKEY *pkey, char *type);
/* IGC_E_BADKEY / IGC_E_KEYTYPE for a public key nobody may use. */
int igc_pkey_sane(const EVP_PKEY *pkey);

/* Cost of a password-based encryption before it runs: iterations of its PBKDF, or N * r * p of scrypt.
   -1 when its parameters do not parse; LONG_MAX when beyond counting. */
long igc_pbe_cost(const X509_ALGOR *alg);

/* `len` bytes encrypted under the secret with a new IV, and the AlgorithmIdentifier that says how. 1, or 0
 * with both NULL. */
int igc_secret_seal(const igc_secret *secret, const uint8_t *der, int len, X509_ALGOR **alg,
                    ASN1_OCTET_STRING **sealed);
X509_SIG *igc_secret_seal_key(const igc_secret *secret, const PKCS8_PRIV_KEY_INFO *p8); /* NULL on failure */
const char *igc_secret_text(const igc_secret *secret); /* the password, ends with NUL */
size_t igc_secret_len(const igc_secret *secret);
int igc_secret_iterations(const igc_secret *secret);

/* Next certificate of a list: advances *data. NULL with *len == 0: end. Fails by NULL with *len != 0. */
X509 *igc_list_next(const uint8_t **data, size_t *len);
/* A whole list as a stack, each certificate parsed by libcrypto. NULL on failure (reported). */
STACK_OF(X509) * igc_list_parse(const uint8_t *data, size_t len, int *code);
int igc_list_add(igc_buf *list, X509 *cert);

/* DER or BER within bounds? Iterative. `depth` is the nesting allowed, `nodes` the number of elements.
 *used is the length of the first element. IGC_OK, IGC_E_PARSE or IGC_E_LIMIT. */
int igc_ber_scan(const uint8_t *data, size_t len, int depth, size_t nodes, size_t *used);

#endif
