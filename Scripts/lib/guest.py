"""A virtual machine whose clock counts instructions.

QEMU without hardware help and with `-icount shift=0` advances the guest's time by 1 ns per instruction, user's and kernel's
alike. So a program that measures time in the guest measures instructions, exactly, on any host, whatever else it does.

The guest is a Debian kernel and a RAM disk with the programs under test. Kernel and busybox are Debian packages, fetched
once with `apt-get download` and unpacked under .build/guest; nothing is installed.
"""

import glob
import os
import re
import shutil
import subprocess

from lab import ROOT, Failure, say

STORE = os.path.join(ROOT, ".build/guest")
SECONDS = 300


def _packages():
    """Where kernel and busybox are unpacked."""
    kernels = glob.glob(os.path.join(STORE, "boot/vmlinuz-*"))
    if not kernels or not os.path.exists(os.path.join(STORE, "bin/busybox")):
        os.makedirs(STORE, exist_ok=True)
        depends = subprocess.run(["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=False)
        kernel = re.search(r"Depends: (linux-image-\S+-cloud-amd64)", depends.stdout)
        if not kernel:
            raise Failure("apt knows no linux-image-cloud-amd64: the guest's kernel comes from Debian (apt-get update?)")
        say(f"fetching {kernel.group(1)} and busybox-static")
        for package in (kernel.group(1), "busybox-static"):
            # As root apt would want its own user to write here.
            done = subprocess.run(["apt-get", "-o", "APT::Sandbox::User=root", "download", package], cwd=STORE,
                                  capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Failure(f"apt-get download {package}\n{done.stderr}")
        for archive in glob.glob(os.path.join(STORE, "*.deb")):
            subprocess.run(["dpkg-deb", "-x", archive, STORE], check=True)
            os.remove(archive)
        kernels = glob.glob(os.path.join(STORE, "boot/vmlinuz-*"))
    return kernels[0], os.path.join(STORE, "bin/busybox")


def _shared_objects(program):
    """What the loader would map, by the paths it looks at; nothing for a static program."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(/\S+) \(0x", listed))


def _archive(root, target):
    """A cpio archive in the `newc` form that the kernel unpacks."""
    with open(target, "wb") as file:
        def entry(number, name, mode, data=b""):
            name = name.encode() + b"\0"
            fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
            for part in (b"070701" + b"".join(b"%08x" % field for field in fields) + name, data):
                file.write(part)
                file.write(b"\0" * (-file.tell() % 4))

        number = 0
        for directory, _, names in os.walk(root):
            inside = os.path.relpath(directory, root)
            number += 1
            if inside != ".":
                entry(number, inside, 0o40755)
            for name in names:
                path = os.path.join(directory, name)
                number += 1
                with open(path, "rb") as content:
                    entry(number, os.path.normpath(os.path.join(inside, name)), os.stat(path).st_mode, content.read())
        entry(0, "TRAILER!!!", 0)


def _modules(names):
    """The files of kernel modules and of what they depend on, in the order in which they are to be loaded."""
    known = {os.path.basename(path)[:-3].replace("-", "_"): path
             for path in glob.glob(os.path.join(STORE, "lib/modules/*/kernel/**/*.ko"), recursive=True)}
    found = []

    def add(name):
        path = known[name.replace("-", "_")]
        if path in found:
            return
        with open(path, "rb") as module:
            depends = re.search(rb"\0depends=([^\0]*)\0", module.read())
        for other in filter(None, depends.group(1).decode().split(",") if depends else []):
            add(other)
        found.append(path)

    for name in names:
        add(name)
    return found


def run(lab, programs, files, script, megabytes=1024, modules=(), devices=(), options="", counts=True):
    """Boots a guest with `programs` ({path in the guest: path here}) and text `files`, runs the shell lines `script`
    (busybox is `$b`) and returns what they print.

    megabytes: the guest's memory. modules: of its kernel, loaded first. devices: more words for the emulator.
    options: more words for the kernel.
    counts: whether its clock counts instructions; else it runs with the machine's, on two processors.
    """
    emulator = shutil.which("qemu-system-x86_64")
    if not emulator or os.uname().machine != "x86_64":
        raise Failure("qemu-system-x86_64 is needed for this (Debian: apt-get install --no-install-recommends qemu-system-x86)")
    kernel, busybox = _packages()
    root = os.path.join(lab.directory, "guest")
    for target, source in [*programs.items(), ("/bin/busybox", busybox)]:
        for place, origin in [(target, source)] + [(path, path) for path in _shared_objects(source)]:
            os.makedirs(os.path.dirname(root + place), exist_ok=True)
            shutil.copy2(os.path.realpath(origin), root + place)
    for directory in ("proc", "sys", "dev", "run", "tmp"):
        os.makedirs(os.path.join(root, directory), exist_ok=True)
    modules = _modules(modules)
    for path in modules:
        shutil.copy2(path, os.path.join(root, os.path.basename(path)))
    lines = ["#!/bin/busybox sh", "b=/bin/busybox", "$b mount -t proc none /proc", "$b mount -t sysfs none /sys",
             "$b mount -t devtmpfs none /dev", "$b mkdir -p /dev/shm /var", "$b ln -s /run /var/run", "$b chmod 755 /"]
    lines += [f"$b mount -t tmpfs none {place}" for place in ("/dev/shm", "/run", "/tmp")]
    lines += [f"$b insmod /{os.path.basename(path)}" for path in modules]
    lines += ["export HOME=/tmp", "$b ip link set lo up", *script, "$b poweroff -f"]
    for name, text in [*files.items(), ("/init", "\n".join(lines) + "\n")]:
        with open(root + name, "w", encoding="utf-8") as file:
            file.write(text)
    os.chmod(root + "/init", 0o755)
    disk = os.path.join(lab.directory, "guest.cpio")
    _archive(root, disk)
    if counts:
        machine = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]
    else:
        machine = ["-accel", "tcg,thread=multi", "-smp", "2"]
    words = [emulator, *machine, *devices, "-cpu", "max", "-m", str(megabytes), "-nographic", "-no-reboot", "-nic", "none",
             "-kernel", kernel, "-initrd", disk,
             # The mitigations add instructions to every system call, which would make the preload's share look smaller.
             "-append", "console=ttyS0 quiet panic=-1 mitigations=off " + options]
    guest = lab.spawn("guest", words)
    guest.wait(SECONDS)
    return guest.out()
