/* Copies out of mapped files. Somebody may cut a file short while it is mapped: then the system sends SIGBUS, which
 * would end the process; here the copy ends instead, and says so. */
#include "kernel.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

static __thread sigjmp_buf *volatile escape;
static struct sigaction before;
static pthread_once_t installed = PTHREAD_ONCE_INIT;

static void cut_short(int number, siginfo_t *info, void *context) {
  (void)info, (void)context;
  if (escape) siglongjmp(*escape, 1);
  sigaction(number, &before, NULL); /* not ours: it happens again, and is dealt with as it would have been */
}
static void install(void) {
  struct sigaction ours;
  memset(&ours, 0, sizeof ours);
  ours.sa_sigaction = cut_short;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigemptyset(&ours.sa_mask);
  sigaction(SIGBUS, &ours, &before);
}

/* Returns 0, or 1 if `from` is not there any more. */
int modelgit_copy(void *to, const void *from, size_t n) {
  sigjmp_buf here;
  pthread_once(&installed, install);
  if (sigsetjmp(here, 0)) {
    escape = NULL;
    return 1;
  }
  escape = &here;
  __asm__ volatile("" ::: "memory");
  memcpy(to, from, n);
  __asm__ volatile("" ::: "memory");
  escape = NULL;
  return 0;
}
#endif
