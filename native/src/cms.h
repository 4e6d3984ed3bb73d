/* cms.h - shared by the files that read and write CMS messages. */
#ifndef IGC_CMS_H
#define IGC_CMS_H

#include "inner.h"

#include <openssl/cms.h>

#define IGC_MAX_MESSAGE (1u << 20)
#define IGC_MAX_MESSAGE_CERTS 200

struct igc_certs {
    STACK_OF(X509) * list;
};

/* A whole message of that type (NID_pkcs7_signed, NID_pkcs7_enveloped), DER or BER. NULL: *code, reported. */
CMS_ContentInfo *igc_cms_parse(const uint8_t *ber, size_t len, int type, int *code);

/* Steps over one DER element; enters it when `enter`: *end becomes its end. tag -1: any. NULL when it does
   not lie within *end, is another one, or has no definite length. */
const uint8_t *igc_der_step(const uint8_t *at, const uint8_t **end, int tag, int enter);

#endif
