#!/bin/bash
# fsck.gfs2 of this project against that of gfs2-utils, on the same image: wall, CPU and memory, warm and cold, in one
# run. Both only look (-n). Cold needs root: the image's pages are dropped through its own file, nothing else's.
#
# usage: fsck/benches/against-original.sh IMAGE [OURS [THEIRS [RUNS]]]
set -euo pipefail

image=${1:?usage: $0 IMAGE [OURS [THEIRS [RUNS]]]}
ours=${2:-target/release/fsck-gfs2}
theirs=${3:-fsck.gfs2}
runs=${4:-5}

# Takes the image out of the page cache; nothing is written: the image is only read here.
drop() { dd if="$image" iflag=nocache count=0 status=none; }

# One run: wall seconds, CPU seconds, KiB.
once() {
    local code=0 line
    line=$( { /usr/bin/time -f '%e %U %S %M' "$1" -n "$image" >/dev/null; } 2>&1 ) || code=$?
    [ "$code" -eq 0 ] || { echo "$1 exits $code: $line" >&2; exit 1; }
    awk '{ print $1, $2 + $3, $4 }' <<<"$(tail -1 <<<"$line")"
}

# The run in the middle by wall time.
median() { sort -n "$1" | sed -n "$(( (runs + 1) / 2 ))p"; }

figures=$(mktemp -d)
trap 'rm -rf "$figures"' EXIT

printf '%-6s %-10s %8s %8s %10s\n' cache program 'wall s' 'CPU s' 'KiB'
for how in warm cold; do
    rm -f "$figures"/*
    [ "$how" = cold ] || cat "$image" >/dev/null
    # In turns: what a disk gives changes within minutes.
    for ((n = 0; n < runs; n++)); do
        for program in theirs ours; do
            [ "$how" = warm ] || drop
            once "${!program}" >>"$figures/$program"
        done
    done
    read -r their_wall their_cpu their_mem < <(median "$figures/theirs")
    read -r our_wall our_cpu our_mem < <(median "$figures/ours")
    printf '%-6s %-10s %8s %8s %10s\n' $how theirs "$their_wall" "$their_cpu" "$their_mem"
    printf '%-6s %-10s %8s %8s %10s\n' $how ours "$our_wall" "$our_cpu" "$our_mem"
    awk -v how=$how -v a="$our_wall" -v b="$their_wall" -v c="$our_cpu" -v d="$their_cpu" \
        'BEGIN { printf "%-6s %-10s %8.2f %8.2f\n", how, "ratio", a / b, c / d }'
done
