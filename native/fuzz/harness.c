/* harness.c - one foreign-bytes parser for a fuzzer; TARGET picks it: pfx, cms, message,
   cert or key. For "message" MESSAGE_KEY (PEM) and MESSAGE_CERT (DER) name files of the recipient. */
#define _GNU_SOURCE
#include "igc.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STRING_(x) #x
#define STRING(x) STRING_(x)

static const uint8_t password[] = "changeit"; /* of the seeds */

/* On failure an output is left empty: the header says so, and a caller counts on it. */
static void want(int condition)
{
    if (!condition)
        abort();
}

static void pfx(const uint8_t *data, size_t len)
{
    int want_key;
    igc_pfx out;

    for (want_key = 0; want_key < 2; want_key++) {
        int rc = igc_pfx_read(data, len, password, 8, want_key, &out);
        want(rc != IGC_OK ? out.key == NULL && out.cert.data == NULL && out.trusted.data == NULL
                          : (out.key != NULL) == want_key);
        igc_pfx_clear(&out);
    }
}

static void cms(const uint8_t *data, size_t len)
{
    igc_buf out;
    int rc = igc_cms_certs(data, len, &out);

    want(rc == IGC_OK || out.data == NULL);
    igc_buf_free(&out);
}

static igc_key *recipient;
static igc_certs *mine, *nobody;

/* What a SCEP message goes through: signature, then the envelope in it; an envelope by itself, too. */
static void message(const uint8_t *data, size_t len)
{
    igc_signed out;
    igc_buf content;
    char cipher[32];
    int rc = igc_signed_open(data, len, nobody, 1, 1, &out);

    want(rc == IGC_OK ||
         (out.content.data == NULL && out.signer.data == NULL && out.attributes.data == NULL));
    if (rc == IGC_OK) {
        rc = igc_envelope_open(out.content.data, out.content.len, recipient, mine, 1, &content, cipher);
        want(rc == IGC_OK || content.data == NULL);
        igc_buf_free(&content);
    }
    igc_signed_clear(&out);
    rc = igc_envelope_open(data, len, recipient, mine, 1, &content, cipher);
    want(rc == IGC_OK || content.data == NULL);
    igc_buf_free(&content);
}

static void read_recipient(void)
{
    static uint8_t der[8192];
    const char *key_file = getenv("MESSAGE_KEY"), *cert_file = getenv("MESSAGE_CERT");
    int key_fd = key_file ? open(key_file, O_RDONLY) : -1,
        cert_fd = cert_file ? open(cert_file, O_RDONLY) : -1;
    ssize_t size = cert_fd >= 0 ? read(cert_fd, der, sizeof(der)) : -1;

    if (size <= 0 || igc_key_read(key_fd, NULL, 0, &recipient) != IGC_OK ||
        igc_certs_read(der, (size_t)size, &mine) != IGC_OK || igc_certs_read(NULL, 0, &nobody) != IGC_OK)
        abort();
    close(key_fd);
    close(cert_fd);
}

static void cert(const uint8_t *data, size_t len)
{
    igc_cert out;
    igc_buf chain;
    char type[64];
    int rc = igc_cert_parse(data, len, &out);

    if (rc == IGC_OK) {
        igc_spki_type(out.spki.data, out.spki.len, type);
        igc_chain_verify(data, len, data, len, data, len, out.not_before, IGC_PURPOSE_TLS_SERVER,
                         "a.example.test", 1, &chain);
        igc_buf_free(&chain);
    }
    want(rc == IGC_OK || (out.spki.data == NULL && out.subject.data == NULL));
    igc_cert_clear(&out);
}

static void key(const uint8_t *data, size_t len)
{
    static int fd = -1;
    igc_buf alg, sig;
    igc_key *out;

    if (fd < 0)
        fd = memfd_create("key", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, len, 0) != (ssize_t)len ||
        lseek(fd, 0, SEEK_SET) != 0)
        abort();
    if (igc_key_read(fd, password, 8, &out) == IGC_OK) {
        if (igc_key_spki(out, &alg) == IGC_OK)
            igc_buf_free(&alg);
        if (igc_key_sign(out, data, len, &alg, &sig) == IGC_OK) {
            igc_buf_free(&alg);
            igc_buf_free(&sig);
        }
        igc_key_free(out);
    } else {
        want(out == NULL);
    }
}

/* Without libcrypto's exit handler its globals stay reachable when leaks are looked for; with it a provider
   that is still loaded (the legacy one, once per process) counts as a leak. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    if (OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, NULL) != 1)
        return 1;
    if (strcmp("message", STRING(TARGET)) == 0)
        read_recipient();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const struct {
        const char *name;
        void (*run)(const uint8_t *data, size_t len);
    } targets[] = {{"pfx", pfx}, {"cms", cms}, {"message", message}, {"cert", cert}, {"key", key}};
    size_t i;

    for (i = 0; i < sizeof(targets) / sizeof(targets[0]); i++)
        if (strcmp(targets[i].name, STRING(TARGET)) == 0)
            targets[i].run(data, len);
    return 0;
}
