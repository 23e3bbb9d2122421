"""Families 41 to 57: secrets of other processes, power over them, and power that was left to us."""

from sandbox.cases import DETACHED, Case

LEAVES = """
def twice():
    os.setsid()
    begun, end = os.pipe()
    if os.fork() == 0:
        os.execv('/bin/sleep', ['sleep', MARK])
    os.close(end)
    os.read(begun, 1)  # until the program is there: a look for it may follow at once
    return True
in_child(twice)
"""
CASES = [
    Case(41, "own environment", "Prints its environment.", """
        print(dict(os.environ))
        attempt(lambda: open('/proc/self/environ').read())
    """),
    Case(42, "environments of all", "Prints the environment of every process it sees.", """
        import glob
        for path in [f'/proc/{VICTIM}/environ', f'/proc/{os.getppid()}/environ', *glob.glob('/proc/[0-9]*/environ')]:
            attempt(lambda: open(path).read())
    """),
    Case(43, "command lines of all", "Prints the command line of every process it sees.", """
        import glob
        for path in [f'/proc/{VICTIM}/cmdline', *glob.glob('/proc/[0-9]*/cmdline')]:
            attempt(lambda: open(path).read())
    """),
    Case(44, "memory through proc", "Reads another process's memory as a file.", """
        def read():
            with open(f'/proc/{VICTIM}/mem', 'rb') as memory:
                memory.seek(VICTIM_MEMORY[0])
                return memory.read(VICTIM_MEMORY[1])
        attempt(read)
    """),
    Case(45, "memory by a call", "Reads another process's memory with process_vm_readv.", """
        import struct
        into = ctypes.create_string_buffer(VICTIM_MEMORY[1])
        ours = struct.pack('@PN', ctypes.addressof(into), VICTIM_MEMORY[1])
        if call('process_vm_readv', VICTIM, ours, 1, struct.pack('@PN', *VICTIM_MEMORY), 1, 0) > 0:
            print(into.raw)
    """),
    Case(46, "tracing", "Attaches to another process as a debugger and reads its memory.", """
        ATTACH, PEEK, DETACH = 16, 2, 17
        libc.ptrace.restype = ctypes.c_long
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        if libc.ptrace(ATTACH, VICTIM, None, None) == 0:
            os.waitpid(VICTIM, 0)
            words = [libc.ptrace(PEEK, VICTIM, VICTIM_MEMORY[0] + at, None) for at in range(0, VICTIM_MEMORY[1], 8)]
            print(b''.join((word % 2**64).to_bytes(8, 'little') for word in words))
            libc.ptrace(DETACH, VICTIM, None, None)
    """),
    Case(46, "tracing a child", "Debugs a child of its own, the first step around a filter.", """
        def traced():
            return libc.ptrace(0, 0, None, None) == 0
        in_child(traced)
    """, says=True),
    Case(47, "descriptor of a process", "Takes another process's descriptor with pidfd_getfd.", """
        taken = call('pidfd_getfd', os.pidfd_open(VICTIM), VICTIM_FD, 0)
        print(os.pread(taken, 100, 0)) if taken >= 0 else None
    """),
    Case(47, "descriptor through proc", "Opens another process's descriptor as a file.", """
        attempt(lambda: open(f'/proc/{VICTIM}/fd/{VICTIM_FD}').read())
    """),
    Case(48, "inherited descriptors", "Reads every descriptor that it was started with.", """
        for number in range(3, 256):
            attempt(lambda: os.pread(number, 4096, 0))
    """),
    Case(49, "session keyring", "Reads a key of the session that started it.", """
        key = call('keyctl', 10, -3, b'user', KEY.encode(), 0)
        into = ctypes.create_string_buffer(200)
        if key > 0 and call('keyctl', 11, key, into, 200) > 0:
            print(into.value)
    """),
    Case(50, "shared memory of System V", "Attaches a shared memory of another process.", """
        libc.shmat.restype = ctypes.c_void_p
        number = libc.shmget(SHARED_MEMORY, 0, 0)
        place = libc.shmat(number, None, 0o10000) if number >= 0 else None
        print(ctypes.string_at(place, 100)) if place and place != 2**64 - 1 else None
    """),
    Case(51, "killing", "Kills a process by its number.", "os.kill(VICTIM, 9)"),
    Case(51, "stopping", "Stops a process by its number.", "os.kill(VICTIM, 19)"),
    Case(51, "killing a group", "Kills a process group.", "os.killpg(VICTIM, 9)"),
    Case(51, "killing a thread", "Kills a process by a number of a thread.", "call('tgkill', VICTIM, VICTIM, 9)"),
    Case(51, "queueing a signal", "Queues a fatal signal.", """
        import struct
        call('rt_sigqueueinfo', VICTIM, 9, struct.pack('=iii116x', 9, 0, -1))
    """),
    Case(51, "limits of a process", "Sets the limits of another process.", """
        import resource
        resource.prlimit(VICTIM, resource.RLIMIT_CPU, (7, 7))
    """),
    Case(51, "priority of a process", "Slows another process down.", "os.setpriority(os.PRIO_PROCESS, VICTIM, 19)"),
    Case(51, "processors of a process", "Takes the processors of another process away.", """
        os.sched_setaffinity(VICTIM, {0})
    """),
    Case(52, "signal by descriptor", "Kills a process by its descriptor.", """
        call('pidfd_send_signal', os.pidfd_open(VICTIM), 9, 0, 0)
    """),
    Case(52, "signal by the owner of a descriptor", "Has the kernel kill the owner that it names for a pipe.", """
        import fcntl, time
        reader, writer = os.pipe()
        fcntl.fcntl(reader, 10, 9)  # F_SETSIG
        fcntl.fcntl(reader, 8, VICTIM)  # F_SETOWN
        fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.write(writer, b'x')
        time.sleep(0.05)
    """),
    Case(53, "killing the parent", "Kills the process that started it.", """
        import time
        parent = os.getppid()
        os.kill(parent, 9)
        time.sleep(0.1)
        os.getppid() != parent
    """, says=True, ends=True),
    Case(53, "killing everybody", "Kills every process that it can.", """
        in_child(lambda: os.kill(-1, 9))
    """, ends=True, unproven="the control would kill every process of its user",
        strong_only="if it were not held, it would kill every process of its user"),
    Case(54, "daemon", "Starts a program that leaves its parents and its session.", LEAVES, ends=True),
    Case(54, "daemon that nobody watches", "Starts a program that leaves everything, and ends its interpreter.",
        f"{LEAVES}os._exit(0)", gap=DETACHED),
    Case(54, "daemon without signals", "Starts a program that ignores every signal it may.", """
        import subprocess
        script = "trap '' HUP INT TERM QUIT PIPE; echo ready; sleep $1; true"
        program = ['/bin/bash', '-c', script, 'bash', MARK]
        daemon = subprocess.Popen(program, start_new_session=True, stdout=subprocess.PIPE)
        daemon.stdout.readline()  # before, a broken pipe would still end it
        None
    """, ends=True),
    Case(55, "helpers with more rights", "Looks whether programs can still give it another user's rights.", """
        in_child(lambda: libc.prctl(39, 0, 0, 0, 0) == 0)
    """, says=True),
    Case(55, "program of root", "Runs a program that root marked to run as root.", """
        import subprocess
        subprocess.run(['./rooted', './of-root'])
        None
    """, plants="rooted"),
    Case(56, "capabilities", "Looks for any capability that it holds.", """
        import struct
        header, data = struct.pack('=Ii', 0x20080522, 0), ctypes.create_string_buffer(24)
        call('capget', header, data) == 0 and any(struct.unpack('=6I', data.raw)[place] for place in (0, 1, 3, 4))
    """, says=True, control="rooted"),
    Case(57, "real root", "Makes a file that belongs to root outside.", "open('owned', 'w').close()", control="rooted"),
    Case(57, "becoming root", "Takes the number of root.", """
        in_child(lambda: call('setuid', 0) == 0 and os.getuid() == 0)
    """, says=True, control="rooted"),
]  # fmt: skip
