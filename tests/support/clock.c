/* A clock of its own for one program: with this preloaded the time of day is CLOCK_AHEAD seconds ahead. What
 * measures durations (CLOCK_MONOTONIC and the like) is left alone. libfaketime fakes sleeping too, and fails
 * at it. */

#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t ahead(void)
{
    const char *said = getenv("CLOCK_AHEAD");
    return said ? (time_t)atol(said) : 0;
}

int clock_gettime(clockid_t id, struct timespec *to)
{
    int rc = (int)syscall(SYS_clock_gettime, id, to);
    if (!rc && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        to->tv_sec += ahead();
    return rc;
}

time_t time(time_t *to)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict to, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec;
    to->tv_usec = now.tv_nsec / 1000;
    return 0;
}
