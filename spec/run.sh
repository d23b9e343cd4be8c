#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs the C tests and the specs of one build and closes with "N passed, N failed".
#   sh spec/run.sh BUILD [c] [lua]      from the Makefile, which sets LUA_PATH and LUA_CPATH
# Environment: RUN stands before every program (env LD_PRELOAD=…, valgrind …), BUSTED holds more options for busted.
build=$1
shift
passed=0
failed=0
mkdir -p "$build/test"

# One program is one test: it fails by its exit code. The alarm of check.h, which names what hangs, comes first.
c_tests() {
    for source in spec/core/test_*.c; do
        name=$(basename "$source" .c)
        # $RUN is a list of words.
        # shellcheck disable=SC2086
        timeout -k 5 120 $RUN "$build/test/$name" >"$build/test/$name.log" 2>&1
        code=$?
        if [ $code = 0 ]; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "FAILED $name (exit $code)"
            sed 's/^/    /' "$build/test/$name.log"
        fi
    done
}

# spec/report.lua leaves "passed failed" in a file, or the name of the spec that ended the run before its end.
# $1 names the file, the others are the spec files, or none for what $BUSTED or .busted says.
specs() {
    count=$build/test/$1.count
    shift
    echo "before the first spec" >"$count"
    # shellcheck disable=SC2086
    timeout -k 5 "${SPEC_SECONDS:-200}" $RUN lua5.4 /usr/bin/busted --ignore-lua --cpath="$build/?.so" \
        -o spec/report.lua -Xoutput "$count" $BUSTED "$@"
    code=$?
    if grep -qx '[0-9]* [0-9]*' "$count"; then
        read -r good bad <"$count"
    else
        good=0
        bad=1
        echo "FAILED specs: no regular end, last in: $(cat "$count")"
    fi
    # Everything went well, but then the interpreter did not end well.
    if [ "$code" != 0 ] && [ "$bad" = 0 ]; then
        bad=1
        echo "FAILED specs: exit $code after the last one"
    fi
    passed=$((passed + good))
    failed=$((failed + bad))
}

# In the background: its output and its sums go to files.
aside() {
    aside=$1
    shift
    (
        passed=0
        failed=0
        "$@"
        echo "$passed $failed" >"$build/test/$aside.sums"
    ) >"$build/test/$aside.out" 2>&1 &
}

add_up() {
    cat "$build/test/$1.out"
    read -r good bad <"$build/test/$1.sums" || { good=0 bad=1; echo "FAILED $1: no sums"; }
    passed=$((passed + good))
    failed=$((failed + bad))
}

# Every second spec file, from the first or the second on.
every_second() {
    ls spec/*_spec.lua spec/*/*_spec.lua | awk "NR % 2 == $1"
}

# Three at a time, since much of it waits.
side_by_side() {
    rm -f "$build"/test/*.sums
    aside c c_tests
    # Names without blanks.
    # shellcheck disable=SC2046
    aside half specs half $(every_second 0)
    # shellcheck disable=SC2046
    specs other_half $(every_second 1)
    wait
    add_up half
    add_up c
}

case "$*" in
    "c lua") side_by_side ;;
    c) c_tests ;;
    lua) specs all ;;
esac
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed != 0 ]
