#!/bin/bash
# A stand-in for apptainer with the isolation that matters here: a process sees the folders of its
# image ($IMAGE), those that apptainer binds by itself, and those that it is told to bind. It needs
# root and util-linux. Every call is noted in $BOXES.
#
#   apptainer exec [--bind FOLDER[,FOLDER]...] [--env NAME=VALUE]... IMAGE decdpo [ARGUMENT]...
set -eu
echo "$*" >>"$BOXES"
shift
binds=() settings=()
while [[ "$1" == --* ]]; do
    case "$1" in
        --bind) IFS=, read -ra binds <<<"$2" ;;
        --env) settings+=("$2") ;;
        *) echo "box: $1 is not known here" >&2 && exit 255 ;;
    esac
    shift 2
done
[ -f "$1" ] || { echo "box: no image $1" >&2 && exit 255; }
shift 2
export AT="$PWD" FOLDERS="$IMAGE ${binds[*]}"

# shellcheck disable=SC2016 # expanded in the new namespace
exec unshare --mount --propagation private bash -c '
    root=/mnt
    mount -t tmpfs box "$root"
    cd "$root" && mkdir root && ln -s usr/bin usr/sbin usr/lib usr/lib64 .
    for folder in /usr /etc /dev /proc /sys /tmp $FOLDERS; do
        [ -d "$folder" ] || continue
        mkdir -p "$root$folder" && mount --rbind "$folder" "$root$folder" || exit 255
    done
    mkdir -p "$root$AT"
    exec chroot "$root" env "$@"
' box "${settings[@]}" sh -c 'cd "$AT" && exec "$@"' sh "$PROGRAM" -m decdpo "$@"
