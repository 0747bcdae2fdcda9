"""The WKV-7 operator, RWKV-7's state update: see :func:`wkv7`."""

from core.wkv.operator import available_backends, use_backend, wkv7
from core.wkv.reference import wkv7_reference
from core.wkv.walk import Walk

__all__ = ["Walk", "available_backends", "use_backend", "wkv7", "wkv7_reference"]
