/* cms_message.c - what EnvelopedData and SignedData share (RFC 5652): SCEP's pkiMessages are one within the
   other. Read by libcrypto's CMS, which takes BER, within bounds. */
#include "cms.h"

#include <openssl/crypto.h>
#include <openssl/objects.h>

#define MAX_DEPTH 32
#define MAX_NODES 200000

CMS_ContentInfo *igc_cms_parse(const uint8_t *ber, size_t len, int type, int *code)
{
    const uint8_t *at = ber;
    CMS_ContentInfo *cms;
    size_t used = 0;

    *code = IGC_OK;
    if (len > IGC_MAX_MESSAGE) {
        *code = igc_fail(IGC_E_LIMIT, "the message is larger than 1 MiB");
        return NULL;
    }
    *code = igc_ber_scan(ber, len, MAX_DEPTH, MAX_NODES, &used);
    if (*code) {
        igc_fail(*code, "this is not a CMS message");
        return NULL;
    }
    if (used != len) {
        *code = igc_fail(IGC_E_PARSE, "there are bytes after the end of the message");
        return NULL;
    }
    cms = d2i_CMS_ContentInfo(NULL, &at, (long)len);
    if (cms == NULL) {
        *code = igc_fail(IGC_E_PARSE, "this is not a CMS message");
        return NULL;
    }
    if (OBJ_obj2nid(CMS_get0_type(cms)) != type) {
        *code =
            igc_fail(IGC_E_FORMAT, type == NID_pkcs7_signed ? "this is a CMS message, but no SignedData"
                                                            : "this is a CMS message, but no EnvelopedData");
        CMS_ContentInfo_free(cms);
        return NULL;
    }
    return cms;
}

int igc_certs_read(const uint8_t *list, size_t len, igc_certs **out)
{
    STACK_OF(X509) * found;
    int rc;

    igc_begin();
    if ((list == NULL && len) || out == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    *out = NULL;
    found = igc_list_parse(list, len, &rc);
    if (found == NULL)
        return rc;
    *out = OPENSSL_zalloc(sizeof(**out));
    if (*out == NULL) {
        sk_X509_pop_free(found, X509_free);
        return igc_fail(IGC_E_NOMEM, NULL);
    }
    (*out)->list = found;
    return IGC_OK;
}

void igc_certs_free(igc_certs *certs)
{
    if (certs == NULL)
        return;
    sk_X509_pop_free(certs->list, X509_free);
    OPENSSL_free(certs);
}

const uint8_t *igc_der_step(const uint8_t *at, const uint8_t **end, int tag, int enter)
{
    const uint8_t *content = at;
    long size;
    int found, class;

    if (at == NULL || at >= *end)
        return NULL;
    if (ASN1_get_object(&content, &size, &found, &class, *end - at) & 0x81 || (tag >= 0 && *at != tag))
        return NULL;
    if (enter) {
        *end = content + size;
        return content;
    }
    return content + size;
}
