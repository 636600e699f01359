/* Reading from mapped files. Somebody may cut a file short while it is mapped: then the system sends SIGBUS, which
 * would end the process; here the reading ends instead, and says so. */
#include "kernel.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

static __thread sigjmp_buf *volatile escape;
static struct sigaction before;
static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER;

static void cut_short(int number, siginfo_t *info, void *context) {
  (void)info, (void)context;
  if (escape) siglongjmp(*escape, 1);
  sigaction(number, &before, NULL); /* not ours: it happens again, and is dealt with as it would have been */
}
/* Others may take the signal over at any time, as Python's faulthandler does: so this is looked at before each piece of
 * work. */
static void install(void) {
  struct sigaction ours, now;
  if (!sigaction(SIGBUS, NULL, &now) && (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == cut_short) return;
  memset(&ours, 0, sizeof ours);
  ours.sa_sigaction = cut_short;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigemptyset(&ours.sa_mask);
  pthread_mutex_lock(&installing);
  sigaction(SIGBUS, &ours, &now);
  if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != cut_short) before = now;
  pthread_mutex_unlock(&installing);
}

/* Runs work(job), which reads from mapped files and holds nothing that it would have to give back. Returns 0, or 1 if
 * some of it is not there any more. */
int modelgit_safely(void (*work)(const void *), const void *job) {
  sigjmp_buf here;
  install();
  if (sigsetjmp(here, 0)) {
    escape = NULL;
    return 1;
  }
  escape = &here;
  __asm__ volatile("" ::: "memory");
  work(job);
  __asm__ volatile("" ::: "memory");
  escape = NULL;
  return 0;
}

struct copy {
  void *to;
  const void *from;
  size_t n;
};
static void copy(const void *job) {
  const struct copy *c = job;
  memcpy(c->to, c->from, c->n);
}
int modelgit_copy(void *to, const void *from, size_t n) {
  struct copy job = {to, from, n};
  return modelgit_safely(copy, &job);
}
#endif
