"""Families 58 to 77: the kernel's own interfaces. Calls get arguments that do no harm where they are let through."""

from sandbox.cases import Case

NO_X32 = "most kernels are built without the x32 table, so it succeeds nowhere"
CASES = [
    Case(58, "namespace by unshare", "Makes a user namespace with unshare.", """
        in_child(lambda: call('unshare', 0x10000000) == 0)
    """, says=True),
    Case(58, "namespace by clone", "Makes a user namespace with clone.", """
        child = call('clone', 0x10000000 | 17, 0, 0, 0, 0)
        if child == 0:
            os._exit(0)
        child > 0 and os.waitpid(child, 0)[0] == child
    """, says=True),
    Case(58, "namespace by clone3", "Makes a user namespace with clone3, whose flags no filter can read.", """
        import struct
        arguments = struct.pack('=8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0)
        child = call('clone3', arguments, len(arguments))
        if child == 0:
            os._exit(0)
        child > 0 and os.waitpid(child, 0)[0] == child
    """, says=True),
    Case(58, "namespaces of others", "Enters the namespaces of another process.", """
        in_child(lambda: call('setns', os.open(f'/proc/{VICTIM}/ns/mnt', os.O_RDONLY), 0) == 0)
    """, says=True, control="rooted"),
    Case(59, "mount", "Mounts a file system over a folder of its own.", """
        def mount():
            os.makedirs('mounted', exist_ok=True)
            call('unshare', 0x10020000)
            return call('mount', b'none', b'mounted', b'tmpfs', 0, 0) == 0
        in_child(mount)
    """, says=True),
    Case(59, "mount by the newer calls", "Mounts with fsopen and open_tree.", """
        def mount():
            call('unshare', 0x10020000)
            return call('fsopen', b'tmpfs', 0) >= 0 or call('open_tree', -100, b'/', 1) >= 0
        in_child(mount)
    """, says=True),
    Case(60, "umount", "Unmounts what may hide something.", """
        def reveal():
            call('unshare', 0x00020000)
            call('mount', b'none', b'/', 0, 0x44000, 0)
            places = [line.split()[4] for line in open('/proc/self/mountinfo')]
            return any(call('umount2', place.encode(), 2) == 0 for place in reversed(places) if place != '/')
        in_child(reveal)
    """, says=True, control="rooted"),
    Case(60, "making writable", "Remounts what is read-only.", """
        def remount():
            call('unshare', 0x00020000)
            call('mount', b'none', b'/', 0, 0x44000, 0)
            return call('mount', b'none', b'/proc', 0, 32, 0) == 0 or call('mount_setattr', -100, b'/', 0, bytes(32), 32) == 0
        in_child(remount)
    """, says=True, control="rooted"),
    Case(61, "disk by a node", "Makes a node for a disk and opens it.", """
        def disk():
            for number, device in enumerate((os.stat('/usr').st_dev, os.makedev(7, 0))):
                attempt(os.mknod, f'disk-{number}', 0o60600, device)
                if attempt(os.open, f'disk-{number}', os.O_RDONLY) >= 0:
                    return True
        in_child(disk)
    """, says=True, control="rooted"),
    Case(61, "disk in dev", "Opens a disk that is there.", """
        import stat
        def disk(path):
            try:
                return stat.S_ISBLK(os.stat(path).st_mode) and os.open(path, os.O_RDONLY) >= 0
            except OSError:
                return False
        in_child(lambda: any(disk(f'/dev/{name}') for name in os.listdir('/dev')))
    """, says=True, control="rooted"),
    Case(62, "kernel log", "Reads the kernel's log.", """
        into = ctypes.create_string_buffer(4096)
        call('syslog', 3, into, 4096) > 0
    """, says=True, control="rooted"),
    Case(62, "kernel log by a device", "Reads the kernel's log as a device.", """
        any(attempt(os.open, path, os.O_RDONLY | os.O_NONBLOCK) >= 0 for path in ('/dev/kmsg', '/proc/kmsg'))
    """, says=True, control="rooted"),
    Case(63, "kernel settings", "Opens settings of the whole kernel for writing.", """
        any(opens_for_writing(path) for path in SETTINGS)
    """, says=True, control="rooted"),
    Case(64, "control groups", "Opens files of control groups for writing.", """
        def writable(root):
            for folder, _, names in os.walk(root):
                for name in names:
                    if name in ('cgroup.procs', 'release_agent', 'notify_on_release') and opens_for_writing(f'{folder}/{name}'):
                        return True
            return False
        writable('/sys/fs/cgroup')
    """, says=True, control="rooted"),
    Case(65, "bpf", "Makes a map for kernel programs.", """
        import struct
        arguments = struct.pack('=5I', 2, 4, 4, 1, 0) + bytes(100)
        call('bpf', 0, arguments, len(arguments)) >= 0
    """, says=True, control="rooted"),
    Case(66, "perf", "Measures the kernel.", """
        import struct
        wanted = struct.pack('=IIQ', 1, 112, 0) + bytes(96)
        call('perf_event_open', wanted, 0, -1, -1, 0) >= 0
    """, says=True, control="rooted"),
    Case(67, "io_uring", "Makes a ring whose requests pass by the filter.", """
        call('io_uring_setup', 1, ctypes.create_string_buffer(200)) >= 0
    """, says=True),
    Case(67, "older rings", "Makes a ring of the older kind.", """
        call('io_setup', 1, ctypes.create_string_buffer(8)) == 0
    """, says=True),
    Case(68, "userfaultfd", "Stops the kernel in the middle of a copy.", "call('userfaultfd', 1) >= 0", says=True),
    Case(69, "modules", "Gets as far as the kernel's check of a module's content.", """
        call('init_module', b'none', 4, b'') == -errno.ENOEXEC
    """, says=True, control="rooted"),
    Case(69, "kexec", "Gets as far as the kernel's check of another kernel's flags.", """
        call('kexec_load', 0, 0, 0, 0x7FF) == -errno.EINVAL
    """, says=True, control="rooted"),
    Case(70, "x32 table", "Calls by the x32 numbers, which a filter may have forgotten.", """
        in_child(lambda: libc.syscall(ctypes.c_long(0x40000000 | 39)) > 0)
    """, says=True, unproven=NO_X32),
    Case(71, "32-bit gate", "Calls through the 32-bit gate, where the numbers mean something else.", """
        import mmap, platform
        def gate():
            code = mmap.mmap(-1, 4096, prot=7)
            code.write(bytes.fromhex('5331dbb814000000cd805bc3'))  # push rbx; ebx=0; eax=20 (getpid); int 0x80; pop rbx; ret
            function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
            return function() > 0
        platform.machine() == 'x86_64' and in_child(gate)
    """, says=True),
    Case(72, "making keys", "Adds a key to a keyring that others share.", """
        call('add_key', b'user', b'k2core-planted', b'x', 1, -3) > 0
    """, says=True),
    Case(73, "personality", "Turns the randomness of addresses off.", """
        in_child(lambda: call('personality', 0x0040000) >= 0)
    """, says=True),
    Case(74, "typing into the terminal", "Types into its controlling terminal.", """
        def type_into():
            import fcntl, pty
            os.setsid()
            _, ours = pty.openpty()
            fcntl.ioctl(ours, 0x540E, 0)
            return fcntl.ioctl(ours, 0x5412, b'x') == b'x'
        in_child(type_into)
    """, says=True, control="rooted"),
    Case(74, "terminal injection of a high word", "Types with an ioctl number whose upper half the kernel ignores.", """
        def type_into():
            import pty
            os.setsid()
            _, ours = pty.openpty()
            call('ioctl', ours, 0x540E, 0)
            return call('ioctl', ours, 0x7F00005412, b'x') == 0
        in_child(type_into)
    """, says=True, control="rooted"),
    Case(74, "controlling terminal", "Opens the terminal of whoever started it.", "open('/dev/tty').fileno() >= 0", says=True,
         unproven="the control starts without a terminal, as the tests do"),
    Case(75, "own limits", "Raises its own limits.", """
        def more():
            import resource
            for limit in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
                soft, hard = resource.getrlimit(limit)
                if hard == resource.RLIM_INFINITY:
                    return True
                if attempt(resource.setrlimit, limit, (hard + 1, hard + 1)) is None:
                    return True
            return False
        in_child(more)
    """, says=True),
    Case(76, "own program", "Changes the program that runs it, for the next run.", """
        program = os.path.realpath('/proc/self/exe') if os.path.exists('/proc/self/exe') else sys.executable
        for path in {program, sys.executable, '/proc/self/exe', '/proc/1/exe'}:
            attempt(lambda: open(path, 'ab').write(b'x'))
            attempt(lambda: (open(path + '.new', 'wb').write(b'x'), os.replace(path + '.new', path)))
    """),
    Case(77, "folder kept open", "Leaves through a descriptor of a folder that was open before.", """
        for number in range(256):
            for path in ('secret', '../' * 30 + SECRET[1:]):
                def read():
                    return os.read(os.open(path, os.O_RDONLY, dir_fd=number), 100)
                attempt(read)
            attempt(lambda: open(f'/proc/self/fd/{number}/secret').read())
    """),
]  # fmt: skip
