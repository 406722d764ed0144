"""The system-call filter of an environment: an allow list, written as classic BPF.

SC-1  What is not listed fails: with EPERM, or with ENOSYS where libraries probe for newer calls and fall back.
SC-2  Another architecture's calls, and x32's, kill the process: their numbers mean other things.
SC-3  Arguments are compared only where they are integers.  A pointer's target can change after the check, so a call
      whose danger lies behind a pointer (`clone3`, `sendmsg` with descriptors) is refused as a whole.
SC-4  Descriptors from `GRANTED` on are xokd's grants that share an open file description with it (a TAP queue).  Their
      mode cannot be changed and they cannot be duplicated to a number where it could.
SC-5  No ioctl reaches a TAP queue but FIONREAD and the like: the list names the requests that may be made.

A process has one filter for its life.  Threads inherit it; new processes cannot be made: an environment is one process.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from xok_host.host import linux

GRANTED = 900
"""First descriptor number of the range that SC-4 is about; RLIMIT_NOFILE must be above it."""

_AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_X32_BIT = 0x4000_0000

# struct seccomp_data: nr, arch, instruction pointer, six arguments.
_NR, _ARCH, _ARGUMENTS = 0, 4, 16

_LD, _JMP_EQ, _JMP_GE, _JMP_SET, _JA, _RET, _AND = 0x20, 0x15, 0x35, 0x45, 0x05, 0x06, 0x54

KILL_PROCESS = 0x8000_0000
ALLOW = 0x7FFF_0000


def refuse(code: int) -> int:
    """The filter's result that makes the call fail with errno `code`."""
    return 0x0005_0000 | code


# Calls allowed whatever their arguments, by purpose.  Names without a number on an architecture do not exist there.
_ALLOWED = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range
    open openat openat2 creat stat fstat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat
    getdents getdents64 getcwd chdir fchdir statfs fstatfs umask truncate ftruncate fsync fdatasync
    mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 symlink symlinkat link linkat chmod fchmod fchmodat
    utimensat flock sendfile copy_file_range
    mmap munmap mprotect mremap msync mincore brk mlock munlock membarrier
    futex futex_waitv set_robust_list get_robust_list rseq restart_syscall
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack
    kill tkill tgkill pause alarm getitimer setitimer
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete
    timerfd_create timerfd_settime timerfd_gettime signalfd4 eventfd eventfd2 pipe pipe2
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
    recvfrom recvmsg recvmmsg sendto shutdown getsockname getpeername getsockopt setsockopt
    getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getpgrp getsid
    getpriority getrlimit sysinfo uname getrandom getcpu sched_yield sched_getaffinity sched_setaffinity
    sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min capget
    set_tid_address arch_prctl exit exit_group
""".split()

# Refused with ENOSYS: callers know what to do without them.
_ABSENT = "clone3 io_uring_setup io_uring_enter io_uring_register fchmodat2 map_shadow_stack".split()

_PRCTL_ALLOWED = (
    3,  # PR_GET_DUMPABLE
    linux.PR_SET_NAME,
    16,  # PR_GET_NAME
    linux.PR_CAPBSET_READ,
    29,  # PR_SET_TIMERSLACK
    30,  # PR_GET_TIMERSLACK
    39,  # PR_GET_NO_NEW_PRIVS
    21,  # PR_GET_SECCOMP
    0x53564D41,  # PR_SET_VMA: names of memory areas
)
_MADVISE_ALLOWED = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 20, 21, 22, 23)
"""Everything that only touches the caller's own view; not MADV_REMOVE, which punches holes into shared memory."""

_IOCTL_ALLOWED = (
    0x5401,  # TCGETS: isatty
    0x5413,  # TIOCGWINSZ
    0x541B,  # FIONREAD
    0x5450,  # FIONCLEX
    0x5451,  # FIOCLEX
)
_FIONBIO = 0x5421

_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL = 0, 1, 2, 3, 4
_F_DUPFD_CLOEXEC, _F_GETPIPE_SZ, _F_ADD_SEALS, _F_GET_SEALS = 1030, 1032, 1033, 1034
_FCNTL_ALLOWED = (_F_GETFD, _F_SETFD, _F_GETFL, _F_GETPIPE_SZ, _F_GET_SEALS, 5, 6, 7, 36, 37, 38)
_FCNTL_BELOW_GRANTED = (_F_DUPFD, _F_DUPFD_CLOEXEC, _F_SETFL)

_NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWCGROUP
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUSER
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWTIME
)
_AF_UNIX = 1


@dataclass
class _Assembler:
    """Classic BPF with labels.  A conditional jump reaches 255 instructions, so far targets go through a `JA`."""

    code: list[tuple[int, int | str, int | str, int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def emit(self, operation: int, k: int, true: int | str = 0, false: int | str = 0) -> None:
        self.code.append((operation, true, false, k))

    def load(self, offset: int) -> None:
        self.emit(_LD, offset)

    def go(self, target: str) -> None:
        self.emit(_JA, 0, target)

    def when(self, operation: int, k: int, target: str) -> None:
        """Jump to `target` when the comparison holds, however far it is."""
        self.emit(operation, k, 0, 1)
        self.go(target)

    def unless(self, operation: int, k: int, target: str) -> None:
        self.emit(operation, k, 1, 0)
        self.go(target)

    def ret(self, result: int) -> None:
        self.emit(_RET, result)

    def assemble(self) -> bytes:
        out = []
        for at, (operation, true, false, k) in enumerate(self.code):
            if operation == _JA:
                assert isinstance(true, str)
                out.append(struct.pack("<HBBI", operation, 0, 0, self.labels[true] - at - 1))
            else:
                assert isinstance(true, int) and isinstance(false, int)
                out.append(struct.pack("<HBBI", operation, true, false, k))
        return b"".join(out)


def build(machine: str = linux.MACHINE) -> bytes:
    """The filter for `machine` (x86_64 or aarch64), 8 bytes an instruction."""
    if machine not in _AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"no system-call table for {machine}: environments cannot be confined here")
    numbers = system_calls(machine)
    asm = _Assembler()
    asm.load(_ARCH)
    asm.unless(_JMP_EQ, _AUDIT_ARCH[machine], "kill")
    asm.load(_NR)
    asm.when(_JMP_GE, _X32_BIT, "kill")

    targets = {numbers[name]: "allow" for name in _ALLOWED if name in numbers}
    targets |= {numbers[name]: "absent" for name in _ABSENT if name in numbers}
    for name in _RULES:
        if name in numbers:
            targets[numbers[name]] = name
    _search(asm, sorted(targets.items()))

    for name, rule in _RULES.items():
        if name in numbers:
            asm.label(name)
            rule(asm)
    asm.label("allow")
    asm.ret(ALLOW)
    asm.label("absent")
    asm.ret(refuse(errno.ENOSYS))
    asm.label("refused")
    asm.ret(refuse(errno.EPERM))
    asm.label("kill")
    asm.ret(KILL_PROCESS)
    return asm.assemble()


def install() -> None:
    """Put the calling thread under the filter, for good.  No-new-privs must be set."""
    linux.set_seccomp_filter(build())


def _search(asm: _Assembler, targets: Sequence[tuple[int, str]]) -> None:
    """Binary search over the numbers: about nine comparisons instead of two hundred."""
    if len(targets) <= 3:
        for number, target in targets:
            asm.when(_JMP_EQ, number, target)
        asm.go("refused")
        return
    middle = len(targets) // 2
    right = f"from {targets[middle][0]}"
    asm.when(_JMP_GE, targets[middle][0], right)
    _search(asm, targets[:middle])
    asm.label(right)
    _search(asm, targets[middle:])


def _argument(asm: _Assembler, index: int) -> None:
    asm.load(_ARGUMENTS + 8 * index)


def _one_of(asm: _Assembler, values: Sequence[int]) -> None:
    for value in values:
        asm.when(_JMP_EQ, value, "allow")


def _rule_ioctl(asm: _Assembler) -> None:
    _argument(asm, 1)
    _one_of(asm, _IOCTL_ALLOWED)
    asm.unless(_JMP_EQ, _FIONBIO, "refused")
    _below_granted(asm)


def _below_granted(asm: _Assembler) -> None:
    """Allowed on the caller's own descriptors, refused on the granted ones (SC-4)."""
    _argument(asm, 0)
    asm.when(_JMP_GE, GRANTED, "refused")
    asm.go("allow")


def _rule_fcntl(asm: _Assembler) -> None:
    _argument(asm, 1)
    _one_of(asm, _FCNTL_ALLOWED)
    for command in _FCNTL_BELOW_GRANTED:
        asm.when(_JMP_EQ, command, "fcntl own")
    asm.go("refused")
    asm.label("fcntl own")
    _below_granted(asm)


def _rule_clone(asm: _Assembler) -> None:
    _argument(asm, 0)
    asm.when(_JMP_SET, _NAMESPACES, "refused")
    asm.unless(_JMP_SET, linux.CLONE_THREAD, "refused")
    asm.go("allow")


def _rule_prctl(asm: _Assembler) -> None:
    _argument(asm, 0)
    _one_of(asm, _PRCTL_ALLOWED)
    asm.go("refused")


def _rule_madvise(asm: _Assembler) -> None:
    _argument(asm, 2)
    _one_of(asm, _MADVISE_ALLOWED)
    asm.go("refused")


def _rule_socketpair(asm: _Assembler) -> None:
    _argument(asm, 0)
    asm.when(_JMP_EQ, _AF_UNIX, "allow")
    asm.go("refused")


def _rule_prlimit(asm: _Assembler) -> None:
    """Of oneself only: uids are unique and namespaces private, and this costs nothing."""
    _argument(asm, 0)
    asm.when(_JMP_EQ, 0, "allow")
    asm.go("refused")


_RULES = {
    "ioctl": _rule_ioctl,
    "fcntl": _rule_fcntl,
    "dup": _below_granted,
    "dup2": _below_granted,
    "dup3": _below_granted,
    "clone": _rule_clone,
    "prctl": _rule_prctl,
    "madvise": _rule_madvise,
    "socketpair": _rule_socketpair,
    "prlimit64": _rule_prlimit,
}


def system_calls(machine: str) -> dict[str, int]:
    """Numbers of the calls named in this module; newer ones have the same number everywhere."""
    table = _X86_64 if machine == "x86_64" else _AARCH64
    words = (table + _COMMON).split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


# arch/x86/entry/syscalls/syscall_64.tbl
_X86_64 = """
    read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11
    brk 12 rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 ioctl 16 pread64 17 pwrite64 18 readv 19
    writev 20 access 21 pipe 22 select 23 sched_yield 24 mremap 25 msync 26 mincore 27 madvise 28 dup 32
    dup2 33 pause 34 nanosleep 35 getitimer 36 alarm 37 setitimer 38 getpid 39 sendfile 40 sendto 44
    recvfrom 45 recvmsg 47 shutdown 48 getsockname 51 getpeername 52 socketpair 53 setsockopt 54
    getsockopt 55 clone 56 exit 60 kill 62 uname 63 fcntl 72 flock 73 fsync 74 fdatasync 75 truncate 76
    ftruncate 77 getdents 78 getcwd 79 chdir 80 fchdir 81 rename 82 mkdir 83 rmdir 84 creat 85 link 86
    unlink 87 symlink 88 readlink 89 chmod 90 fchmod 91 umask 95 gettimeofday 96 getrlimit 97
    getrusage 98 sysinfo 99 times 100 getuid 102 getgid 104 geteuid 107 getegid 108 getppid 110
    getpgrp 111 getgroups 115 getresuid 118 getresgid 120 getpgid 121 getsid 124 capget 125
    rt_sigpending 127 rt_sigtimedwait 128 rt_sigsuspend 130 sigaltstack 131 statfs 137 fstatfs 138
    getpriority 140 sched_getparam 143 sched_getscheduler 145 sched_get_priority_max 146
    sched_get_priority_min 147 mlock 149 munlock 150 prctl 157 arch_prctl 158 gettid 186 tkill 200
    time 201 futex 202 sched_setaffinity 203 sched_getaffinity 204 epoll_create 213 getdents64 217
    set_tid_address 218 restart_syscall 219 timer_create 222 timer_settime 223 timer_gettime 224
    timer_getoverrun 225 timer_delete 226 clock_gettime 228 clock_getres 229 clock_nanosleep 230
    exit_group 231 epoll_wait 232 epoll_ctl 233 tgkill 234 openat 257 mkdirat 258 newfstatat 262
    unlinkat 263 renameat 264 linkat 265 symlinkat 266 readlinkat 267 fchmodat 268 faccessat 269
    pselect6 270 ppoll 271 set_robust_list 273 get_robust_list 274 utimensat 280 epoll_pwait 281
    timerfd_create 283 eventfd 284 timerfd_settime 286 timerfd_gettime 287 signalfd4 289 eventfd2 290
    epoll_create1 291 dup3 292 pipe2 293 preadv 295 pwritev 296 recvmmsg 299 prlimit64 302 getcpu 309
    renameat2 316 getrandom 318 membarrier 324 copy_file_range 326 preadv2 327 pwritev2 328 statx 332
    rseq 334
"""
# include/uapi/asm-generic/unistd.h, which aarch64 uses
_AARCH64 = """
    getcwd 17 eventfd2 19 epoll_create1 20 epoll_ctl 21 epoll_pwait 22 dup 23 dup3 24 fcntl 25 ioctl 29
    flock 32 mkdirat 34 unlinkat 35 symlinkat 36 linkat 37 renameat 38 statfs 43 fstatfs 44 truncate 45
    ftruncate 46 faccessat 48 chdir 49 fchdir 50 fchmod 52 fchmodat 53 openat 56 close 57 pipe2 59
    getdents64 61 lseek 62 read 63 write 64 readv 65 writev 66 pread64 67 pwrite64 68 preadv 69
    pwritev 70 sendfile 71 pselect6 72 ppoll 73 signalfd4 74 readlinkat 78 newfstatat 79 fstat 80
    fsync 82 fdatasync 83 timerfd_create 85 timerfd_settime 86 timerfd_gettime 87 utimensat 88 capget 90
    exit 93 exit_group 94 set_tid_address 96 futex 98 set_robust_list 99 get_robust_list 100
    nanosleep 101 getitimer 102 setitimer 103 timer_create 107 timer_gettime 108 timer_getoverrun 109
    timer_settime 110 timer_delete 111 clock_gettime 113 clock_getres 114 clock_nanosleep 115
    sched_getscheduler 120 sched_getparam 121 sched_setaffinity 122 sched_getaffinity 123
    sched_yield 124 sched_get_priority_max 125 sched_get_priority_min 126 restart_syscall 128 kill 129
    tkill 130 tgkill 131 sigaltstack 132 rt_sigsuspend 133 rt_sigaction 134 rt_sigprocmask 135
    rt_sigpending 136 rt_sigtimedwait 137 rt_sigreturn 139 getpriority 141 getresuid 148 getresgid 150
    times 153 getpgid 155 getsid 156 getgroups 158 uname 160 getrlimit 163 getrusage 165 umask 166
    prctl 167 getcpu 168 gettimeofday 169 getpid 172 getppid 173 getuid 174 geteuid 175 getgid 176
    getegid 177 gettid 178 sysinfo 179 socketpair 199 getsockname 204 getpeername 205 sendto 206
    recvfrom 207 setsockopt 208 getsockopt 209 shutdown 210 recvmsg 212 brk 214 munmap 215 mremap 216
    clone 220 mmap 222 mprotect 226 msync 227 mlock 228 munlock 229 mincore 232 madvise 233 recvmmsg 243
    prlimit64 261 renameat2 276 getrandom 278 membarrier 283 copy_file_range 285 preadv2 286
    pwritev2 287 statx 291 rseq 293
"""
# Numbers from 424 on are the same on every architecture.
_COMMON = """
    io_uring_setup 425 io_uring_enter 426 io_uring_register 427 clone3 435 close_range 436 openat2 437
    faccessat2 439 epoll_pwait2 441 futex_waitv 449 fchmodat2 452 map_shadow_stack 453
"""
