# SPDX-License-Identifier: GPL-2.0-only
"""The only folder that enters the kernel. Each file is one of the kernel's interfaces.

To enter the kernel is to
- call the C library or the kernel through ctypes: bpf(2), setns(2), prctl(2), mount(2), ...
- use ioctl(2), flock(2), a netlink or packet socket, a pidfd, an extended attribute of sockfs
- read /proc or /sys, or use a path there
- run another program

Lint rules and tests/kernel/unit/test_only_room.py refuse all of these anywhere else.

Not covered is what every program does, by Python's own functions, about itself and its
files: open, rename and remove files (also pins on bpffs and cgroup directories), open
ordinary sockets, look up interface names, fork, handle signals, wait for child processes.

Hot, so imported for every rule that a router inserts: bpf_maps, libc, lock and
own_netns. They import nothing heavy; tests/test_import_budget.py holds the list.
"""
