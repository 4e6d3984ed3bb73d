/* test_wipe.c - what key generation leaves in memory.

   libcrypto gets an allocator that never gives anything back, so that every freed block keeps its last
   content. After the key has been made and freed, everything that this process can write to is searched for
   pieces of p, q, d and the CRT values: heap, stacks of all threads, static data. */
#include "../src/prime.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ARENA ((size_t)1 << 31) /* of address space; touched as far as used */
#define TABLE 4096
#define MASK 0x5AA5C3963CF00F69 /* the pieces must not be found in our own table */

/* ---- an allocator that forgets nothing ---- */

typedef struct {
    size_t size;
    const char *file;
    int line;
    int freed;
} block;

static char *arena;
static size_t used;

static void *keep_malloc(size_t size, const char *file, int line)
{
    size_t room = (sizeof(block) + size + 63) / 64 * 64;
    size_t at = __atomic_fetch_add(&used, room, __ATOMIC_RELAXED);
    block *made = (block *)(arena + at);

    if (at + room > ARENA || size == 0)
        return NULL;
    *made = (block){size, file, line, 0};
    return made + 1;
}

static void keep_free(void *data, const char *file, int line)
{
    (void)file;
    (void)line;
    if (data)
        ((block *)data)[-1].freed = 1;
}

static void *keep_realloc(void *data, size_t size, const char *file, int line)
{
    void *made = keep_malloc(size, file, line);

    if (data && made) {
        size_t before = ((block *)data)[-1].size;
        memcpy(made, data, before < size ? before : size);
        keep_free(data, file, line);
    }
    return made;
}

/* ---- what to look for ---- */

static uint64_t table[TABLE];

static size_t slot(uint64_t masked)
{
    size_t at = (size_t)(masked * 0x9E3779B97F4A7C15 >> 40) % TABLE;

    while (table[at] != 0 && table[at] != masked)
        at = (at + 1) % TABLE;
    return at;
}

static void remember(const BIGNUM *number)
{
    uint8_t octets[1024];
    int len = (BN_num_bytes(number) + 7) / 8 * 8, order, i;

    for (order = 0; order < 2; order++) { /* as in a BIGNUM, and as in DER */
        if (order == 0)
            BN_bn2lebinpad(number, octets, len);
        else
            BN_bn2binpad(number, octets, len);
        for (i = 0; i < len; i += 8) {
            uint64_t word;
            memcpy(&word, octets + i, 8);
            if (word != 0 && word != UINT64_MAX)
                table[slot(word ^ MASK)] = word ^ MASK;
            OPENSSL_cleanse(&word, sizeof(word));
        }
    }
    OPENSSL_cleanse(octets, sizeof(octets));
}

static void remember_key(EVP_PKEY *pkey)
{
    static const char *const names[] = {
        "d", "rsa-factor1", "rsa-factor2", "rsa-exponent1", "rsa-exponent2", "rsa-coefficient1"};
    size_t i;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        BIGNUM *number = BN_secure_new(); /* not in the arena, so that reading leaves nothing there */
        EVP_PKEY_get_bn_param(pkey, names[i], &number);
        remember(number);
        BN_clear_free(number);
    }
}

/* ---- the search ---- */

/* Whose memory it is; the first ten. */
static void blame(const char *at, size_t shown)
{
    const char *here = arena;

    if (shown > 10)
        return;
    if (at < arena || at >= arena + used) {
        printf("  a piece at %p, outside the heap\n", (const void *)at);
        return;
    }
    for (;;) {
        const block *each = (const block *)here;
        const char *next = here + (sizeof(block) + each->size + 63) / 64 * 64;
        if (at < next) {
            printf("  a piece in a block of %zu bytes, %s, made in %s:%d\n", each->size,
                   each->freed ? "freed" : "alive", each->file, each->line);
            return;
        }
        here = next;
    }
}

static size_t search_range(const char *from, const char *to, int tell)
{
    size_t found = 0;

    for (; from + 8 <= to; from++) {
        uint64_t word;
        memcpy(&word, from, 8);
        word ^= MASK;
        if (word != 0 && table[slot(word)] == word && ++found && tell)
            blame(from, found);
    }
    return found;
}

/* Every mapping that can be written to. */
static size_t search_memory(size_t *looked, int tell)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512], rights[8];
    size_t found = 0;
    void *from, *to;

    *looked = 0;
    while (maps && fgets(line, sizeof(line), maps)) {
        char *end;
        if (sscanf(line, "%p-%p %7s", &from, &to, rights) != 3 || strncmp(rights, "rw", 2) != 0)
            continue;
        end = (char *)from == arena ? arena + used : to;
        *looked += (size_t)(end - (char *)from);
        found += search_range(from, end, tell);
    }
    if (maps)
        fclose(maps);
    return found;
}

static int one(int nlen, int threads)
{
    EVP_PKEY *pkey = NULL;
    size_t found, looked;

    memset(table, 0, sizeof(table));
    if (igc_rsa_generate(nlen, threads, NULL, &pkey) != IGC_OK) {
        printf("no key: %s\n", igc_reasons());
        return 0;
    }
    remember_key(pkey);
    found = search_memory(&looked, 0);
    if (found == 0) {
        printf("the search is blind: it misses a key that is there\n");
        return 0;
    }
    printf("%d bits, %d threads: %zu pieces while the key lives, ", nlen, threads, found);
    EVP_PKEY_free(pkey);
    found = search_memory(&looked, 1);
    printf("%zu after it was freed, in %zu kB\n", found, looked / 1024);
    return found == 0;
}

int main(void)
{
    int ok;

    arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED || !CRYPTO_set_mem_functions(keep_malloc, keep_realloc, keep_free)) {
        printf("the allocator cannot be set\n");
        return 1;
    }
    CRYPTO_secure_malloc_init(1 << 16, 16);
    ok = one(2048, 1);
    ok = one(2048, 3) && ok;
    ok = one(3072, 2) && ok;
    return ok ? 0 : 1;
}
