"""OpenGL without a display: which library, which GPU, and the context to draw in."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

LIBRARIES: dict[str, tuple[str, ...]] = {
    "egl": ("libEGL.so.1",),
    "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"),
}
"""MuJoCo's headless backends, best first, and the names of the library each needs."""

DEVICE_VARIABLE = "MUJOCO_EGL_DEVICE_ID"
"""The environment variable that names the GPU to draw on."""


def settle_backend() -> str:
    """Set ``MUJOCO_GL``, which MuJoCo and robosuite read once, when they are imported.

    It stays what it is if it is set. Else it becomes EGL, which needs no display and draws on a
    GPU or a CPU; OSMesa where there is no EGL library. Only on Linux; elsewhere MuJoCo chooses.
    """
    if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):
        found = (name for name in LIBRARIES if has_library(name))
        os.environ["MUJOCO_GL"] = next(found, "egl")
    return os.environ.get("MUJOCO_GL", "")


def has_library(backend: str) -> bool:
    """Whether the library of a backend can be loaded."""
    for name in LIBRARIES[backend]:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def make_context(size: int) -> Any:
    """A current OpenGL context for pictures of that size.

    Not ``mujoco.GLContext``: that is chosen when MuJoCo is first imported, perhaps by other code
    on a machine without a display.
    """
    backend = settle_backend().lower()
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco.gl_context import GLContext
    context = GLContext(size, size)
    context.make_current()
    return context


def renderer_name() -> str:
    """What draws in the current context, in the driver's words: a GPU's name, or ``llvmpipe``."""
    from OpenGL import GL

    return GL.glGetString(GL.GL_RENDERER).decode()


def select_gpu(index: int) -> None:
    """Draw on the GPU with that index from now on, if EGL knows it and nobody chose another.

    To be called before anything is drawn in this process.
    """
    if settle_backend().lower() != "egl" or DEVICE_VARIABLE in os.environ:
        return
    from mujoco.egl import egl_ext

    if index < len(egl_ext.eglQueryDevicesEXT()):
        os.environ[DEVICE_VARIABLE] = str(index)
