// A member of the benchmark's crowds: locks and unlocks from one moment to another, and counts what comes after a third one in between.
//
//	crowd PATH HOW START BEGIN END SHARED
//
// HOW is flock(2)'s LOCK_SH or LOCK_EX as a number. START, BEGIN (of the counting) and END are nanoseconds of CLOCK_MONOTONIC. SHARED is a file of 4096 zero
// bytes that all members map. The answer is a line of JSON, as of the benchmark's other programs.
//
// In C, for each member is a process, and a Go program brings threads of its own that wake up some hundred times a second: sixteen
// of them on two cores took a sixth of what they were to measure.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	printf("{\"Err\": \"crowd: %s: %s\"}\n", what, strerror(errno));
	exit(1);
}

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void lock(int fd, int how)
{
	while (flock(fd, how) != 0)
		if (errno != EINTR)
			fail("flock");
}

int main(int argc, char **argv)
{
	if (argc != 7) {
		errno = EINVAL;
		fail("arguments");
	}
	int how = atoi(argv[2]);
	long long from = atoll(argv[3]), begin = atoll(argv[4]), end = atoll(argv[5]);
	int fd = open(argv[1], O_RDONLY | O_CREAT | O_CLOEXEC, 0666);
	if (fd < 0)
		fail("open the lock");
	int page = open(argv[6], O_RDWR | O_CLOEXEC);
	if (page < 0)
		fail("open the shared page");
	long *inside = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
	if (inside == MAP_FAILED)
		fail("mmap");
	if (now() >= from) {
		errno = ETIME;
		fail("started too late");
	}
	struct timespec start = {from / 1000000000, from % 1000000000};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &start, NULL) == EINTR)
		;
	long me = getpid(), count = 0, violations = 0;
	for (long long t; (t = now()) < end; count += t >= begin) {
		lock(fd, how);
		long nobody = 0, mine = me;
		if (how == LOCK_EX) {
			violations += !__atomic_compare_exchange_n(inside, &nobody, me, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
			__atomic_compare_exchange_n(inside, &mine, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		} else {
			violations += __atomic_load_n(inside, __ATOMIC_SEQ_CST) != 0;
		}
		lock(fd, LOCK_UN);
	}
	printf("{\"Count\": %ld, \"Violations\": %ld}\n", count, violations);
	return 0;
}
