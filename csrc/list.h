/* SPDX-License-Identifier: MIT
 * Circular lists with a sentinel, through a link inside the element: what the core and the binding queue things in.
 *
 * Owner    whoever owns the element; a list owns nothing.
 * Keep     a link in no list has NULL pointers, so that list_linked can tell. */
#ifndef AIO_LIST_H
#define AIO_LIST_H

#include "aio.h"

static inline void list_init(AioLink *head) { head->prev = head->next = head; }
static inline bool list_empty(const AioLink *head) { return head->next == head; }
static inline bool list_linked(const AioLink *n) { return n->next != NULL; }

static inline void list_insert_after(AioLink *at, AioLink *n) {
  n->prev = at;
  n->next = at->next;
  at->next->prev = n;
  at->next = n;
}

static inline void list_append(AioLink *head, AioLink *n) { list_insert_after(head->prev, n); }

static inline void list_unlink(AioLink *n) {
  n->prev->next = n->next;
  n->next->prev = n->prev;
  n->prev = n->next = NULL;
}

/* Moves all elements of `from`, whose order stays, to the end of `to`. */
static inline void list_append_all(AioLink *to, AioLink *from) {
  if (list_empty(from)) return;
  from->next->prev = to->prev;
  to->prev->next = from->next;
  from->prev->next = to;
  to->prev = from->prev;
  list_init(from);
}

#define container_of(p, type, member) ((type *)(void *)((char *)(p)-offsetof(type, member)))

#endif
