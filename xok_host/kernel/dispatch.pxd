# C-level declarations of dispatch.py: the classes that its loops over blocks use.
from xok_host.kernel.xn.device cimport Device
from xok_host.kernel.xn.io cimport DeviceIo
from xok_host.kernel.xn.registry cimport Cached, Registry
