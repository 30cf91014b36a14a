package slottest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strconv"
	"strings"

	"ferrule/firmware/slot"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// EnvSize is how long a copy of U-Boot's environment is here, in bytes: three sectors to tear.
const EnvSize = 0x600

// UBootEnv makes one copy: a checksum, flags where redundant, variables.
func UBootEnv(size int, flags int, vars ...string) []byte {
	raw := make([]byte, 4, size)
	if flags >= 0 {
		raw = append(raw, byte(flags))
	}
	head := len(raw)
	for _, v := range vars {
		raw = append(append(raw, v...), 0)
	}
	raw = raw[:size]
	binary.LittleEndian.PutUint32(raw, crc32.ChecksumIEEE(raw[head:]))
	return raw
}

// uboot is one U-Boot with its environment in /env, or in two files.
type uboot struct {
	files  []Copy
	script bool // no flags: the boot script tells the copies apart
	count  bool // CONFIG_BOOTCOUNT_ENV
}

func (u uboot) flags() bool { return len(u.files) == 2 && !u.script }

// importEnv is env import -c, or U-Boot's own env_load: nil where the checksum is wrong.
func (u uboot) importEnv(fsys disk.FS, i int) (env map[string]string, flags byte) {
	f, err := fsys.OpenFile(u.files[i].File, os.O_RDONLY, 0)
	if err != nil {
		return nil, 0
	}
	defer f.Close()
	raw := make([]byte, EnvSize)
	if n, _ := f.ReadAt(raw, u.files[i].Off); n < EnvSize {
		return nil, 0
	}
	head := 4
	if u.flags() {
		head = 5
	}
	if binary.LittleEndian.Uint32(raw) != crc32.ChecksumIEEE(raw[head:]) {
		return nil, 0
	}
	env = make(map[string]string)
	for _, entry := range strings.Split(string(raw[head:]), "\x00") {
		name, value, ok := strings.Cut(entry, "=")
		if !ok {
			break
		}
		env[name] = value
	}
	return env, raw[4]
}

// export is env export, or saveenv: what is not empty, sorted, in the place of copy i.
func (u uboot) export(fsys disk.FS, i, flags int, env map[string]string, names ...string) bool {
	if names == nil {
		for name := range env {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var vars []string
	for _, name := range names {
		if env[name] != "" {
			vars = append(vars, name+"="+env[name])
		}
	}
	if !u.flags() {
		flags = -1
	}
	f, err := fsys.OpenFile(u.files[i].File, os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = f.WriteAt(UBootEnv(EnvSize, flags, vars...), u.files[i].Off)
	return err == nil && f.Sync() == nil
}

// number is a number as itest and setexpr read it: hexadecimal, as far as it goes.
func number(s string) int64 {
	n := 0
	for n < len(s) && strings.ContainsRune("0123456789abcdefABCDEF", rune(s[n])) {
		n++
	}
	value, _ := strconv.ParseInt(s[:n], 16, 64)
	return value
}

// first is what can be loaded, in this order.
func first(p Power, last slot.Slot, order ...slot.Slot) slot.Slot {
	for _, s := range order {
		if (s == slot.A || s == slot.B) && !p.Broken[s] {
			return s
		}
	}
	return last
}

// bootScript is the boot.cmd of docs/slots.md, format=script, line by line.
func (u uboot) bootScript(fsys disk.FS, p Power) slot.Slot {
	env0, _ := u.importEnv(fsys, 0)
	env1, _ := u.importEnv(fsys, 1)
	s0, s1 := number(env0["seq"]), number(env1["seq"])
	env, older := env0, 1
	if s0 < s1 {
		env, older = env1, 0
	}
	if s0 <= 0 && s1 <= 0 {
		env = map[string]string{}
	}
	active := slot.A
	if env["active"] == "b" {
		active = slot.B
	}
	boot := active
	if env["try"] != "" {
		next := map[string]string{"active": string(active), "done": env["done"], "seq": fmt.Sprintf("%x", number(env["seq"])+1)}
		if tries := number(env["tries"]); tries > 0 {
			next["tries"], next["try"] = fmt.Sprintf("%x", tries-1), env["try"]
			boot = slot.Slot(env["try"])
		}
		// What cannot be counted is not tried.
		if !u.export(fsys, older, -1, next, "seq", "active", "try", "tries", "done") {
			boot = active
		}
	}
	return first(p, Nothing, boot, active, active.Other())
}

// bootEnv is a U-Boot with an environment of its own, which runs the bootcmd of docs/slots.md.
func (u uboot) bootEnv(fsys disk.FS, p Power) slot.Slot {
	env, current, flags := u.loadEnv(fsys)
	save := func() bool {
		current = (current + 1) % len(u.files)
		flags++
		return u.export(fsys, current, flags, env)
	}
	active := slot.A
	if env["ferrule_active"] == "b" {
		active = slot.B
	}
	boot := active
	if u.count {
		// bootcount_inc and bootdelay_process: counted before bootcmd, which does not know of it.
		if env["upgrade_available"] == "1" {
			n, _ := strconv.Atoi(env["bootcount"])
			env["bootcount"] = strconv.Itoa(n + 1)
			save()
			if limit, _ := strconv.Atoi(env["bootlimit"]); limit > 0 && n+1 > limit {
				env["upgrade_available"], env["bootcount"], env["ferrule_try"] = "0", "0", ""
				save()
			}
		}
		if env["upgrade_available"] == "1" && env["ferrule_try"] != "" {
			boot = slot.Slot(env["ferrule_try"])
		}
		return first(p, Nothing, boot, active, active.Other())
	}
	if try := env["ferrule_try"]; try != "" {
		if tries := number(env["ferrule_tries"]); tries > 0 {
			env["ferrule_tries"] = fmt.Sprintf("%x", tries-1)
			boot = slot.Slot(try)
		} else {
			env["ferrule_try"], env["ferrule_tries"] = "", ""
		}
		if !save() {
			boot = active
		}
	}
	return first(p, Nothing, boot, active, active.Other())
}

// loadEnv is env_import_redund: of two good copies the one whose flags are one further.
func (u uboot) loadEnv(fsys disk.FS) (env map[string]string, current, flags int) {
	env0, flags0 := u.importEnv(fsys, 0)
	var env1 map[string]string
	var flags1 byte
	if len(u.files) == 2 {
		env1, flags1 = u.importEnv(fsys, 1)
	}
	switch {
	case env0 == nil && env1 == nil:
		return map[string]string{}, 0, 0 // the one that is built in
	case env1 == nil:
		return env0, 0, int(flags0)
	case env0 == nil:
		return env1, 1, int(flags1)
	case flags0 == 255 && flags1 == 0, flags1 > flags0 && !(flags1 == 255 && flags0 == 0):
		return env1, 1, int(flags1)
	}
	return env0, 0, int(flags0)
}

// UBootScript is a U-Boot whose boot script keeps an environment of its own on a partition.
func UBootScript() Harness {
	u := uboot{files: []Copy{{"/dev/env", 0}, {"/dev/env", EnvSize}}, script: true}
	return Harness{
		Disk: func() *disktest.Disk {
			raw := append(UBootEnv(EnvSize, -1, "seq=a", "active=a"), make([]byte, EnvSize)...)
			return diskWith(map[string][]byte{"/dev/env": raw, "/etc/fw_env.config": []byte("/dev/env 0x0 0x600\n/dev/env 0x600 0x600\n")})
		},
		FS:     plain,
		Config: slot.Config{Boot: "uboot", Environment: "/etc/fw_env.config format=script"},
		Boot:   u.bootScript, Last: Nothing, Copies: u.files,
	}
}

// UBootRedundant is a U-Boot with CONFIG_SYS_REDUNDAND_ENVIRONMENT on a partition, or in two files
// on FAT; with bootcount it counts by itself.
func UBootRedundant(files, bootcount bool) Harness {
	u := uboot{files: []Copy{{"/dev/env", 0}, {"/dev/env", EnvSize}}, count: bootcount}
	content := func() map[string][]byte {
		one := UBootEnv(EnvSize, 255, "bootdelay=0", "ferrule_active=a", "serial#=17")
		two := UBootEnv(EnvSize, 254, "bootdelay=0")
		return map[string][]byte{"/dev/env": append(two, one...), "/etc/fw_env.config": []byte("/dev/env 0 600\n/dev/env 0x600 0x600 0x200 # flash\n")}
	}
	if files {
		u.files = []Copy{{"/boot/uboot.env", 0}, {"/boot/uboot-redund.env", 0}}
		content = func() map[string][]byte {
			return map[string][]byte{
				"/boot/uboot.env": UBootEnv(EnvSize, 0, "arch=arm"), "/boot/uboot-redund.env": UBootEnv(EnvSize, 1, "arch=arm", "ferrule_active=a"),
				"/etc/fw_env.config": []byte("# two files\n/boot/uboot.env 0x0 0x600\n/boot/uboot-redund.env 0x0 0x600\n"),
			}
		}
	}
	environment := "/etc/fw_env.config"
	if bootcount {
		environment += " count=bootcount"
	}
	return Harness{
		Disk: func() *disktest.Disk { return diskWith(content()) }, FS: plain,
		Config: slot.Config{Boot: "uboot", Environment: environment},
		Boot:   u.bootEnv, Last: Nothing, Copies: u.files,
	}
}
