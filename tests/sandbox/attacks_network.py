"""Families 28 to 40: ways to the network. Whether one got out is seen by the host's listeners."""

from sandbox.cases import Case

CASES = [
    Case(28, "loopback", "Connects to the host's loopback.", "import socket; socket.create_connection(TCP4, 1)"),
    Case(28, "loopback of IPv6", "Connects to the host's IPv6 loopback.",
         "import socket; socket.create_connection(TCP6[:2], 1)"),
    Case(29, "address of the host", "Connects to an address of the host.",
         "import socket; socket.create_connection(ADDRESS, 1)"),
    Case(30, "datagram", "Sends a datagram.", """
        import socket
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'out', UDP)
    """),
    Case(31, "name service", "Sends a question to a name server, with data in the name.", """
        import socket
        question = b'\\x12\\x34\\x01\\x00\\x00\\x01' + bytes(6) + b'\\x06stolen\\x07invalid\\x00\\x00\\x01\\x00\\x01'
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(question, UDP)
    """),
    Case(31, "name lookup", "Looks a name up the ordinary way.", """
        import socket
        bool(socket.getaddrinfo('example.org', 80))
    """, says=True, unproven="the control would ask the machine's real name server"),
    Case(32, "metadata service", "Connects to the address of a cloud's metadata service.", """
        import socket
        bool(socket.create_connection(('169.254.169.254', 80), 1))
    """, says=True, unproven="the control would talk to the machine's real metadata service"),
    Case(33, "local socket by path", "Connects to a socket of another process by its path.", """
        import socket
        socket.socket(socket.AF_UNIX).connect(UNIX)
    """),
    Case(34, "abstract socket", "Connects to a socket of another process by its abstract name.", """
        import socket
        socket.socket(socket.AF_UNIX).connect(ABSTRACT)
    """),
    Case(35, "packet socket", "Makes a socket that sees every packet.", """
        import socket
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 768).fileno() >= 0
    """, says=True, control="rooted"),
    Case(35, "raw socket", "Makes a socket that forges packets.", """
        import socket
        socket.socket(socket.AF_INET, socket.SOCK_RAW, 255).fileno() >= 0
    """, says=True, control="rooted"),
    Case(36, "vsock", "Makes a socket to the hypervisor.", """
        import socket
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).fileno() >= 0
    """, says=True),
    Case(37, "netlink", "Asks the kernel for its network interfaces.", """
        import socket
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).fileno() >= 0
    """, says=True),
    Case(38, "kernel cryptography", "Makes a socket into the kernel's cryptography.", """
        import socket
        tool = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
        tool.bind(('hash', 'sha256'))
        True
    """, says=True),
    Case(39, "listening", "Listens on a port and is reached from the host.", """
        import socket
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(CALLED)
        server.listen()
        server.settimeout(0.5)
        server.accept()[0].close()
    """, called=True),
    Case(40, "child program", "Lets the shell connect.", """
        import subprocess
        subprocess.run(['/bin/bash', '-c', f'exec 3<>/dev/tcp/{TCP4[0]}/{TCP4[1]}'])
    """),
]  # fmt: skip
