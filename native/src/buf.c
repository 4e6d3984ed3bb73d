/* buf.c - output buffers, records, certificate lists, descriptors. */
#include "inner.h"

#include <errno.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <string.h>
#include <unistd.h>

void igc_buf_free(igc_buf *buf)
{
    if (buf == NULL)
        return;
    OPENSSL_clear_free(buf->data, buf->len);
    buf->data = NULL;
    buf->len = 0;
}

int igc_buf_set(igc_buf *buf, const void *data, size_t len)
{
    igc_buf_free(buf);
    return igc_buf_append(buf, data, len);
}

/* Capacity is the next power of two, so that a list grows in linear time. */
static size_t capacity(size_t len)
{
    size_t cap = 64;

    while (cap < len)
        cap *= 2;
    return cap;
}

int igc_buf_append(igc_buf *buf, const void *data, size_t len)
{
    uint8_t *grown;

    if (len > SIZE_MAX / 4 - buf->len)
        return igc_fail(IGC_E_LIMIT, NULL);
    if (buf->data == NULL || capacity(buf->len) != capacity(buf->len + len)) {
        grown = OPENSSL_malloc(capacity(buf->len + len));
        if (grown == NULL)
            return igc_fail(IGC_E_NOMEM, NULL);
        if (buf->len)
            memcpy(grown, buf->data, buf->len);
        OPENSSL_clear_free(buf->data, buf->len);
        buf->data = grown;
    }
    if (len)
        memcpy(buf->data + buf->len, data, len);
    buf->len += len;
    return IGC_OK;
}

int igc_buf_record(igc_buf *buf, uint8_t tag, const void *data, size_t len)
{
    uint8_t head[5] = {tag, (uint8_t)(len >> 24), (uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len};
    int rc;

    if (len > INT_MAX)
        return igc_fail(IGC_E_LIMIT, NULL);
    rc = igc_buf_append(buf, head, sizeof(head));
    return rc ? rc : igc_buf_append(buf, data, len);
}

int igc_buf_take_bio(igc_buf *buf, BIO *bio)
{
    char *data;
    long len = BIO_get_mem_data(bio, &data);
    int rc = igc_buf_set(buf, data, len > 0 ? (size_t)len : 0);

    if (len > 0)
        OPENSSL_cleanse(data, (size_t)len);
    return rc;
}

int igc_fd_write_all(int fd, const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t done = write(fd, data, len);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return igc_fail(IGC_E_IO, done < 0 ? strerror(errno) : "nothing was written");
        data += done;
        len -= (size_t)done;
    }
    return IGC_OK;
}

X509 *igc_list_next(const uint8_t **data, size_t *len)
{
    const uint8_t *at = *data;
    X509 *cert;

    if (*len == 0)
        return NULL;
    cert = d2i_X509(NULL, &at, *len > LONG_MAX ? LONG_MAX : (long)*len);
    if (cert == NULL)
        return NULL;
    *len -= (size_t)(at - *data);
    *data = at;
    return cert;
}

STACK_OF(X509) * igc_list_parse(const uint8_t *data, size_t len, int *code)
{
    STACK_OF(X509) *certs = sk_X509_new_null();
    X509 *cert;

    *code = IGC_OK;
    if (certs == NULL) {
        *code = igc_fail(IGC_E_NOMEM, NULL);
        return NULL;
    }
    while ((cert = igc_list_next(&data, &len)) != NULL) {
        if (sk_X509_num(certs) >= IGC_MAX_LIST_CERTS || sk_X509_push(certs, cert) <= 0) {
            X509_free(cert);
            *code = igc_fail(IGC_E_LIMIT, "too many certificates");
            break;
        }
    }
    if (*code == IGC_OK && len != 0)
        *code = igc_fail(IGC_E_PARSE, "a certificate of the list does not parse");
    if (*code == IGC_OK)
        return certs;
    sk_X509_pop_free(certs, X509_free);
    return NULL;
}

int igc_list_add(igc_buf *list, X509 *cert)
{
    unsigned char *der = NULL;
    int len = i2d_X509(cert, &der);
    int rc;

    if (len <= 0)
        return igc_fail(IGC_E_INTERNAL, NULL);
    rc = igc_buf_append(list, der, (size_t)len);
    OPENSSL_free(der);
    return rc;
}
