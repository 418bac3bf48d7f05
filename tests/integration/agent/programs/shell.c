/* A static program that has the guest's own shell run its argument. */

#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    execl("/usr/bin/busybox", "sh", "-c", argv[1], (char *)0);
    perror("exec");
    return 1;
}
