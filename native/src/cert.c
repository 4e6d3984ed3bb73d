/* cert.c - X.509 certificates: fields, and what RFC 5280 forbids though libcrypto lets it pass. */
#include "inner.h"

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

static int digits(const unsigned char *text, int count)
{
    int value = 0;

    while (count--) {
        if (*text < '0' || *text > '9')
            return -1;
        value = value * 10 + *text++ - '0';
    }
    return value;
}

/* Days since 1970 of a date of the proleptic Gregorian calendar. */
static int64_t days_from_civil(int64_t year, int month, int day)
{
    int64_t era, yoe, doy;

    year -= month <= 2;
    era = (year >= 0 ? year : year - 399) / 400;
    yoe = year - era * 400;
    doy = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

/* RFC 5280 4.1.2.5: UTCTime YYMMDDHHMMSSZ, GeneralizedTime YYYYMMDDHHMMSSZ; nothing else. */
static int time_value(const ASN1_TIME *field, int64_t *out)
{
    static const int month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const unsigned char *text = ASN1_STRING_get0_data(field);
    int len = ASN1_STRING_length(field), type = ASN1_STRING_type(field);
    int year, month, day, hour, minute, second, leap;

    if (type == V_ASN1_UTCTIME && len == 13) {
        year = digits(text, 2);
        if (year >= 0)
            year += year < 50 ? 2000 : 1900;
        text += 2;
    } else if (type == V_ASN1_GENERALIZEDTIME && len == 15) {
        year = digits(text, 4);
        text += 4;
    } else {
        return igc_fail(IGC_E_PARSE, "a date is not in the form of RFC 5280");
    }
    month = digits(text, 2);
    day = digits(text + 2, 2);
    hour = digits(text + 4, 2);
    minute = digits(text + 6, 2);
    second = digits(text + 8, 2);
    leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (year < 0 || month < 1 || month > 12 || day < 1 ||
        day > month_days[month - 1] + (month == 2 && leap) || hour < 0 || hour > 23 || minute < 0 ||
        minute > 59 || second < 0 || second > 59 || text[10] != 'Z')
        return igc_fail(IGC_E_PARSE, "a date is no date");
    *out = days_from_civil(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
    return IGC_OK;
}

/* A string value as UTF-8, checked against its own type. Returns a length or -1. */
static int utf8_value(unsigned char **out, const ASN1_STRING *value)
{
    switch (ASN1_STRING_type(value)) {
    case V_ASN1_UTF8STRING:
    case V_ASN1_PRINTABLESTRING:
    case V_ASN1_IA5STRING:
    case V_ASN1_T61STRING: /* Latin-1 in practice */
    case V_ASN1_BMPSTRING:
    case V_ASN1_UNIVERSALSTRING:
    case V_ASN1_NUMERICSTRING:
    case V_ASN1_VISIBLESTRING:
        return ASN1_STRING_to_UTF8(out, value);
    default: { /* BIT STRING and others: as hexadecimal, like RFC 4514's #form */
        char *hex = OPENSSL_buf2hexstr(ASN1_STRING_get0_data(value), ASN1_STRING_length(value));
        *out = (unsigned char *)hex;
        return hex ? (int)strlen(hex) : -1;
    }
    }
}

static int name_records(const X509_NAME *name, igc_buf *records, igc_buf *cn)
{
    int i, set = -1, rc = IGC_OK;

    for (i = 0; rc == IGC_OK && i < X509_NAME_entry_count(name); i++) {
        const X509_NAME_ENTRY *entry = X509_NAME_get_entry(name, i);
        const ASN1_OBJECT *oid = X509_NAME_ENTRY_get_object(entry);
        unsigned char *value = NULL;
        igc_buf record = {NULL, 0};
        char dotted[256];
        int len = utf8_value(&value, X509_NAME_ENTRY_get_data(entry));
        int oid_len = OBJ_obj2txt(dotted, sizeof(dotted), oid, 1);

        if (len < 0 || oid_len <= 0 || oid_len >= (int)sizeof(dotted)) {
            OPENSSL_free(value);
            return igc_fail(IGC_E_PARSE, "a name holds a value that is not valid in its string type");
        }
        rc = igc_buf_append(&record, dotted, (size_t)oid_len + 1);
        if (rc == IGC_OK)
            rc = igc_buf_append(&record, value, (size_t)len);
        if (rc == IGC_OK)
            rc = igc_buf_record(records, X509_NAME_ENTRY_set(entry) == set ? 2 : 1, record.data, record.len);
        if (rc == IGC_OK && cn && OBJ_obj2nid(oid) == NID_commonName)
            rc = igc_buf_set(cn, value, (size_t)len);
        set = X509_NAME_ENTRY_set(entry);
        igc_buf_free(&record);
        OPENSSL_free(value);
    }
    return rc;
}

static int name_fields(const X509_NAME *name, igc_buf *records, igc_buf *der, igc_buf *text, igc_buf *cn)
{
    const unsigned char *encoded;
    size_t len;
    BIO *bio;
    int rc = name_records(name, records, cn);

    if (rc)
        return rc;
    if (!X509_NAME_get0_der((X509_NAME *)name, &encoded, &len))
        return igc_fail(IGC_E_PARSE, NULL);
    rc = igc_buf_set(der, encoded, len);
    bio = BIO_new(BIO_s_mem());
    if (rc == IGC_OK && (bio == NULL || X509_NAME_print_ex(bio, name, 0,
                                                           (XN_FLAG_RFC2253 & ~ASN1_STRFLGS_ESC_MSB) |
                                                               ASN1_STRFLGS_ESC_CTRL) < 0))
        rc = igc_fail(IGC_E_PARSE, NULL);
    if (rc == IGC_OK)
        rc = igc_buf_take_bio(text, bio);
    BIO_free(bio);
    return rc;
}

static int san_records(const GENERAL_NAMES *names, igc_buf *out)
{
    int i, rc = IGC_OK;

    for (i = 0; rc == IGC_OK && i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        const ASN1_STRING *text = NULL;
        unsigned char *der = NULL;
        int len;

        if (name->type == GEN_EMAIL || name->type == GEN_DNS || name->type == GEN_URI)
            text = name->d.ia5;
        else if (name->type == GEN_IPADD)
            text = name->d.iPAddress;
        if (text) {
            len = ASN1_STRING_length(text);
            if (name->type == GEN_IPADD && len != 4 && len != 16)
                return igc_fail(IGC_E_PARSE, "an IP address is neither 4 nor 16 bytes long");
            if (name->type != GEN_IPADD && memchr(ASN1_STRING_get0_data(text), 0, (size_t)len))
                return igc_fail(IGC_E_PARSE, "a subject alternative name holds a NUL");
            rc = igc_buf_record(out, (uint8_t)name->type, ASN1_STRING_get0_data(text), (size_t)len);
            continue;
        }
        len = i2d_GENERAL_NAME((GENERAL_NAME *)name, &der);
        rc = len > 0 ? igc_buf_record(out, (uint8_t)name->type, der, (size_t)len)
                     : igc_fail(IGC_E_PARSE, NULL);
        OPENSSL_free(der);
    }
    return rc;
}

/* RFC 5280 4.2: no extension twice. Quadratic, so their number is bounded. */
static int extensions_sane(const X509 *x)
{
    int count = X509_get_ext_count(x), i, j;

    if (count > 100)
        return igc_fail(IGC_E_LIMIT, "there are more than 100 extensions");
    for (i = 0; i < count; i++)
        for (j = i + 1; j < count; j++)
            if (OBJ_cmp(X509_EXTENSION_get_object(X509_get_ext(x, i)),
                        X509_EXTENSION_get_object(X509_get_ext(x, j))) == 0)
                return igc_fail(IGC_E_PARSE, "an extension is given twice");
    return IGC_OK;
}

static int san_field(const X509 *x, igc_buf *out)
{
    int found = -1, rc;
    GENERAL_NAMES *names = X509_get_ext_d2i(x, NID_subject_alt_name, &found, NULL);

    if (names == NULL)
        return found == -1 ? IGC_OK : igc_fail(IGC_E_PARSE, "the subject alternative name does not parse");
    rc = san_records(names, out);
    GENERAL_NAMES_free(names);
    return rc;
}

/* Extensions a path depends on must parse, or nothing may be said about them. */
static int constraints_sane(const X509 *x)
{
    int found = -1;
    NAME_CONSTRAINTS *names = X509_get_ext_d2i(x, NID_name_constraints, &found, NULL);
    int i, list, rc = names || found == -1 ? IGC_OK : IGC_E_PARSE;

    for (list = 0; names && rc == IGC_OK && list < 2; list++) {
        STACK_OF(GENERAL_SUBTREE) *trees = list ? names->excludedSubtrees : names->permittedSubtrees;
        for (i = 0; i < sk_GENERAL_SUBTREE_num(trees); i++) {
            const GENERAL_NAME *base = sk_GENERAL_SUBTREE_value(trees, i)->base;
            if (base->type == GEN_IPADD && ASN1_STRING_length(base->d.iPAddress) != 8 &&
                ASN1_STRING_length(base->d.iPAddress) != 32)
                rc = IGC_E_PARSE;
        }
    }
    NAME_CONSTRAINTS_free(names);
    return rc ? igc_fail(rc, "the name constraints do not parse") : IGC_OK;
}

static int structure_sane(const X509 *x)
{
    const ASN1_BIT_STRING *sig;
    const X509_ALGOR *outer;
    int rc;

    if (X509_get_version(x) < X509_VERSION_1 || X509_get_version(x) > X509_VERSION_3)
        return igc_fail(IGC_E_PARSE, "the version is not 1, 2 or 3");
    X509_get0_signature(&sig, &outer, x);
    if (X509_ALGOR_cmp(outer, X509_get0_tbs_sigalg(x)) != 0)
        return igc_fail(IGC_E_PARSE, "the inner and the outer signature algorithm differ");
    rc = extensions_sane(x);
    return rc ? rc : constraints_sane(x);
}

static int serial_field(const X509 *x, igc_buf *out)
{
    const ASN1_INTEGER *serial = X509_get0_serialNumber(x);
    unsigned char *der = NULL;
    int len = i2d_ASN1_INTEGER(serial, &der);
    const unsigned char *at = der;
    long size = 0;
    int tag, class, rc = IGC_E_PARSE;

    if (len > 0 && !(ASN1_get_object(&at, &size, &tag, &class, len) & 0x80))
        rc = igc_buf_set(out, at, (size_t)size);
    OPENSSL_free(der);
    return rc ? igc_fail(rc, NULL) : IGC_OK;
}

static int key_fields(const X509 *x, igc_cert *out)
{
    X509_PUBKEY *holder = X509_get_X509_PUBKEY(x);
    EVP_PKEY *pkey = X509_PUBKEY_get0(holder);
    unsigned char *der = NULL;
    int len = i2d_X509_PUBKEY(holder, &der), rc;

    if (len <= 0)
        return igc_fail(IGC_E_PARSE, NULL);
    rc = igc_buf_set(&out->spki, der, (size_t)len);
    OPENSSL_free(der);
    if (rc == IGC_OK &&
        !EVP_Q_digest(NULL, "SHA256", NULL, out->spki.data, out->spki.len, out->spki_sha256, NULL))
        rc = igc_fail(IGC_E_INTERNAL, NULL);
    if (pkey)
        igc_pkey_type(pkey, out->key_type);
    else
        snprintf(out->key_type, sizeof(out->key_type), "unknown");
    ERR_clear_error(); /* a foreign key type is no error */
    return rc;
}

static int ca_flag(const X509 *x)
{
    BASIC_CONSTRAINTS *basic = X509_get_ext_d2i(x, NID_basic_constraints, NULL, NULL);
    int ca = basic && basic->ca;

    BASIC_CONSTRAINTS_free(basic);
    return ca;
}

static int64_t key_usage(const X509 *x)
{
    ASN1_BIT_STRING *bits = X509_get_ext_d2i(x, NID_key_usage, NULL, NULL);
    int64_t usage = -1;
    int len;

    if (bits) {
        len = ASN1_STRING_length(bits);
        usage = len > 0 ? ASN1_STRING_get0_data(bits)[0] : 0;
        if (len > 1)
            usage |= (int64_t)ASN1_STRING_get0_data(bits)[1] << 8;
        ASN1_BIT_STRING_free(bits);
    }
    return usage;
}

static int fill(X509 *x, igc_cert *out)
{
    int rc = structure_sane(x);

    if (rc == IGC_OK)
        rc = time_value(X509_get0_notBefore(x), &out->not_before);
    if (rc == IGC_OK)
        rc = time_value(X509_get0_notAfter(x), &out->not_after);
    if (rc == IGC_OK && out->not_after < out->not_before)
        rc = igc_fail(IGC_E_PARSE, "it ends before it begins: never valid");
    if (rc == IGC_OK)
        rc = name_fields(X509_get_subject_name(x), &out->subject, &out->subject_der, &out->subject_text,
                         &out->cn);
    if (rc == IGC_OK)
        rc = name_fields(X509_get_issuer_name(x), &out->issuer, &out->issuer_der, &out->issuer_text, NULL);
    if (rc == IGC_OK)
        rc = serial_field(x, &out->serial);
    if (rc == IGC_OK)
        rc = san_field(x, &out->san);
    if (rc == IGC_OK)
        rc = key_fields(x, out);
    if (rc)
        return rc;
    out->subject_hash = (uint32_t)X509_NAME_hash_ex(X509_get_subject_name(x), NULL, NULL, NULL);
    out->is_ca = ca_flag(x);
    out->self_issued = X509_NAME_cmp(X509_get_subject_name(x), X509_get_issuer_name(x)) == 0;
    out->key_usage = key_usage(x);
    ERR_clear_error();
    return IGC_OK;
}

int igc_cert_parse(const uint8_t *der, size_t len, igc_cert *out)
{
    const uint8_t *at = der;
    X509 *x;
    size_t used = 0;
    int rc;

    igc_begin();
    if ((der == NULL && len) || out == NULL)
        return igc_fail(IGC_E_ARG, NULL);
    memset(out, 0, sizeof(*out));
    if (len > IGC_MAX_CERT)
        return igc_fail(IGC_E_LIMIT, "the certificate is larger than 256 KiB");
    rc = igc_ber_scan(der, len, 32, 20000, &used);
    if (rc || used != len)
        return igc_fail(rc ? rc : IGC_E_PARSE, "this is not a certificate");
    x = d2i_X509(NULL, &at, (long)len);
    if (x == NULL || at != der + len) {
        X509_free(x);
        return igc_fail(IGC_E_PARSE, "this is not a certificate");
    }
    rc = fill(x, out);
    if (rc == IGC_OK && !EVP_Q_digest(NULL, "SHA256", NULL, der, len, out->sha256, NULL))
        rc = igc_fail(IGC_E_INTERNAL, NULL);
    X509_free(x);
    if (rc)
        igc_cert_clear(out);
    return rc;
}

void igc_cert_clear(igc_cert *cert)
{
    if (cert == NULL)
        return;
    igc_buf_free(&cert->subject);
    igc_buf_free(&cert->issuer);
    igc_buf_free(&cert->subject_der);
    igc_buf_free(&cert->issuer_der);
    igc_buf_free(&cert->subject_text);
    igc_buf_free(&cert->issuer_text);
    igc_buf_free(&cert->cn);
    igc_buf_free(&cert->serial);
    igc_buf_free(&cert->san);
    igc_buf_free(&cert->spki);
    memset(cert, 0, sizeof(*cert));
}
