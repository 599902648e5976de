/* Runs a program whose calls of some system calls fail, as on an old kernel, under a seccomp profile, or on another file system.
   usage: refuse CALL=ERROR... -- COMMAND...    ./refuse has the names */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct { const char *name; unsigned number; } calls[] = {
    {"openat2", SYS_openat2},
#ifdef SYS_rename
    {"rename", SYS_rename},
#else
    {"rename", SYS_renameat},
#endif
    {"renameat", SYS_renameat},
    {"renameat2", SYS_renameat2},
    {"mknodat", SYS_mknodat},
    {"fchownat", SYS_fchownat},
    {"setxattr", SYS_setxattr},
    {"lsetxattr", SYS_lsetxattr},
    {"fsetxattr", SYS_fsetxattr},
};
static const struct { const char *name; unsigned number; } errors[] = {
    {"ENOSYS", ENOSYS}, {"EPERM", EPERM}, {"EINVAL", EINVAL}, {"EOPNOTSUPP", EOPNOTSUPP}, {"ENOSPC", ENOSPC},
};

#define FIND(table, text, length, found) \
  for (size_t n = 0; n < sizeof table / sizeof *table; n++) \
    if (strlen(table[n].name) == (length) && !strncmp(table[n].name, text, length)) found = (int)table[n].number

int main(int count, char **words) {
  static struct sock_filter program[64];
  unsigned short length = 0;
  int at = 1;
  program[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  for (; at < count && strcmp(words[at], "--"); at++) {
    int call = -1, error = -1;
    const char *sign = strchr(words[at], '=');
    if (sign) {
      FIND(calls, words[at], (size_t)(sign - words[at]), call);
      FIND(errors, sign + 1, strlen(sign + 1), error);
    }
    if (call < 0 || error < 0 || length > 60) {
      fprintf(stderr, "refuse: unknown: %s\n", words[at]);
      return 2;
    }
    program[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1);
    program[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error);
  }
  program[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  struct sock_fprog all = {length, program};
  if (at + 1 >= count || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all)) {
    perror("refuse");
    return 2;
  }
  execvp(words[at + 1], words + at + 1);
  perror("refuse");
  return 2;
}
