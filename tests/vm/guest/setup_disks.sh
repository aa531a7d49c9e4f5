# SPDX-License-Identifier: Apache-2.0
#
# Sourced inside the machine: makes the devices that need no QEMU: memory-backed null_blk with
# blocks of 512 and 4096 bytes and with a virtual boundary, a RAM disk, a loop device. Exports
# VM_NULL512, VM_NULL4K, VM_NULLVB, VM_RAM, VM_LOOP.

# make_null NAME BLOCK_BYTES [ATTRIBUTE=VALUE...]
make_null() {
    null=/sys/kernel/config/nullb/$1
    mkdir "$null" && echo 1 > "$null/memory_backed" && echo 64 > "$null/size" &&
        echo "$2" > "$null/blocksize" || return 1
    shift 2
    for setting; do
        echo "${setting#*=}" > "$null/${setting%%=*}" || return 1
    done
    echo 1 > "$null/power"
}

modprobe null_blk nr_devices=0 &&
    modprobe brd rd_nr=1 rd_size=65536 &&
    modprobe loop max_loop=1 &&
    mount -t configfs configfs /sys/kernel/config &&
    make_null null512 512 &&
    make_null null4k 4096 &&
    make_null nullvb 512 virt_boundary=1 &&
    truncate -s 64M /dev/shm/loop.img &&
    busybox losetup /dev/loop0 /dev/shm/loop.img &&
    export VM_NULL512=/dev/null512 VM_NULL4K=/dev/null4k VM_NULLVB=/dev/nullvb \
        VM_RAM=/dev/ram0 VM_LOOP=/dev/loop0
