"""The system calls that a program in the sandbox may not make, as a filter for the kernel (classic BPF, seccomp(2)).

What is refused fails with EPERM, as where a user lacks the right to it. A filter is a list of instructions, each of 8
bytes: u16 code, u8 jump if true, u8 jump if false, u32 operand (linux/filter.h). It reads `struct seccomp_data`: the
number of the call at offset 0, the architecture at 4, the arguments from 16, of 8 bytes each.
"""

from __future__ import annotations

import errno
import platform
import struct

#: What no program needs that reads, computes and prints, and its numbers: on x86-64 and on ARM (None: has it not).
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes: their memory, their files, their existence
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "fork": (57, None), "vfork": (58, None),
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "move_mount": (429, 429),
    "open_tree": (428, 428), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "quotactl": (179, 60), "quotactl_fd": (443, 443), "ustat": (136, None),
    "sysfs": (139, None), "lookup_dcookie": (212, 18),
    # parts of the kernel that have often been attacked
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "vmsplice": (278, 75), "remap_file_pages": (216, 234), "modify_ldt": (154, None),
    "uselib": (134, None), "personality": (135, 92), "move_pages": (279, 239), "migrate_pages": (256, 238),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "get_mempolicy": (239, 236),
    "set_mempolicy_home_node": (450, 450),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "create_module": (174, None), "get_kernel_syms": (177, None),
    "query_module": (178, None), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "syslog": (103, 116), "vhangup": (153, 58), "iopl": (172, None), "ioperm": (173, None),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "nfsservctl": (180, 42), "_sysctl": (156, None),
    # memory that outlives a process, or that no limit of a process counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "shmdt": (67, 197), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "mq_timedsend": (242, 182), "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
}  # fmt: skip

#: Calls that are allowed or not by an argument: (numbers, which argument, mask, value, whether it must be equal).
_CLONE_THREAD, _AF_UNIX, _SET_PIPE_SIZE, _FAKE_INPUT = 0x10000, 1, 1031, 0x5412
_BY_ARGUMENT = {
    "clone": ((56, 220), 0, _CLONE_THREAD, _CLONE_THREAD, True),  # threads only: a program is one process
    "socket": ((41, 198), 0, 0xFFFFFFFF, _AF_UNIX, True),  # others are not all kept in by a network namespace
    "socketpair": ((53, 199), 0, 0xFFFFFFFF, _AF_UNIX, True),
    "fcntl": ((72, 25), 1, 0xFFFFFFFF, _SET_PIPE_SIZE, False),
    "ioctl": ((16, 29), 1, 0xFFFFFFFF, _FAKE_INPUT, False),
}
#: Its flags lie in memory, where no filter can look: it is said to be missing, and C libraries then call `clone`.
_CLONE3 = 435
#: Calls that came after these are said to be missing: nobody has looked at them here.
LAST_KNOWN = 450

#: Of `platform.machine()`: the column of numbers above, and AUDIT_ARCH_* (linux/audit.h).
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # a word of seccomp_data; the accumulator; the verdict
_EQUAL, _GREATER = 0x15, 0x25  # jumps
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_DENY, _MISSING = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def assemble(machine: str | None = None) -> bytes:
    """The filter for a machine (None: this one). Raises KeyError for one that is not in `MACHINES`."""
    column, architecture = MACHINES[machine or platform.machine()]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),  # such as 32-bit calls on a 64-bit machine, which have other numbers
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER, 0, 1, LAST_KNOWN),  # x32, too, whose numbers begin at 2^30
        (_RETURN, 0, 0, _MISSING),
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _MISSING),
    ]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    for numbers_of_call, argument, mask, value, must_be in _BY_ARGUMENT.values():
        program += [
            (_EQUAL, 0, 5, numbers_of_call[column]),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),  # its lower half, on little-endian machines
            (_AND, 0, 0, mask),
            (_EQUAL, *((0, 1) if must_be else (1, 0)), value),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _DENY),
        ]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
