/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sys.h"

void *memcpy(void *to, const void *from, __SIZE_TYPE__ n)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

void *memmove(void *to, const void *from, __SIZE_TYPE__ n)
{
    if (to <= from)
        return memcpy(to, from, n);
    for (u8 *t = to; n; n--)
        t[n - 1] = ((const u8 *)from)[n - 1];
    return to;
}

void *memset(void *to, int value, __SIZE_TYPE__ n)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
    return start;
}

__SIZE_TYPE__ strlen(const char *s)
{
    const char *end = s;
    while (*end)
        end++;
    return end - s;
}

int starts_with(const char *s, const char *prefix)
{
    while (*prefix)
        if (*s++ != *prefix++)
            return 0;
    return 1;
}
