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
specs() {
    count=$build/test/specs.count
    echo "before the first spec" >"$count"
    # shellcheck disable=SC2086
    timeout -k 5 "${SPEC_SECONDS:-200}" $RUN lua5.4 /usr/bin/busted --ignore-lua --cpath="$build/?.so" \
        -o spec/report.lua -Xoutput "$count" $BUSTED
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

for kind; do
    case $kind in
        c) c_tests ;;
        lua) specs ;;
    esac
done
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed != 0 ]
