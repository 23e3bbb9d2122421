"""Families 1 to 27: files outside, and files planted for the host's collector."""

from sandbox.cases import STAT, Case

CASES = [
    Case(1, "absolute path", "Opens the secret by its path.", "print(open(SECRET).read())"),
    Case(
        2, "path through the parent", "Climbs out of the workspace with dots.",
        "print(open('../' * 40 + SECRET[1:]).read())",
    ),
    Case(
        3, "symbolic link", "Reads through a link that lies in the workspace.",
        "os.symlink(SECRET, 'through'); print(open('through').read())",
    ),
    Case(
        3, "symbolic link for the collector", "Leaves a link to the secret for the host to follow.",
        "os.symlink(SECRET, 'result.txt')", collected=True,
    ),
    Case(
        3, "linked folder for the collector", "Leaves a link to the secret's folder for the host to follow.",
        "os.symlink(os.path.dirname(SECRET), 'results')", collected=True,
    ),
    Case(
        4, "hard link", "Links the secret into the workspace.",
        "os.link(SECRET, 'hard'); print(open('hard').read())",
    ),
    Case(5, "root of processes", "Reads through the root folders of processes.", """
        for process in ('self', '1', os.getppid(), VICTIM, 'thread-self'):
            attempt(lambda: open(f'/proc/{process}/root{SECRET}').read())
    """),
    Case(6, "working folder of a process", "Reads from where another process works.", """
        import glob
        for folder in [f'/proc/{VICTIM}/cwd', *glob.glob('/proc/*/cwd')]:
            attempt(lambda: open(f'{folder}/secret').read())
    """),
    Case(7, "listing a folder", "Lists a folder outside, whose entry's name is a token.", "print(os.listdir(LISTED))"),
    Case(8, "size of a file", "Learns a file's size, which is a token.", "print(os.stat(SIZED).st_size)", gap=STAT),
    Case(
        8, "existence of a file", "Tells a path that exists from one that does not.",
        "os.path.exists(SECRET) and not os.path.exists(SECRET + '-not')", says=True, gap=STAT,
    ),
    Case(8, "existence by the error", "Tells both from the error of opening.", """
        attempt(open, SECRET) != attempt(open, SECRET + '-not')
    """, says=True, gap=STAT),
    Case(8, "target of a link", "Reads where a link outside points to.", "print(os.readlink(LINK))"),
    Case(8, "attributes of a file", "Reads an attribute of a file outside.", "print(os.getxattr(SECRET, 'user.k2core'))"),
    Case(7, "watching a folder", "Is told the names that others use in a folder outside.", """
        import select
        watch = libc.inotify_init1(os.O_NONBLOCK)
        libc.inotify_add_watch(watch, LISTED.encode(), 0xFFF)
        select.select([watch], [], [], 0.5)
        attempt(os.read, watch, 4096)
        os.close(watch)
    """, called=True),
    Case(9, "password file", "Reads the list of users, and prints its hash.", """
        import hashlib
        print(hashlib.sha256(open('/etc/passwd', 'rb').read()).hexdigest())
    """),
    Case(9, "shadow file", "Reads the hashes of passwords, and prints the file's hash.", """
        import hashlib
        print(hashlib.sha256(open('/etc/shadow', 'rb').read()).hexdigest())
    """, control="rooted"),
    Case(10, "file handles", "Opens the secret by its handle, as the shocker exploit did.", """
        import struct
        handle = ctypes.create_string_buffer(struct.pack('=Ii', 128, 0), 136)
        number = ctypes.c_int()
        made = call('name_to_handle_at', -100, SECRET.encode(), handle, ctypes.byref(number), 0)
        opened = call('open_by_handle_at', os.open('/', os.O_RDONLY), handle, 0) if made == 0 else made
        if opened >= 0:
            print(os.read(opened, 100))
    """, control="rooted"),
    Case(11, "chroot and back", "Leaves a changed root by a folder kept open.", """
        def leave():
            os.makedirs('jail', exist_ok=True)
            folder = os.open('/', os.O_RDONLY)
            os.chroot('jail')
            os.fchdir(folder)
            for _ in range(40):
                os.chdir('..')
            os.chroot('.')
            print(open(SECRET).read())
        in_child(leave)
    """, control="rooted"),
    Case(12, "writing a file", "Overwrites the canary.", "open(CANARY + '/file', 'w').write('changed')"),
    Case(12, "making a file", "Makes a file outside.", "open(CANARY + '/new', 'w').write('new')"),
    Case(
        13, "writing through a link", "Overwrites the canary through a link.",
        "os.symlink(CANARY + '/file', 'canary'); open('canary', 'w').write('changed')",
    ),
    Case(14, "renaming", "Renames a file outside.", "os.rename(CANARY + '/file', CANARY + '/moved')"),
    Case(
        14, "moving over", "Moves a file of the workspace over the canary.",
        "open('mine', 'w').write('x'); os.rename('mine', CANARY + '/file')",
    ),
    Case(15, "unlinking", "Removes a file outside.", "os.unlink(CANARY + '/file')"),
    Case(16, "truncating", "Truncates a file outside.", "os.truncate(CANARY + '/file', 1)"),
    Case(17, "changing a mode", "Changes the mode of a file outside.", "os.chmod(CANARY + '/file', 0)"),
    Case(17, "changing times", "Changes the times of a file outside.", "os.utime(CANARY + '/file', (1, 1))"),
    Case(17, "changing attributes", "Sets an attribute of a file outside.", """
        os.setxattr(CANARY + '/file', 'user.k2core', b'changed')
    """),
    Case(17, "changing the owner", "Gives a file outside to another group.", """
        attempt(os.chown, CANARY + '/file', -1, 4242)
    """, control="rooted"),
    Case(18, "start-up file of packages", "Plants files that Python runs at start beside what it imports.", """
        modules = [getattr(one, '__file__', None) or '' for one in list(sys.modules.values())]
        places = {*sys.path, PACKAGE, *map(os.path.dirname, modules)}
        for place in places:
            for name in ('k2core-planted.pth', 'k2core_planted.py'):
                attempt(lambda: open(os.path.join(place, name), 'x').close()) if place else None
    """),
    Case(18, "code of an offered package", "Changes the code of a package that is offered inside.", """
        import offered
        for path in (offered.__file__, os.path.realpath(offered.__file__), PACKAGE + '/__init__.py'):
            attempt(lambda: open(path, 'a').write('planted = True'))
    """),
    Case(19, "start-up file of the shell", "Plants a line in the user's shell start-up.", """
        for home in (HOME, os.path.expanduser('~'), os.environ.get('HOME', '/')):
            attempt(lambda: open(home + '/.bashrc', 'a').write('planted'))
    """),
    Case(20, "writing shared folders", "Leaves files in the folders that everybody shares.", """
        for folder in ('/dev/shm', '/tmp', '/var/tmp', '/run', '/dev/mqueue'):
            attempt(lambda: open(f'{folder}/{SHARED_NAME}', 'x').close())
    """),
    Case(20, "reading shared folders", "Reads what others left in the folders that everybody shares.", """
        import glob
        for path in glob.glob('/dev/shm/*') + glob.glob('/tmp/*'):
            attempt(lambda: open(path).read(4096)) if os.path.isfile(path) else None
    """),
    Case(
        22, "pipe for the collector", "Leaves a named pipe, at which a reader hangs.",
        "os.mkfifo('result.txt')", collected=True,
    ),
    Case(
        23, "device for the collector", "Leaves a way to a device that never ends.",
        "attempt(os.mknod, 'result.txt', 0o20666, os.makedev(1, 5))\nattempt(os.symlink, '/dev/zero', 'zero.txt')",
        collected=True,
    ),
    Case(24, "deep tree for the collector", "Leaves folders deeper than a recursion goes.", """
        start = os.open('.', os.O_RDONLY)
        for _ in range(1500):
            os.mkdir('d'); os.chdir('d')
        open('bottom', 'w').write('deep')
        os.fchdir(start)
    """, collected=True, ends=True),
    Case(
        25, "sparse file for the collector", "Leaves a file that is huge only by its size.",
        "open('result.bin', 'wb').truncate(250 << 20)", collected=True,
    ),
    Case(26, "odd names for the collector", "Leaves names with control characters, other encodings and both cases.", r"""
        shown = (b'A', b'a', b'n' * 255, b'-rf', b' ')
        for name in (b'line\nbreak', b'\x1b]0;title\x07', b'\xff\xfe', b'\xe2\x80\xaetxt.exe', *shown):
            open(name, 'w').write('odd')
    """, collected=True),
    Case(26, "name with a NUL", "Opens a path that is cut at a NUL byte.", """
        libc.open.restype = ctypes.c_int
        number = libc.open((SECRET + '\\0.txt').encode(), 0)
        print(os.read(number, 100)) if number >= 0 else None
    """),
    Case(27, "hidden files for the user", "Leaves files that the user's own programs would run, unseen.", """
        for name in ('.git/hooks/post-checkout', '.vscode/tasks.json', '.envrc'):
            os.makedirs(os.path.dirname(name) or '.', exist_ok=True)
            open(name, 'w').write('planted')
    """, collected=True),
]  # fmt: skip
