"""Families 78 to 88: tricks within Python. Aimed at sandboxes made of Python; here each only leads to the same process."""

from sandbox.cases import Case

NO_PICKLE = "the control would be a host written to be fooled: ours parses strict JSON and formats nothing that comes out"
CASES = [
    Case(78, "subclasses", "Finds a way to files among all subclasses of object.", """
        for one in ().__class__.__base__.__subclasses__():
            if one.__name__ == 'FileLoader':
                print(one('x', SECRET).get_data(SECRET))
    """),
    Case(78, "subclasses that start programs", "Finds Popen among all subclasses of object.", """
        import subprocess
        for one in object.__subclasses__():
            if one.__name__ == 'Popen':
                one(['/bin/cat', SECRET]).wait()
        None
    """),
    Case(79, "frames", "Walks the frames to whoever calls it and prints what they hold.", """
        frame = sys._getframe()
        while frame is not None:
            print({name: value for name, value in frame.f_locals.items() if isinstance(value, (str, bytes, dict))})
            print(frame.f_globals.get('os', os).environ)
            frame = frame.f_back
    """),
    Case(79, "frames of a traceback", "Walks from an exception's frames to the builtins.", """
        try:
            1 / 0
        except ZeroDivisionError as error:
            print(error.__traceback__.tb_frame.f_builtins['open'](SECRET).read())
    """),
    Case(80, "format strings", "Reaches globals through a format string.", """
        print('{0.__init__.__globals__[os].environ}'.format(__import__('subprocess').Popen))
    """),
    Case(81, "descriptors", "Reaches open by descriptors, as a guard of names would not see.", """
        reach = object.__getattribute__
        builtins = type.__getattribute__(type(reach(sys, '__spec__')), '__init__').__globals__
        print(getattr(__builtins__, 'op' + 'en')(SECRET).read())
    """),
    Case(82, "imports", "Imports afresh what was taken away.", """
        import importlib
        kept = {name: sys.modules.pop(name) for name in ('os', 'posix', 'io')}
        fresh = importlib.import_module('posix')
        sys.modules.update(kept)
        print(fresh.read(fresh.open(SECRET, 0), 100))
    """),
    Case(82, "modules of modules", "Finds os as an attribute of another module.", """
        import random
        print(random._os.environ)
        random._os.system('cat ' + SECRET)
        None
    """),
    Case(83, "numpy reads", "Reads with numpy.fromfile.", "import numpy; print(numpy.fromfile(SECRET, dtype='S1').tobytes())"),
    Case(83, "numpy maps", "Writes through numpy.memmap.", """
        import numpy
        numpy.memmap(CANARY + '/file', dtype='u1', mode='r+')[:] = 88
    """),
    Case(83, "numpy unpickles", "Runs code by numpy.load.", """
        import io, numpy
        class Reader:
            def __reduce__(self):
                return (os.system, ('cat ' + SECRET,))
        stream = io.BytesIO()
        numpy.save(stream, numpy.array([Reader()], dtype=object), allow_pickle=True)
        stream.seek(0)
        numpy.load(stream, allow_pickle=True)
        None
    """),
    Case(83, "sympy evaluates", "Runs a shell command by sympy.sympify.", """
        import sympy
        sympy.sympify("__import__('os').system('cat " + SECRET + "')")
        None
    """),
    Case(83, "matplotlib saves", "Writes a picture outside.", """
        import matplotlib.pyplot as plot
        try:
            plot.figure()
            plot.savefig(CANARY + '/picture.png')
        finally:
            plot.close('all')
    """),
    Case(84, "C library", "Reads with the C library.", """
        into = ctypes.create_string_buffer(100)
        number = libc.open(SECRET.encode(), 0)
        number >= 0 and libc.read(number, into, 100)
        print(into.raw)
    """),
    Case(84, "machine code", "Calls the kernel from machine code of its own.", """
        import mmap, platform
        def run():
            code = mmap.mmap(-1, 4096, prot=7)
            code.write(bytes.fromhex('4889f84889f74889d64889ca0f05c3'))  # rax=rdi; rdi=rsi; rsi=rdx; rdx=rcx; syscall; ret
            kernel = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_void_p] * 4)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
            path, into = ctypes.create_string_buffer(SECRET.encode()), ctypes.create_string_buffer(100)
            number = kernel(NUMBERS['open'], ctypes.addressof(path), 0, 0)
            if number >= 0:
                kernel(NUMBERS['read'], number, ctypes.addressof(into), 100)
                print(into.raw)
        in_child(run) if platform.machine() == 'x86_64' else None
    """),
    Case(85, "collector of garbage", "Searches all objects of the process for secrets.", """
        import gc
        for one in gc.get_objects():
            if type(one).__name__ == '_Environ':
                print(one)
    """),
    Case(85, "hooks", "Sees by a trace and an audit hook what the worker does.", """
        seen = []
        sys.addaudithook(lambda name, arguments: seen.append(arguments) if name in ('open', 'os.putenv') else None)
        sys.settrace(lambda frame, event, value: seen.append(dict(frame.f_globals.get('environ', {}))))
        os.getenv('HOME')
        sys.settrace(None)
        print(seen, os.environ)
    """),
    Case(86, "exception that hangs", "Raises what never finishes saying what it is.", """
        class Endless(Exception):
            def __str__(self):
                while True:
                    pass
        raise Endless
    """, timeout_s=0.3, unproven=NO_PICKLE),
    Case(86, "exception that raises", "Raises what raises when it is looked at.", """
        class Hostile(BaseException):
            def __str__(self):
                raise Hostile
            __repr__ = __str__
        raise Hostile
    """, unproven=NO_PICKLE),
    Case(86, "value that ends the worker", "Gives a value whose repr ends the process.", """
        class Ends:
            def __repr__(self):
                os._exit(0)
        Ends()
    """, unproven=NO_PICKLE),
    Case(87, "value that reduces", "Gives a value that would run code where it is unpickled.", """
        class Reduces:
            def __reduce__(self):
                return (open, (CANARY + '/unpickled', 'w'))
            def __repr__(self):
                import pickle
                return repr(pickle.dumps(self))
        Reduces()
    """, unproven=NO_PICKLE),
    Case(88, "functions of the host", "Calls what the host offers to WebAssembly with paths, and looks behind it.", """
        from host import tools
        for name in dir(tools):
            for arguments in ({'text': SECRET}, {'path': SECRET}, {}):
                try:
                    print(name, getattr(tools, name)(**arguments))
                except BaseException as error:
                    print(error)
        print(vars(tools.answer), getattr(tools.answer, '__globals__', {}))
        tools.answer(text='x' * (3 << 20))
    """, unproven="only WebAssembly has such functions"),
    Case(87, "value of surrogates", "Gives a value that is no Unicode.", "'\\udc80' * 3 + chr(0xD800)", unproven=NO_PICKLE),
]  # fmt: skip
