/* harness.c - one foreign-bytes parser for a fuzzer; TARGET picks it: pfx, cms, cert or key. */
#define _GNU_SOURCE
#include "igc.h"

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
    return OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, NULL) == 1 ? 0 : 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const struct {
        const char *name;
        void (*run)(const uint8_t *data, size_t len);
    } targets[] = {{"pfx", pfx}, {"cms", cms}, {"cert", cert}, {"key", key}};
    size_t i;

    for (i = 0; i < sizeof(targets) / sizeof(targets[0]); i++)
        if (strcmp(targets[i].name, STRING(TARGET)) == 0)
            targets[i].run(data, len);
    return 0;
}
