/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * All times are CLOCK_MONOTONIC in nanoseconds. The coarse clock is cheaper, and late by up to a
 * tick.
 */
#ifndef COMMON_TIME_H
#define COMMON_TIME_H

#define NSEC_PER_SEC 1000000000ULL

#endif
