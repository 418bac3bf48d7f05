#!/bin/busybox sh
# The first program of a guest: loads the drivers of the devices it has, mounts the root read-only and goes there.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev

fail() {
    echo "nex: first stage: $*" >/dev/console
    $b reboot -f
}

load() { # what is missing is noticed when it is used; what is loaded already is no mistake
    [ -f "/modules/$1" ] || return 0
    while read -r module; do $b insmod "/modules/$module" 2>/dev/null; done <"/modules/$1"
}

device= type=
read -r line </proc/cmdline
for word in $line; do
    case $word in
    nex.root=*) device=${word#*=} ;;
    nex.fs=*) type=${word#*=} ;;
    esac
done
[ -n "$device" ] && [ -n "$type" ] || fail "the kernel was not told nex.root and nex.fs"

load base
for file in /sys/bus/pci/devices/*; do
    [ -e "$file" ] && load pci
    break
done
load "$type"
for file in /sys/bus/virtio/devices/*/device; do # each kind of device has its own drivers
    [ -f "$file" ] && read -r kind <"$file" && load "virtio-$kind"
done

tries=0
while [ ! -b "$device" ]; do
    [ $tries -lt 600 ] || fail "no device $device: are its drivers in this image?"
    tries=$((tries + 1))
    $b usleep 5000
done
$b mount -t "$type" -o ro,nodev "$device" /root || fail "cannot mount $device as $type"
for folder in dev proc sys; do
    $b mount --move /$folder /root/$folder || fail "the root has no folder /$folder"
done
export PATH=/usr/bin HOME=/root LANG=C.UTF-8
exec $b switch_root /root /usr/bin/python3 -I -B -X utf8 -X frozen_modules=on -c 'from nex.agent.guest import main; main()'
