/* test_core.c - the native core from the outside, to be run under the sanitizers. */
#include "core.h"

static void errors_and_buffers(void)
{
    igc_buf list = {NULL, 0};
    int i;

    CHECK(strcmp(igc_error_name(IGC_E_PARSE), "PARSE") == 0 && strcmp(igc_error_name(-1), "?") == 0);
    CHECK(strcmp(igc_error_name(IGC_E_COUNT), "?") == 0 && igc_error_text(IGC_E_COUNT)[0] != 0);
    CHECK(igc_version()[0] >= '3');
    for (i = 0; i < 1000; i++)
        igc_buf_record(&list, (uint8_t)i, "abcdefg", (size_t)i % 8);
    CHECK(list.len == 1000 * 5 + 125 * 28);
    igc_buf_free(&list);
    CHECK(list.data == NULL && list.len == 0);
    igc_buf_free(&list);
    igc_buf_free(NULL);
}

int main(void)
{
    static const char *const types[] = {
        "ec_prime256v1",      "ec_secp384r1",       "ec_secp521r1",  "ec_secp256k1", "ec_brainpoolP256r1",
        "ec_brainpoolP384r1", "ec_brainpoolP512r1", "ecdsa_ed25519", "ed448",        "rsa_2048",
    };
    enum { COUNT = sizeof(types) / sizeof(types[0]) };
    igc_key *keys[COUNT];
    int i;

    errors_and_buffers();
    pfx_refusals();
    for (i = 0; i < COUNT; i++) {
        keys[i] = new_key(types[i]);
        if (!CHECK(keys[i] != NULL))
            goto end; /* nothing below makes sense without it */
        CHECK(strcmp(igc_key_type(keys[i]), types[i]) == 0);
        CODE(OK, igc_key_check(keys[i]));
        signing(keys[i]);
        storing(keys[i]);
        certificate(keys[i]);
        pfx_round_trip(keys[i], 0);
        pfx_round_trip(keys[i], 1);
    }
    key_refusals(keys[0]);
    pss(keys[COUNT - 1]);
    chain(keys[0], keys[1], keys[2]);
    chain(keys[COUNT - 1], keys[0], keys[7]);
    cms(keys[0]);
    messages(keys[COUNT - 1], keys[0]);
    costly_key();
end:
    while (i-- > 0)
        igc_key_free(keys[i]);
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
