/* error.c - error names and sentences; the one gate to libcrypto's error queue; its legacy provider. */
#include "inner.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/provider.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
#define IGC_X(name, text) #name,
    IGC_ERRORS(IGC_X)
#undef IGC_X
};
static const char *const texts[] = {
#define IGC_X(name, text) text,
    IGC_ERRORS(IGC_X)
#undef IGC_X
};

static _Thread_local char reasons[1024];

const char *igc_error_name(int code)
{
    return code >= 0 && code < IGC_E_COUNT ? names[code] : "?";
}

const char *igc_error_text(int code)
{
    return code >= 0 && code < IGC_E_COUNT ? texts[code] : "unknown error";
}

const char *igc_reasons(void)
{
    return reasons;
}

static CRYPTO_ONCE legacy_once = CRYPTO_ONCE_STATIC_INIT;

static void load_legacy(void)
{
    OSSL_PROVIDER_try_load(NULL, "legacy", 1);
    ERR_clear_error();
}

void igc_load_legacy(void)
{
    CRYPTO_THREAD_run_once(&legacy_once, load_legacy);
}

void igc_sha256(const uint8_t *data, size_t len, uint8_t digest[32])
{
    if (!EVP_Digest(len ? (const void *)data : "", len, digest, NULL, EVP_sha256(), NULL))
        abort(); /* a libcrypto without SHA-256; a digest that is none would pass for one */
}

const char *igc_version(void)
{
    return OpenSSL_version(OPENSSL_VERSION_STRING);
}

void igc_begin(void)
{
    ERR_clear_error();
    reasons[0] = '\0';
}

static void add_reason(const char *text)
{
    size_t used = strlen(reasons);

    if (text == NULL || *text == '\0' || strstr(reasons, text) != NULL)
        return;
    /* A reason that does not fit is left out whole: the first ones say most. */
    if (used + strlen(text) + 2 > sizeof(reasons))
        return;
    snprintf(reasons + used, sizeof(reasons) - used, "%s%s", used ? "\n" : "", text);
}

/* libcrypto's error *data* is left out: it may quote input. Its reason strings are constants. */
int igc_fail(int code, const char *detail)
{
    unsigned long err;

    add_reason(detail);
    while ((err = ERR_get_error()) != 0)
        add_reason(ERR_reason_error_string(err));
    return code;
}
