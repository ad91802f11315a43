#!/bin/sh
# Run the command given; kill -9 it as soon as standard input reaches its end.
# The test holds the other end of that pipe, so that no emulator outlives its test, however it ends,
# and so that closing the pipe is the power cut of the crash tests.
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
(cat <&3 >/dev/null; kill -9 $child 2>/dev/null) >/dev/null 2>&1 &
guard=$!
exec 3<&-
wait $child
rc=$?
kill $guard 2>/dev/null
exit $rc
