#!/bin/sh
# Run a command as an ordinary user, even where the Python that runs it lies in root's private folder: in a namespace
# of mounts, that folder shows nothing but Python, to everybody.
# usage: as_ordinary_user.sh USER-ID FOLDER PYTHON-PREFIX COMMAND...
set -e
user=$1 folder=$2 prefix=$3
shift 3
if [ "$NEX_TEST_MOUNTS" != own ]; then
    NEX_TEST_MOUNTS=own exec unshare --mount --propagation private "$0" "$user" "$folder" "$prefix" "$@"
fi
home=/$(echo "$prefix" | cut -d/ -f2)
if [ -n "$(find "$home" -prune ! -perm -001)" ]; then
    mkdir "$folder/prefix"
    mount --bind "$prefix" "$folder/prefix"
    mount -t tmpfs -o mode=755 none "$home"
    mkdir -p "$prefix"
    mount --move "$folder/prefix" "$prefix"
    rmdir "$folder/prefix"
fi
exec setpriv --reuid "$user" --regid "$user" --clear-groups --inh-caps=-all "$@"
