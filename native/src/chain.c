/* chain.c - building and verifying a certificate chain at a given time. */
#include "inner.h"

#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <time.h>

#define MAX_CHAIN_DEPTH 10

static int set_host(X509_VERIFY_PARAM *param, const char *host)
{
    if (X509_VERIFY_PARAM_set1_ip_asc(param, host))
        return 1;
    ERR_clear_error();
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return X509_VERIFY_PARAM_set1_host(param, host, 0);
}

static int set_params(X509_STORE_CTX *ctx, int64_t at, int purpose, const char *host, int partial)
{
    X509_VERIFY_PARAM *param = X509_STORE_CTX_get0_param(ctx);
    static const int purposes[] = {X509_PURPOSE_ANY, X509_PURPOSE_SSL_SERVER, X509_PURPOSE_SSL_CLIENT};

    X509_VERIFY_PARAM_set_time(param, (time_t)at);
    X509_VERIFY_PARAM_set_depth(param, MAX_CHAIN_DEPTH);
    X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_TRUSTED_FIRST | X509_V_FLAG_CHECK_SS_SIGNATURE |
                                           (partial ? X509_V_FLAG_PARTIAL_CHAIN : 0));
    if (!X509_VERIFY_PARAM_set_purpose(param, purposes[purpose]))
        return 0;
    return host == NULL || set_host(param, host);
}

static X509_STORE *make_store(STACK_OF(X509) * anchors)
{
    X509_STORE *store = X509_STORE_new();
    int i;

    for (i = 0; store && i < sk_X509_num(anchors); i++) {
        if (!X509_STORE_add_cert(store, sk_X509_value(anchors, i))) {
            X509_STORE_free(store);
            store = NULL;
        }
    }
    return store;
}

static int run(X509 *leaf, STACK_OF(X509) * pool, X509_STORE *store, int64_t at, int purpose,
               const char *host, int partial, igc_buf *chain)
{
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    STACK_OF(X509) * found;
    int i, rc = IGC_OK;

    if (ctx == NULL || !X509_STORE_CTX_init(ctx, store, leaf, pool) ||
        !set_params(ctx, at, purpose, host, partial)) {
        rc = igc_fail(IGC_E_INTERNAL, NULL);
    } else if (X509_verify_cert(ctx) != 1) {
        int reason = X509_STORE_CTX_get_error(ctx);
        ERR_clear_error();
        rc = igc_fail(IGC_E_CHAIN, X509_verify_cert_error_string(reason));
    } else {
        found = X509_STORE_CTX_get0_chain(ctx);
        for (i = 0; rc == IGC_OK && i < sk_X509_num(found); i++)
            rc = igc_list_add(chain, sk_X509_value(found, i));
    }
    X509_STORE_CTX_free(ctx);
    if (rc)
        igc_buf_free(chain);
    return rc;
}

int igc_chain_verify(const uint8_t *leaf, size_t leaf_len, const uint8_t *pool, size_t pool_len,
                     const uint8_t *anchors, size_t anchors_len, int64_t at, int purpose, const char *host,
                     int partial, igc_buf *chain)
{
    STACK_OF(X509) *between = NULL, *roots = NULL;
    X509_STORE *store = NULL;
    X509 *cert = NULL;
    const uint8_t *next = leaf;
    size_t rest = leaf_len;
    int rc = IGC_OK;

    igc_begin();
    if (leaf == NULL || (pool == NULL && pool_len) || (anchors == NULL && anchors_len) || chain == NULL ||
        purpose < IGC_PURPOSE_ANY || purpose > IGC_PURPOSE_TLS_CLIENT)
        return igc_fail(IGC_E_ARG, NULL);
    *chain = (igc_buf){NULL, 0};
    cert = igc_list_next(&next, &rest);
    if (cert == NULL || rest != 0) {
        rc = igc_fail(IGC_E_PARSE, "this is not a certificate");
        goto out;
    }
    between = igc_list_parse(pool, pool_len, &rc);
    if (between == NULL)
        goto out;
    roots = igc_list_parse(anchors, anchors_len, &rc);
    if (roots == NULL)
        goto out;
    store = make_store(roots);
    rc =
        store ? run(cert, between, store, at, purpose, host, partial, chain) : igc_fail(IGC_E_INTERNAL, NULL);
out:
    X509_STORE_free(store);
    sk_X509_pop_free(roots, X509_free);
    sk_X509_pop_free(between, X509_free);
    X509_free(cert);
    return rc;
}
