#!/bin/sh
# Checks notify.pml: the protocol as it should be passes, every seeded bug is found. Needs spin and a C compiler.
# One line a run: model, states stored, what was found, verdict. Exit 0 only if every run ended as expected.
set -u
model=$(cd "$(dirname "$0")" && pwd)/notify.pml
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
cd "$dir" || exit 1
bad=0

# found: what the last pan said, in one word. "nothing" only after a complete search.
found() {
    if grep -q 'assertion violated' out; then echo assertion
    elif grep -q 'acceptance cycle (at' out; then echo not-at-rest
    elif grep -q 'errors: 0$' out && ! grep -Eq 'too small|out of memory|not completed' out; then echo nothing
    else echo broken
    fi
}

# run EXPECTED NAME -Dflags...
run() {
    expected=$1 name=$2
    shift 2
    opt=-O0 # a bug is found before an optimiser has paid for itself
    [ "$expected" = nothing ] && opt=-O2
    rm -f pan pan.* ./*.trail out
    { spin -a "$@" "$model" && ${CC:-cc} $opt -w -DNOFAIR -o pan pan.c && ./pan -a -m1000000; } >out 2>&1
    got=$(found)
    verdict=ok
    [ "$got" = "$expected" ] || { verdict="FAILED (expected $expected)"; bad=1; }
    states=$(awk '/states, stored/ { print $1; exit }' out)
    printf '%-40s %8s states  found %-12s %s\n' "$name" "${states:-?}" "$got" "$verdict"
    [ "$got" != broken ] || tail -n 5 out
}

run nothing     'aio_poll'                              -DBUG=0
run nothing     'aio_poll, TSO'                         -DTSO
run nothing     'GSource'                               -DGSOURCE
run nothing     'GSource, TSO'                          -DGSOURCE -DTSO
run nothing     'aio_poll, edge'                        -DEDGE
run nothing     'aio_poll, edge, TSO'                   -DEDGE -DTSO
run nothing     'GSource, edge'                         -DEDGE -DGSOURCE
run nothing     'GSource, edge, TSO'                    -DEDGE -DGSOURCE -DTSO

run not-at-rest '1 waiter unfenced, aio_poll, TSO'      -DBUG=1 -DTSO
run not-at-rest '1 waiter unfenced, GSource, TSO'       -DBUG=1 -DTSO -DGSOURCE
run not-at-rest '2 producer unfenced, aio_poll, TSO'    -DBUG=2 -DTSO
run not-at-rest '2 producer unfenced, GSource, TSO'     -DBUG=2 -DTSO -DGSOURCE
run not-at-rest '3 accept after handling, aio_poll'     -DBUG=3
run not-at-rest '4 announce after look, aio_poll'       -DBUG=4
run not-at-rest '4 announce after look, GSource'        -DBUG=4 -DGSOURCE
run not-at-rest '5 write skipped as marked, aio_poll'   -DBUG=5
run not-at-rest '5 write skipped as marked, GSource'    -DBUG=5 -DGSOURCE
run assertion   '6 prepare counted, GSource'            -DBUG=6 -DGSOURCE
run not-at-rest '7 non-blocking swallows, GSource'      -DBUG=7 -DGSOURCE
run not-at-rest '8 accept unfenced, aio_poll, TSO'      -DBUG=8 -DTSO
run not-at-rest '9 notified never cleared, aio_poll'    -DBUG=9
run not-at-rest '10 first by a look, aio_poll'          -DBUG=10
run not-at-rest '10 first by a look, GSource'           -DBUG=10 -DGSOURCE

exit $bad
