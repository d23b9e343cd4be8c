/* SPDX-License-Identifier: MIT
 * The notify handshake of an aioloop context: no wake-up is lost, and none is sent that nobody needs.
 *
 * Way      a message is a pushed BH (counted in `work`) or a bare notification (a change counted in `change`, told
 *          by `notified`). The waiter turns until it has handled all, then sleeps for good: that is `ltl rest`.
 * Threads  NPROD producers of NMSG messages, one waiter: aio_poll, or with -DGSOURCE a GSource under GLib.
 * Keep     1. rest: in the end every message is handled and the loop sleeps. A lost wake-up breaks it, so does a spin.
 *          2. assert(waiting): a producer that decides to write the eventfd does so for a waiter that has announced
 *             itself and has not accepted since.
 *
 * label                    C function
 * publish                  aio_bh_schedule from another thread: push; `first`: it found nothing there  csrc/core/bh.c
 * publish_bare             the caller's change, then aio_notify: set `notified`        csrc/core/notify.c
 * tell, tell_look          aio__published, unless others were there: fence, read `notify_me`  csrc/core/bh.c, notify.c
 * turn, unannounced        aio_poll, where aio__spin hit or the timeout is 0           csrc/core/context.c, polling.c
 * announce, announce_fence sleep_announced: aio__announce (pairs with tell)            csrc/core/context.c, notify.c
 * look, asleep_here        sleep_announced: aio__work_seen, aio__fds_wait              csrc/core/context.c
 * withdraw, accept_here    aio__withdraw, aio__accept                                  csrc/core/notify.c
 * handle                   aio__dispatch after accept, up to aio__plan of the next turn  csrc/core/context.c
 * prepare, prepare_fence   prepare: aio__announce                                      csrc/core/source.c
 * prepare_look             prepare: `notified`, plan                                   csrc/core/source.c
 * between                  what GLib and other sources may do after prepare
 * check, dispatch          check: aio__withdraw, aio__fds_wait, aio__accept; dispatch  csrc/core/source.c
 *
 * -DEDGE is the epoll backend, which tells of a write once, whether or not somebody reads the eventfd (nobody does).
 *
 * clear_notified stores and fences; aio__accept exchanges, which is as good: it either reads the newer `true`, and
 * with it the change, or comes before it and leaves it standing.
 *
 * -DTSO gives every thread a FIFO store buffer that drains at any moment; a fence, like a system call, waits until
 * it is empty. `work` and `change` count what is committed and not yet handled, whichever producer it came from.
 * Weaker orders than TSO (aarch64) are not modelled.
 *
 * -DBUG=n seeds a mistake:
 *   1 waiter: no fence between announcing and looking (TSO)    6 GSource counts prepares instead of setting a bit
 *   2 producer: no fence between publishing and looking (TSO)  7 GSource: a non-blocking poll clears the eventfd too
 *   3 accept after handling (aio_poll)                         8 accept without a fence behind it (TSO, aio_poll)
 *   4 announce after looking                                   9 an unannounced poll leaves `notified` set (aio_poll)
 *   5 producer marks its write in `notified`, and skips the write when it finds it marked
 *  10 producer looks whether it is the first, and then pushes
 */
#ifndef NPROD
#define NPROD 2         /* 1 to 3: see drain */
#endif
#ifndef NMSG
#define NMSG 2
#endif
#ifndef NODD
#define NODD 2          /* how many non-blocking polls, and oddities of GLib, a run may contain */
#endif
#ifndef BUG
#define BUG 0
#endif
#define WAITER NPROD    /* the waiter's thread number; producers are 0 .. NPROD-1 */

mtype = { PUSH, CHANGE, SET, CLEAR, ANNOUNCE, WITHDRAW };

byte work, change;      /* committed by producers, not yet handled */
byte notify_me;         /* stored by the waiter only: +2 for aio_poll, bit 0 for the GSource */
bit notified;           /* set by producers, cleared by the waiter */
bit efd;                /* the eventfd, saturating at 1; or what epoll knows of it */
bit fired;              /* the waiter's own: the last wait reported the eventfd */

/* Ghosts: read by the properties alone. */
byte handled;
bool waiting;           /* from announcing to having accepted */
bool asleep;            /* in the kernel's wait, without a timeout */

ltl rest { <>[] (asleep && !efd && handled == NPROD * NMSG) }

/* What a store does once the other threads can see it. */
inline commit(op)
{
    if
    :: op == PUSH     -> work++
    :: op == CHANGE   -> change++
    :: op == SET      -> notified = 1
    :: op == CLEAR    -> notified = 0
#if defined(GSOURCE) && BUG != 6
    :: op == ANNOUNCE -> notify_me = notify_me | 1
    :: op == WITHDRAW -> notify_me = notify_me & 254
#else
    :: op == ANNOUNCE -> notify_me = notify_me + 2
    :: op == WITHDRAW -> notify_me = notify_me - 2
#endif
    fi
}

#ifdef TSO
chan buffer[NPROD + 1] = [4] of { mtype };

#define store(thread, op)   buffer[thread]!op
#define fence(thread)       empty(buffer[thread])
#define NOTIFIED            (notified && !(buffer[WAITER]??[CLEAR]))    /* the waiter sees its own stores at once */

/* One process for all buffers: pan -f, as it is built by default, has room for six. */
proctype drain()
{
    mtype op;
end:
    do
    :: atomic {
            if
            :: buffer[0]?op
            :: buffer[1]?op
#if NPROD > 1
            :: buffer[2]?op
#endif
#if NPROD > 2
            :: buffer[3]?op
#endif
            fi;
            commit(op);
            op = 0
       }
    od
}
#else
#define store(thread, op)   atomic { commit(op) }
#define fence(thread)       skip
#define NOTIFIED            notified
#endif

#define LOOK    (work || NOTIFIED)

/* System calls: each is a barrier for its thread. */
inline efd_write(thread) { atomic { fence(thread) -> efd = 1 } }
#ifdef EDGE             /* efd: epoll has an event that it has not told */
#define TAKE            efd = 0
inline efd_clear()       { skip }
#else
#define TAKE            skip
inline efd_clear()       { atomic { fence(WAITER) -> efd = 0 } }
#endif
inline efd_poll()        { atomic { fence(WAITER) -> fired = efd; TAKE } }
inline efd_wait()
{
    atomic { fence(WAITER) -> asleep = true };
asleep_here:
#ifdef GSOURCE          /* GLib looks at the epoll fd, which stays ready until check has asked it */
    atomic { efd -> asleep = false }
#else
    atomic { efd -> asleep = false; fired = 1; TAKE }
#endif
}

inline clear_notified()
{
    store(WAITER, CLEAR);
#if BUG != 8
    fence(WAITER)       /* or a change made after we looked hides behind our late CLEAR */
#endif
}

/* Drains at once, as any atomic read-modify-write does under TSO. Delayed it would cost a needless write, no more. */
inline take_back()
{
    store(WAITER, WITHDRAW);
    fence(WAITER)
}

inline accept_wakeup()
{
    if
    :: fired -> efd_clear(); fired = 0
    :: else
    fi;
    clear_notified();
    waiting = false
}

inline run_bhs()        { d_step { handled = handled + work; work = 0 } }
inline see_change()     { d_step { handled = handled + change; change = 0 } }

proctype producer(byte me)
{
    byte sent;
    bool bare, first;

    do
    :: sent < NMSG ->
        sent++;
        if
        :: bare = false;
#if BUG == 10
            first = !work;
publish:    store(me, PUSH)
#else
publish:    atomic { fence(me) -> first = !work; commit(PUSH) }   /* an exchange */
#endif
        :: bare = true;
            first = true;
publish_bare:
            store(me, CHANGE);
            store(me, SET)
        fi;
        if
        :: first
        :: else -> goto told
        fi;
tell:
#if BUG != 2
        fence(me);
#endif
tell_look:
        if
        :: atomic { notify_me != 0 -> assert(waiting) };
#if BUG == 5
            if
            :: !bare && notified
            :: else -> efd_write(me); store(me, SET)
            fi
#else
            efd_write(me)
#endif
        :: else
        fi;
told:
        bare = false;
        first = false
    :: else -> break
    od
}

#ifndef GSOURCE

/* A bare change is seen in `handle` only: aio_poll computes its timeout before it announces itself. */
inline handle_all()
{
    run_bhs();
    see_change()
}

proctype waiter()
{
    byte odd;
    bool idle;

turn:
    if
    :: odd < NODD -> odd++; goto unannounced    /* the caller asked for timeout 0 */
    :: LOOK -> goto unannounced                 /* the busy-poll phase hit */
    :: true -> goto announce                    /* it did not, or there is none */
    fi;

unannounced:            /* `efd` is left alone: it belongs to whoever has announced himself */
#if BUG != 9
    clear_notified();
#endif
    handle_all();
    goto turn;

announce:
#if BUG == 4
    idle = !LOOK;
#endif
    atomic { waiting = true; store(WAITER, ANNOUNCE) };
announce_fence:
#if BUG != 1
    fence(WAITER);
#endif
look:
#if BUG != 4
    idle = !LOOK;
#endif
    if
    :: idle -> efd_wait()
    :: else -> efd_poll()
    fi;
withdraw:
    idle = false;
    take_back();
#if BUG == 3
    handle_all();
    accept_wakeup();
#else
accept_here:
    accept_wakeup();
handle:
    handle_all();
#endif
    goto turn
}

#else

/* A bare change is seen in `prepare` only: it is what GLib's timeout was computed from that counts. */
proctype waiter()
{
    byte odd;
    bool idle;

prepare:
#if BUG == 4
    see_change();
    idle = !LOOK;
#endif
    atomic { waiting = true; store(WAITER, ANNOUNCE) };
prepare_fence:
#if BUG != 1
    fence(WAITER);
#endif
prepare_look:
#if BUG != 4
    see_change();
    idle = !LOOK;
#endif

between:
    if
    :: odd < NODD -> odd++;
        if
        :: goto prepare         /* a more urgent source was ready: GLib skips our check */
        :: goto check           /* another source's timeout ended the wait */
        :: skip                 /* another source's prepare polls the context, not blocking */
        fi;
#if BUG == 7
        efd_clear();
#endif
        clear_notified();
        run_bhs();
        goto between
    :: idle -> efd_wait()
    :: !idle
    fi;

check:
    idle = false;
    take_back();
    efd_poll();
#if BUG != 3
    accept_wakeup();
#endif
dispatch:
    run_bhs();
#if BUG == 3
    accept_wakeup();
#endif
    goto prepare
}

#endif

init
{
    byte i;

    atomic {
        for (i : 0 .. NPROD - 1) { run producer(i) };
        run waiter();
#ifdef TSO
        run drain();
#endif
        i = 0
    }
}
