/* cms.c - bounds of BER, and the certificates of a SignedData. */
#include "inner.h"

#include <openssl/cms.h>
#include <openssl/pkcs7.h>

#define MAX_CMS (1u << 20)
#define MAX_DEPTH 32
#define MAX_NODES 200000
#define MAX_CERTS 200

/* One header at *at. Definite: *len content octets follow; indefinite: *len is SIZE_MAX. */
static int ber_header(const uint8_t *data, size_t end, size_t *at, uint8_t *tag, size_t *len)
{
    size_t octets, i;

    if (*at >= end)
        return IGC_E_PARSE;
    *tag = data[(*at)++];
    if ((*tag & 0x1f) == 0x1f) { /* high tag number: at most four octets of it */
        for (i = 0;; i++) {
            if (i == 4 || *at >= end)
                return IGC_E_PARSE;
            if ((data[(*at)++] & 0x80) == 0)
                break;
        }
    }
    if (*at >= end)
        return IGC_E_PARSE;
    octets = data[(*at)++];
    if (octets < 0x80) {
        *len = octets;
    } else if (octets == 0x80) {
        *len = SIZE_MAX;
        return *tag & 0x20 ? IGC_OK : IGC_E_PARSE; /* X.690 8.1.3.2: only constructed */
    } else {
        octets &= 0x7f;
        if (octets > 8 || end - *at < octets)
            return IGC_E_PARSE;
        for (*len = 0, i = 0; i < octets; i++)
            *len = *len << 8 | data[(*at)++];
    }
    return *len <= end - *at ? IGC_OK : IGC_E_PARSE;
}

int igc_ber_scan(const uint8_t *data, size_t len, int depth, size_t nodes, size_t *used)
{
    size_t ends[64]; /* end of each open element; SIZE_MAX: ended by end-of-contents */
    size_t at = 0, size;
    int open = 0, rc;
    uint8_t tag;

    do {
        size_t limit = len;
        int i;
        for (i = open - 1; i >= 0; i--)
            if (ends[i] != SIZE_MAX) {
                limit = ends[i];
                break;
            }
        if (open > 0 && ends[open - 1] == SIZE_MAX && limit - at >= 2 && data[at] == 0 && data[at + 1] == 0) {
            at += 2;
            open--;
        } else {
            if (nodes-- == 0)
                return IGC_E_LIMIT;
            rc = ber_header(data, limit, &at, &tag, &size);
            if (rc)
                return rc;
            if (tag == 0) /* end-of-contents where none may stand */
                return IGC_E_PARSE;
            if (tag & 0x20) {
                if (open >= depth || open >= 64)
                    return IGC_E_LIMIT;
                ends[open++] = size == SIZE_MAX ? SIZE_MAX : at + size;
            } else {
                at += size;
            }
        }
        while (open > 0 && ends[open - 1] == at)
            open--;
    } while (open > 0);
    *used = at;
    return IGC_OK;
}

int igc_cms_certs(const uint8_t *ber, size_t len, igc_buf *certs)
{
    const uint8_t *at = ber;
    CMS_ContentInfo *cms = NULL;
    STACK_OF(X509) *found = NULL;
    size_t used = 0;
    int rc, i;

    igc_begin();
    if ((ber == NULL && len) || certs == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    *certs = (igc_buf){NULL, 0};
    if (len > MAX_CMS)
        return igc_fail(IGC_E_LIMIT, "the message is larger than 1 MiB");
    rc = igc_ber_scan(ber, len, MAX_DEPTH, MAX_NODES, &used);
    if (rc)
        return igc_fail(rc, "this is not a CMS message");
    if (used != len)
        return igc_fail(IGC_E_PARSE, "there are bytes after the end of the message");
    cms = d2i_CMS_ContentInfo(NULL, &at, (long)len);
    if (cms == NULL)
        return igc_fail(IGC_E_PARSE, "this is not a CMS message");
    if (OBJ_obj2nid(CMS_get0_type(cms)) != NID_pkcs7_signed) {
        rc = igc_fail(IGC_E_FORMAT, "this is a CMS message, but no SignedData");
        goto out;
    }
    found = CMS_get1_certs(cms); /* NULL when there is none */
    if (sk_X509_num(found) > MAX_CERTS)
        rc = igc_fail(IGC_E_LIMIT, "there are more than 200 certificates in it");
    for (i = 0; rc == IGC_OK && i < sk_X509_num(found); i++)
        rc = igc_list_add(certs, sk_X509_value(found, i));
    if (rc)
        igc_buf_free(certs);
out:
    sk_X509_pop_free(found, X509_free);
    CMS_ContentInfo_free(cms);
    return rc;
}
