/* SPDX-License-Identifier: MIT
 * What a parcel is, for those who pack (lpack.c) and unpack (lunpack.c) it. */
#ifndef LPARCEL_H
#define LPARCEL_H

#include "lbind.h"

enum {
  L_SHORT = 40, /* longer strings have a number, and are copied once */
  L_SLOTS = 32  /* of stack, above the values */
};

typedef enum LTag {
  T_END, /* of the contents of a table or function */
  T_NIL, T_FALSE, T_TRUE,
  T_INTEGER,  /* lua_Integer */
  T_FLOAT,    /* lua_Number */
  T_STRING,   /* size_t, bytes */
  T_TABLE,    /* uint32_t[2]: array, hash; contents: key, value ... */
  T_FUNCTION, /* size_t, bytecode; contents: upvalues */
  T_BUFFER,   /* uint32_t: place in `moved` */
  T_CODE,     /* the parcel's `code`: a function that knows nothing but the globals */
  T_REF,      /* uint32_t: what has this number */
  T_GLOBALS,  /* as an upvalue: the globals table of either state */
  T_JOIN      /* as an upvalue: lua_Integer, place of the upvalue that is the same variable */
} LTag;

typedef struct LMoved {
  LBlock *block;    /* counted; NULL: there was none, or it has arrived */
  size_t cap, len;
} LMoved;

struct LParcel {
  size_t room;      /* in data */
  LCode *code;      /* of the first of them; NULL: there is none */
  LMoved *moved;    /* what buffers held */
  uint32_t nmoved;
  size_t size;
  uint32_t objects; /* those with a number, from 1 */
  int values;
  bool plain;       /* nothing but small values: unpacking them, but for `code`, cannot fail */
  unsigned char data[];
};

LParcel *aioL_parcel_try_pack(lua_State *L, int first, const char *what); /* [-n, +0|1, -] NULL: the error is on top */

#endif
