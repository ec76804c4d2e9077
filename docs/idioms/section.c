#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	int fd = open("/mnt/locks/records", O_RDWR | O_CREAT, 0666);
	struct flock record = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 4096, .l_len = 512};

	/* One record of a file: other nodes can lock the others meanwhile. */
	if (fd < 0 || fcntl(fd, F_SETLKW, &record) < 0) {
		perror("/mnt/locks/records");
		return 1;
	}
	puts("only one node is in this record");
	close(fd); /* releases */
	return 0;
}
