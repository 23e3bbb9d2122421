"""Families 89 to 104: more time, memory, processes, disk or output than a cell may have. The bench bounds memory to 384 MiB."""

from sandbox.cases import Case

SHORT = 0.2  # seconds that a cell gets which never ends
ORDERLY = "the worker's own program already prevents it, without any isolation"
CASES = [
    Case(89, "busy loop", "Computes without end.", "while True: pass", timeout_s=SHORT),
    Case(90, "busy loop without signals", "Computes without end and ignores every signal it may.", """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass
    """, timeout_s=SHORT),
    Case(90, "catching the interrupt", "Catches what interrupts it and goes on.", """
        import time
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    """, timeout_s=SHORT),
    Case(91, "sleep", "Sleeps without end.", "import time; time.sleep(1000)", timeout_s=SHORT),
    Case(92, "regular expression", "Stays in C in a regular expression.", """
        import re
        re.match(r'(a*)*b', 'a' * 40)
    """, timeout_s=SHORT),
    Case(93, "large integers", "Stays in C in one multiplication of integers.", """
        x = (1 << 300_000_000) // 3
        y = x * x // 7
    """, timeout_s=SHORT),
    Case(94, "memory", "Takes memory by one allocation.", "import mmap; len(mmap.mmap(-1, 3 << 30)) > 0", says=True),
    Case(94, "touched memory", "Takes and touches memory step by step.", """
        import time
        blocks = [b'x' * (50 << 20) for _ in range(9)]
        time.sleep(0.3)
        len(blocks) == 9
    """, says=True),
    Case(94, "memory of a later thread", "Takes memory in a process whose first thread has ended.", """
        import threading, time
        def hold():
            blocks = [b'x' * (50 << 20) for _ in range(9)]
            time.sleep(0.3)
            os._exit(0)
        def lead():
            threading.Thread(target=hold).start()
            call('exit', 0)
        in_child(lead)
    """, says=True),
    Case(94, "memory of a strange name", "Takes memory in a process whose name is no text.", """
        import time
        libc.prctl(15, b'\\xff\\xfe', 0, 0, 0)  # PR_SET_NAME
        blocks = [b'x' * (50 << 20) for _ in range(9)]
        time.sleep(0.3)
        libc.prctl(15, b'python3', 0, 0, 0)
        len(blocks) == 9
    """, says=True),
    Case(95, "memory of forks", "Takes in many processes what one may not have.", """
        import time
        (filled, fill), (go, let) = os.pipe(), os.pipe()
        children = []
        for _ in range(6):
            child = os.fork()
            if not child:
                block = b'x' * (80 << 20)
                os.write(fill, b'x')
                os.read(go, 1)
                os._exit(0)
            children.append(child)
        count = 0
        while count < 6:
            count += len(os.read(filled, 6))
        time.sleep(0.3)
        os.write(let, b'x' * 6)
        all([os.waitpid(child, 0)[1] == 0 for child in children])
    """, says=True),
    Case(96, "forks", "Has more processes than its limit.", """
        import time
        children = []
        try:
            while len(children) < 90:
                child = os.fork()
                if not child:
                    time.sleep(5)
                    os._exit(0)
                children.append(child)
        except OSError:
            pass
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
        len(children) == 90
    """, says=True),
    Case(97, "threads", "Has more threads than its limit.", """
        import threading
        stop, started = threading.Event(), 0
        try:
            while started < 90:
                threading.Thread(target=stop.wait).start()
                started += 1
        except (RuntimeError, MemoryError):
            pass
        stop.set()
        started == 90
    """, says=True),
    Case(98, "memory files", "Holds memory in files that belong to no process.", """
        import time
        held = 0
        for _ in range(3):
            number = os.memfd_create('held')
            for _ in range(15):
                held += os.write(number, bytes(10 << 20))
        time.sleep(0.3)
        held >= 450 << 20
    """, says=True),
    Case(99, "shared folders in memory", "Fills the folders in memory.", """
        held = 0
        for folder in ('/dev/shm', '/tmp'):
            try:
                with open(f'{folder}/{SHARED_NAME}', 'wb') as file:
                    for _ in range(16):
                        held += file.write(bytes(5 << 20))
            except OSError:
                pass
            os.path.exists(f'{folder}/{SHARED_NAME}') and os.unlink(f'{folder}/{SHARED_NAME}')
        held >= 150 << 20
    """, says=True),
    Case(99, "temporary folder", "Fills the folder for temporary files.", """
        import tempfile, time
        with tempfile.TemporaryFile() as file:
            for _ in range(30):
                file.write(bytes(5 << 20))
            file.flush()
            time.sleep(0.3)
        True
    """, says=True),
    Case(100, "disk", "Fills the workspace.", """
        import time
        for number in range(4):
            open(f'filler-{number}', 'wb').write(bytes(30 << 20))
        time.sleep(0.3)
        True
    """, says=True),
    Case(100, "disk without names", "Fills the disk with files that have no name any more.", """
        import time
        files = []
        for number in range(4):
            files.append(open('filler', 'wb'))
            os.unlink('filler')
            files[-1].write(bytes(30 << 20))
            files[-1].flush()
        time.sleep(0.3)
        for file in files:
            file.close()
        True
    """, says=True),
    Case(100, "disk of a later thread", "Fills the disk from a process whose first thread has ended.", """
        import threading, time
        def hold():
            for number in range(4):
                file = open('filler', 'wb')
                os.unlink('filler')
                file.write(bytes(30 << 20))
                file.flush()
                kept.append(file)
            time.sleep(0.5)
            os._exit(0)
        kept = []
        def lead():
            threading.Thread(target=hold).start()
            call('exit', 0)
        in_child(lead)
    """, says=True),
    Case(100, "disk without descriptors", "Fills the disk with files that have nothing but mappings.", """
        import time
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        kept = []
        for number in range(4):
            with open('filler', 'wb+') as file:
                file.write(bytes(30 << 20))
                file.flush()
                kept.append(libc.mmap(None, 4096, 1, 1, file.fileno(), 0))
            os.unlink('filler')
        time.sleep(0.4)
        for place in kept:
            libc.munmap(place, 4096)
        True
    """, says=True),
    Case(100, "disk in flight", "Fills the disk with files that only a message between sockets holds.", """
        import socket, time
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for number in range(4):
            with open('filler', 'wb') as file:
                file.write(bytes(30 << 20))
                file.flush()
                socket.send_fds(left, [b'x'], [file.fileno()])
            os.unlink('filler')
        time.sleep(0.4)
        left.close()
        right.close()
        True
    """, says=True),
    Case(100, "one large file", "Writes one file beyond its limit.", """
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        file = os.open('large', os.O_WRONLY | os.O_CREAT)
        os.pwrite(file, b'x', 300 << 20) == 1
    """, says=True),
    Case(101, "inodes", "Makes more files than the workspace may have.", """
        import time
        os.mkdir('many')
        for number in range(1500):
            open(f'many/{number}', 'w').close()
        time.sleep(0.3)
        True
    """, says=True),
    Case(101, "inodes in memory", "Makes more files than it may have in a file system in memory.", """
        import tempfile, time
        with tempfile.TemporaryDirectory(dir='/tmp') as folder:
            for number in range(2500):
                open(f'{folder}/{number}', 'w').close()
            time.sleep(0.4)
        True
    """, says=True),
    Case(94, "memory of the kernel", "Fills the buffers of many sockets, which are in no process's memory.", """
        import socket, time
        kept = []
        for _ in range(60):
            for end in socket.socketpair():
                kept.append(end)
                end.setblocking(False)
        children = []
        for _ in range(3):
            child = os.fork()
            if not child:
                own = [end for _ in range(40) for end in socket.socketpair()]
                time.sleep(0.8)
                os._exit(0)
            children.append(child)
        finished = all([os.waitpid(child, 0)[1] == 0 for child in children])
        for end in kept:
            end.close()
        finished
    """, says=True),
    Case(102, "flood of output", "Prints without end, no newline, no UTF-8.", """
        while True:
            os.write(1, b'\\xff\\xfe' * 30000)
    """, timeout_s=SHORT),
    Case(102, "flood behind the reply", "Lets a child print on when the cell has ended.", """
        if os.fork() == 0:
            while True:
                try:
                    os.write(1, b'x' * 60000)
                except OSError:
                    os._exit(0)
    """, timeout_s=2.0, ends=True),
    Case(102, "large value", "Gives a value that is very long.", "'x' * (30 << 20)", unproven=ORDERLY),
    Case(103, "inflation", "Inflates a small archive into much memory.", """
        import time, zlib
        large = zlib.decompress(zlib.compress(bytes(110 << 20), 1)) * 4
        time.sleep(0.3)
        len(large) > 0
    """, says=True, timeout_s=20),
    Case(103, "archive on disk", "Unpacks a small archive into much disk.", """
        import time, zipfile
        with zipfile.ZipFile('small.zip', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for number in range(12):
                archive.writestr(f'part-{number}', bytes(10 << 20))
        zipfile.ZipFile('small.zip').extractall('unpacked')
        time.sleep(0.3)
        True
    """, says=True, timeout_s=20),
    Case(104, "stopping itself", "Stops its own process.", "os.kill(os.getpid(), 19)", timeout_s=SHORT),
    Case(104, "keeping the pipes", "Leaves a child that keeps the pipes to the host, and stops.", """
        if os.fork() == 0:
            os.setsid()
            import time
            time.sleep(3)
            os._exit(0)
        os.kill(os.getpid(), 19)
    """, timeout_s=SHORT),
    Case(104, "closing the pipes", "Closes every descriptor.", "os.closerange(0, 256)", unproven=ORDERLY),
    Case(104, "hanging at the end", "Leaves an exit handler and a thread that never end.", """
        import atexit, threading, time
        atexit.register(time.sleep, 1000)
        threading.Thread(target=time.sleep, args=(1000,)).start()
    """, ends=True, unproven=ORDERLY),
]  # fmt: skip
