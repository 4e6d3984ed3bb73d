/* driver.c - drives a libFuzzer harness where there is no libFuzzer: every seed as it is, then mutants of
   them from a fixed random seed until the time is up. Usage: driver SECONDS CRASH_FILE SEED... */
#include <sanitizer/common_interface_defs.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_SEEDS 4096
#define MAX_SEED (64u << 10) /* larger seeds are left out: they only slow it down */
#define HANG 20              /* seconds one input may take */

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

typedef struct {
    uint8_t *data;
    size_t len;
} seed;

static seed seeds[MAX_SEEDS];
static size_t seed_count;
static uint64_t state = 0x9e3779b97f4a7c15u;
static const char *crash_file;
static const uint8_t *current;
static size_t current_len;

static uint32_t below(size_t limit)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return limit ? (uint32_t)((state >> 16) % limit) : 0;
}

static void keep(void)
{
    FILE *file = fopen(crash_file, "wb");

    if (file) {
        fwrite(current, 1, current_len, file);
        fclose(file);
    }
}

static void stopped(int number)
{
    static const char hang[] = "one input took too long\n",
                      aborted[] =
                          "aborted: undefined behaviour (above), or an expectation of the harness failed\n";

    if (number == SIGALRM ? write(2, hang, sizeof(hang) - 1) : write(2, aborted, sizeof(aborted) - 1)) {
    }
    keep();
    _exit(1);
}

/* From a block exactly as long as the input, so that ASan sees one byte too far. */
static void run(const uint8_t *data, size_t len)
{
    uint8_t *copy = malloc(len ? len : 1);

    if (copy == NULL)
        exit(2);
    memcpy(copy, data, len);
    current = copy;
    current_len = len;
    alarm(HANG);
    LLVMFuzzerTestOneInput(copy, len);
    alarm(0);
    current_len = 0;
    free(copy);
}

static void load(const char *path)
{
    static uint8_t data[MAX_SEED + 1];
    FILE *file = fopen(path, "rb");
    size_t len;
    seed *to = &seeds[seed_count];

    if (file == NULL)
        return;
    len = fread(data, 1, sizeof(data), file);
    fclose(file);
    if (len > MAX_SEED || seed_count == MAX_SEEDS)
        return;
    to->data = malloc(len ? len : 1);
    if (to->data == NULL)
        exit(2);
    memcpy(to->data, data, len);
    to->len = len;
    seed_count++;
}

/* `data` has room for 2 * MAX_SEED. */
static size_t mutate(uint8_t *data, size_t len)
{
    static const uint8_t telling[] = {0,    1,    2,    4,    6,    0x1f, 0x30, 0x31,
                                      0x7f, 0x80, 0x81, 0x82, 0x84, 0xa0, 0xff};
    const seed *other = &seeds[below(seed_count)];
    size_t at = below(len), count = 1 + below(16), from;

    switch (below(7)) {
    case 0: /* a bit */
        if (len)
            data[at] ^= (uint8_t)(1u << below(8));
        return len;
    case 1: /* a byte that means something in BER */
        if (len)
            data[at] = telling[below(sizeof(telling))];
        return len;
    case 2: /* any byte */
        if (len)
            data[at] = (uint8_t)below(256);
        return len;
    case 3: /* cut a piece out */
        count = below(4) ? count : 1 + below(len);
        if (at + count > len)
            return at;
        memmove(data + at, data + at + count, len - at - count);
        return len - count;
    case 4: /* double a piece */
        if (at + count > len || len + count > 2 * MAX_SEED)
            return len;
        memmove(data + at + count, data + at, len - at);
        return len + count;
    case 5: /* a piece of another seed over it */
        from = below(other->len);
        count = 1 + below(64);
        if (at + count <= len && from + count <= other->len)
            memcpy(data + at, other->data + from, count);
        return len;
    default: /* a length one more or one less */
        if (len)
            data[at] += below(2) ? 1 : 0xff;
        return len;
    }
}

int main(int argc, char **argv)
{
    static uint8_t data[2 * MAX_SEED];
    unsigned long runs = 0;
    time_t end;
    size_t len;
    int i;

    if (argc < 3 || LLVMFuzzerInitialize(&argc, &argv) != 0)
        return 2;
    crash_file = argv[2];
    for (i = 3; i < argc; i++)
        load(argv[i]);
    load("/dev/null"); /* the empty input */
    __sanitizer_set_death_callback(keep);
    signal(SIGALRM, stopped);
    signal(SIGABRT, stopped);
    end = time(NULL) + atoi(argv[1]);
    for (runs = 0; runs < seed_count; runs++) /* all of them, whatever the time */
        run(seeds[runs].data, seeds[runs].len);
    for (; time(NULL) < end; runs++) {
        const seed *base = &seeds[below(seed_count)];
        memcpy(data, base->data, base->len);
        len = base->len;
        for (i = 1 + (int)below(6); i > 0; i--)
            len = mutate(data, len);
        run(data, len);
    }
    for (i = 0; i < (int)seed_count; i++)
        free(seeds[i].data);
    printf("%lu inputs from %zu seeds\n", runs, seed_count);
    return 0;
}
