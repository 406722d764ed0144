# C-level declarations of kernel.py: the classes that it uses for each request and when it makes room.
from xok_host.kernel.xn.io cimport DeviceIo
from xok_host.kernel.xn.registry cimport Cached, Registry
