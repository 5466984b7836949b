/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Return values of a cgroup hook.
 */
#ifndef COMMON_CGROUP_H
#define COMMON_CGROUP_H

#define CGROUP_REFUSE 0
#define CGROUP_PROCEED 1

#endif
