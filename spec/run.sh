#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs the C tests and the specs of one build, some at a time, and closes with "N passed, N failed".
#   sh spec/run.sh BUILD [c] [lua]      from the Makefile, which sets LUA_PATH and LUA_CPATH
# Environment: RUN stands before every program (env LD_PRELOAD=…, valgrind …), SPECS are the spec files if not all,
# BUSTED holds more options for busted, SPEC_SECONDS is what one spec file may take.
#
# Way   the list of programs -> xargs -> sh spec/run.sh BUILD one c|lua FILE -> its output and "passed failed" in files
#       -> all outputs, all sums
build=$1
shift
# Where no name server answers, that is found soon.
export RES_OPTIONS="timeout:1 attempts:1"
mkdir -p "$build/test"

# One program is one test: it fails by its exit code. The alarm of check.h, which names what hangs, comes first.
c_test() {
    name=$(basename "$1" .c)
    # $RUN is a list of words.
    # shellcheck disable=SC2086
    if timeout -k 5 150 $RUN "$build/test/$name" >"$build/test/$name.log" 2>&1; then
        good=1 bad=0
    else
        good=0 bad=1
        echo "FAILED $name (exit $?)"
        sed 's/^/    /' "$build/test/$name.log"
    fi
}

# spec/report.lua leaves "passed failed" in a file, or the name of the spec that ended the run before its end.
spec_file() {
    count=$out.count
    echo "before the first spec" >"$count"
    # shellcheck disable=SC2086
    timeout -k 5 "${SPEC_SECONDS:-150}" $RUN lua5.4 /usr/bin/busted --ignore-lua --cpath="$build/?.so" \
        -o spec/report.lua -Xoutput "$count" $BUSTED "$1"
    code=$?
    if grep -qx '[0-9]* [0-9]*' "$count"; then
        read -r good bad <"$count"
    else
        good=0 bad=1
        echo "FAILED $1: no regular end, last in: $(cat "$count")"
    fi
    # Everything went well, but then the interpreter did not end well.
    if [ "$code" != 0 ] && [ "$bad" = 0 ]; then
        bad=1
        echo "FAILED $1: exit $code after the last one"
    fi
}

# Output and sums of one program, in files named after it.
one() {
    out=$build/test/run/$(basename "$2")
    case $1 in
        c) c_test "$2" ;;
        lua) spec_file "$2" ;;
    esac >"$out.out" 2>&1
    echo "$good $bad" >"$out.sums"
}

# What takes longest comes first, so that nobody waits for it in the end.
list() {
    case " $* " in *" c "*) printf 'c %s\n' spec/core/test_*.c ;; esac
    case " $* " in *" lua "*) printf 'lua %s\n' ${SPECS:-spec/*_spec.lua spec/*/*_spec.lua} ;; esac
}
long='args_spec|file_spec|test_file|stream_spec|test_fd\.|test_bh|test_timer|examples_spec|error_spec|matrix_spec'

if [ "$1" = one ]; then
    one "$2" "$3"
    exit 0
fi

rm -rf "$build/test/run"
mkdir "$build/test/run"
jobs=$(list "$@")
# Three at a time, since much of it waits.
{
    echo "$jobs" | grep -E "$long"
    echo "$jobs" | grep -vE "$long"
} | xargs -P 3 -n 2 sh spec/run.sh "$build" one

passed=0
failed=0
for file in $(echo "$jobs" | cut -d' ' -f2); do
    out=$build/test/run/$(basename "$file")
    # Of what passed the count, and what it has to tell (the cells of the matrix).
    if read -r good bad <"$out.sums" && [ "$bad" = 0 ]; then
        printf '%5d ok  %s\n' "$good" "$file"
        sed '/^[-+]*$/d; / successes \/ /d' "$out.out"
    else
        good=${good:-0} bad=${bad:-1}
        printf '%5d failed  %s\n' "$bad" "$file"
        cat "$out.out"
    fi
    passed=$((passed + good))
    failed=$((failed + bad))
done
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed != 0 ]
