// Uses the socket that the constructor of a library has made (early.c), and one of its own.
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

extern int early_socket;

int main(void) {
  char data[64];
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof name;
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  bind(fd, (void *)&name, sizeof name);
  getsockname(fd, (void *)&name, &size);
  printf("early %zd", send(early_socket, "0123456789", 10, 0));
  printf(" %zd\n", recv(early_socket, data, 64, 0));
  printf("own %zd", sendto(fd, "0123456789", 10, 0, (void *)&name, sizeof name));
  printf(" %zd\n", recv(fd, data, 64, 0));
  return close(fd);
}
