/* core.h - what the files of test_core share. */
#ifndef CORE_H
#define CORE_H
#define _GNU_SOURCE
#include "../src/inner.h"

#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NOW 1767225600 /* 2026-01-01 */
#define YEAR 31536000
#define ITERATIONS 1000

#define CHECK(condition) check((condition) != 0, #condition, __FILE__, __LINE__)
#define CODE(code, call) check_code(IGC_E_##code, (call), #call, __FILE__, __LINE__)

extern int passed, failed;

/* core_made.c: what is tested with */
int check(int ok, const char *what, const char *file, int line);
int check_code(int wanted, int got, const char *what, const char *file, int line);
const uint8_t *u8(const char *text);
int file_with(const void *data, size_t len);
size_t content(int fd, uint8_t *data, size_t size);
igc_key *new_key(const char *type);
igc_secret *new_secret(const char *password);
igc_buf new_cert(const igc_key *key, const char *cn, const igc_key *issuer, const char *issuer_cn, int ca,
                 const char *san);
int same(const igc_buf *a, const igc_buf *b);
int same_key(const igc_key *a, const igc_key *b);

/* core_keys.c */
void signing(const igc_key *key);
void storing(const igc_key *key);
void key_refusals(const igc_key *key);
void messages(const igc_key *rsa, const igc_key *other);
void costly_key(void);
void pss(const igc_key *key);

/* core_certificates.c */
void certificate(const igc_key *key);
void chain(const igc_key *root_key, const igc_key *ca_key, const igc_key *leaf_key);
void cms(const igc_key *key);

/* core_pfx.c */
void pfx_round_trip(const igc_key *key, int legacy);
void pfx_refusals(void);

#endif
