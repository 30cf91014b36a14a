# What U-Boot runs: chooses the slot, counts a trial's boots down, and falls to the other slot
# where one cannot be loaded. The environment is two copies, CRC32 first, in the partition env at
# 0 and 16 KiB; the sound one with the higher seq counts, and the other one is written. All numbers
# are hexadecimal, as for itest and setexpr. docs/image.md tells the story.
setenv copy0 0x46000000
setenv copy1 0x46010000
setenv sum 0x46020000
part start virtio 0 env lba0
setexpr lba1 ${lba0} + 20

setenv s0 0
setenv s1 0
setenv seq
virtio read ${copy0} ${lba0} 20
if env import -c ${copy0} 4000 seq; then if test -n "${seq}"; then setenv s0 ${seq}; fi; fi
setenv seq
virtio read ${copy1} ${lba1} 20
if env import -c ${copy1} 4000 seq; then if test -n "${seq}"; then setenv s1 ${seq}; fi; fi

setenv newer ${copy0}
setenv older ${lba1}
setenv top ${s0}
if itest ${s1} -gt ${s0}; then setenv newer ${copy1}; setenv older ${lba0}; setenv top ${s1}; fi
setenv seq 0
setenv active
setenv try
setenv tries
setenv done
if itest ${top} -gt 0; then env import -d -c ${newer} 4000 seq active try tries done; fi
if test "${active}" != "b"; then setenv active a; fi
setenv other a
if test "${active}" = "a"; then setenv other b; fi

# A trial is counted before it is booted. What cannot be counted is not tried: it might never end.
setenv slot ${active}
if test -n "${try}"; then
  if itest ${tries} -gt 0; then setexpr tries ${tries} - 1; setenv slot ${try}; else setenv try; setenv tries; fi
  setexpr seq ${seq} + 1
  env export -c -s 4000 ${newer} seq active try tries done
  if virtio write ${newer} ${older} 20; then echo "ferrule: trial ${try} tries ${tries}"; else setenv slot ${active}; fi
fi
if test "${slot}" != "${other}"; then setenv slot ${active}; fi

# A slot is loaded whole and its sums are right, or the next one is booted.
for choice in ${slot} ${active} ${other}; do
  echo "ferrule: slot ${choice}"
  setenv trial 0
  if test "${choice}" = "${try}"; then setenv trial 1; fi
  setenv kernel_sum
  setenv initrd_sum
  setenv slot_args
  part number virtio 0 slot-${choice} n
  if load virtio 0:${n} ${copy0} /boot/boot.env; then
    env import -t ${copy0} ${filesize} kernel_sum initrd_sum slot_args
    if load virtio 0:${n} ${kernel_addr_r} /boot/Image; then
      crc32 ${kernel_addr_r} ${filesize} ${sum}
      if itest.l *${sum} == ${kernel_sum}; then
        if load virtio 0:${n} ${ramdisk_addr_r} /boot/initrd; then
          crc32 ${ramdisk_addr_r} ${filesize} ${sum}
          if itest.l *${sum} == ${initrd_sum}; then
            setenv bootargs ${slot_args} ferrule.slot=${choice} ferrule.trial=${trial}
            booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}
          fi
        fi
      fi
    fi
  fi
  echo "ferrule: slot ${choice} cannot be booted"
done
echo "ferrule: no slot can be booted"
sleep 5
reset
